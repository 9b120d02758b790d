"""Damage to JSON, JSON lines, CSV, TOML and their encoding."""

import csv
import io
import json
import random

from fuzz.damage_bytes import Unfit

RAW = (  # put into JSON as they stand: what Python's reader takes, or stumbles over
    "NaN", "-Infinity", "1e999", "1" * 5000, "-1", "0", "1.5", "true", "null", '""', "[]", "{}", '"\\ud800"',
    '"\\u0000"',
    "9" * 30, '"' + "a" * 100_000 + '"', "[" * 100_000, '{"a":' * 20_000, '"../../../etc/passwd"', '"/etc/passwd"',
    "[[1, 2], [3]]", '{"id": 1}', "1000000000", "'", "tru", "[1, 2", '"\u2028"',
)  # fmt: skip
CELLS = (
    "", " ", "nan", "inf", "-1", "1e400", "0.5", "x", "..", "../../x.nii.gz", "/etc/passwd", '"', '""', "'", "a\0b",
    "\r",
    "a\nb", ",", ";", "\t", "\ud7ff", "é", "‮", "1" * 400, "1_000", "٣", "²", "train", "Yes", "[", "[0.7, 0.8, 0.9]",
    "=1+1", "a" * 200_000, "True", "None", "999999999999999999999",
)  # fmt: skip
TOML = (
    "nan", "inf", "-1", "0", "1.5", '"x"', "true", "[]", "{}", "[1, [2]]", "1979-05-27", "'''", '"""', '"\\ud800"',
    "[" * 3000,
    "1" * 5000, "99999999999999999999999", '["a", 1]', "{a = 1}", '"../../etc"', "=", '"\\u0000"', "",
)  # fmt: skip


def encoding(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Other bytes for the same text."""
    text = content.decode("utf-8")
    ways = {
        "a byte order mark": lambda: b"\xef\xbb\xbf" + content, "UTF-16": lambda: text.encode("utf-16"),
        "Latin-1": lambda: text.replace("a", "ä").encode("latin-1", "replace"),
        "CRLF": lambda: content.replace(b"\n", b"\r\n"),
        "CR": lambda: content.replace(b"\n", b"\r"), "a zero byte": lambda: _into(content, b"\0", rng),
        "a lone continuation byte": lambda: _into(content, b"\x80", rng),
        "a surrogate in UTF-8": lambda: _into(content, b"\xed\xa0\x80", rng),
        "blank lines": lambda: content + b"\n\n\n",
        "a line separator": lambda: _into(content, "\u2028".encode(), rng), "twice": lambda: content + content,
    }  # fmt: skip
    name = rng.choice(sorted(ways))
    return ways[name](), f"encoding: {name}"


def json_value(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One value, key or the whole replaced, removed or doubled."""
    found = json.loads(content)
    places = list(_places(found))
    if not places or rng.random() < 0.08:
        raw = rng.choice(RAW)
        return raw.encode("utf-8", "replace"), f"the whole JSON is {_short(raw)}"
    holder, key = rng.choice(places)
    way = rng.choice(("replaced", "replaced", "replaced", "removed", "doubled", "renamed", "exchanged"))
    if way == "replaced":
        raw, mark = rng.choice(RAW), "@@damaged@@"
        holder[key] = mark
        return json.dumps(found).replace(f'"{mark}"', raw).encode("utf-8", "replace"), f"JSON {key!r} is {_short(raw)}"
    if way == "exchanged":
        other, name = rng.choice(places)
        holder[key], other[name] = other[name], holder[key]
        return json.dumps(found).encode(), f"JSON {key!r} and {name!r} exchanged"
    value = holder.pop(key)
    if way == "renamed" and isinstance(holder, dict):
        holder[str(rng.choice(("", "x", "0", key * 2)))] = value
    if way == "doubled":
        if isinstance(holder, list):
            holder[key:key] = [value, value]
            return json.dumps(found).encode(), f"JSON entry {key} twice"
        holder[key], holder["@@twice@@"] = value, value
        return json.dumps(found).replace('"@@twice@@"', json.dumps(key)).encode(), f"JSON key {key!r} twice"
    return json.dumps(found).encode(), f"JSON {key!r} {way}"


def json_line(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """:func:`json_value` on one line."""
    lines = content.split(b"\n")
    number = rng.randrange(max(1, len(lines) - 1))
    lines[number], what = json_value(lines[number], rng)
    return b"\n".join(lines), f"line {number + 1}: {what}"


def csv_cell(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A cell, column or row of a CSV."""
    text = content.decode("utf-8-sig")
    delimiter = ";" if text.split("\n")[0].count(";") > text.split("\n")[0].count(",") else ","
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    if not rows or not rows[0]:
        raise Unfit
    row = rng.choice((0, rng.randrange(len(rows)), rng.randrange(len(rows))))
    column = rng.randrange(max(1, len(rows[row])))
    way = rng.choice(("cell", "cell", "cell", "raw", "row removed", "row doubled", "column removed", "more", "fewer"))
    value = rng.choice(CELLS)
    if way == "cell":
        rows[row][column : column + 1] = [value]
    if way == "row removed":
        del rows[row]
    if way == "row doubled":
        rows.insert(row, [*rows[row]])
    if way == "column removed":
        rows = [one[:column] + one[column + 1 :] for one in rows]
    if way == "more":
        rows[row] += [value, value]
    if way == "fewer":
        rows[row] = rows[row][:column]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n").writerows(rows)
    text = buffer.getvalue()
    if way == "raw":  # without the quotes that would make it a cell
        place = rng.randrange(len(text))
        text = text[:place] + value + text[place:]
    return text.encode("utf-8", "replace"), f"CSV row {row}, column {column}: {way} {_short(value)}"


def toml_line(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A line of a TOML file replaced, removed, doubled, or given another value."""
    lines = content.decode("utf-8").split("\n")
    number = rng.choice([k for k, line in enumerate(lines) if line.strip() and not line.startswith("#")])
    key, equals, _ = lines[number].partition("=")
    way = rng.choice(("value", "value", "value", "removed", "doubled", "section", "key"))
    value = rng.choice(TOML)
    if way == "value" and equals:
        lines[number] = f"{key}= {value}"
    elif way == "doubled":
        lines.insert(number, lines[number])
    elif way == "section":
        lines.insert(number, rng.choice(("[x]", "[[x]]", "[data]", "[x.y.z]", "[", "[[")))
    elif way == "key":
        lines.insert(number, f"{rng.choice(('x', 'seed', 'version', 'name', 'a.b'))} = {value}")
    else:
        del lines[number]
    return "\n".join(lines).encode("utf-8", "replace"), f"TOML line {number + 1}: {way} {_short(value)}"


def plain(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A line of a text removed, doubled or replaced."""
    lines = content.decode("utf-8").split("\n")
    number, value = rng.randrange(len(lines)), rng.choice(CELLS)
    lines[number : number + 1] = rng.choice(([], [lines[number]] * 2, [value]))
    return "\n".join(lines).encode("utf-8", "replace"), f"line {number + 1} of the text, {_short(value)}"


def _places(found, below: int = 400):
    """(holder, key) of the values in a JSON value, at most so many of each list."""
    items = found.items() if isinstance(found, dict) else enumerate(found[:40]) if isinstance(found, list) else ()
    for key, value in list(items)[:below]:
        yield found, key
        yield from _places(value, below)


def _into(content: bytes, what: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + what + content[place:]


def _short(text: str) -> str:
    return repr(text if len(text) < 30 else f"{text[:12]}… ({len(text)} characters)")
