"""The paper audit: where paper, paper and code disagree, what was chosen here, and what a choice changes.

``audit.toml`` holds the items. Quotations are the papers' own words in the texts that the items were read from, with
runs of white space as one space; formulas stand as those texts have them (``\\sin`` for sim, for one).
"""

import inspect
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctvlm_lib.damaged import NOT_TOML
from ctvlm_lib.errors import BadInput
from ctvlm_lib.ledger.audit_effects import EFFECTS
from ctvlm_lib.ledger.published import PAPERS

if TYPE_CHECKING:
    import pandas

PATH = Path(__file__).with_name("audit.toml")
TOPICS = ("data", "prompt", "architecture", "training", "metrics", "result")
_FIELDS = ("id", "papers", "topic", "what", "quotes", "code", "here", "switch", "difference")
_SWITCH = re.compile(r'(?P<name>[\w.]+)(?:\((?P<argument>\w+)=.*\)|\["(?P<key>[^"]+)"\])?', re.DOTALL)


@dataclass(frozen=True)
class Quote:
    """A paper's own words, and the section, equation or table where they stand."""

    paper: str
    where: str
    words: str

    def __str__(self) -> str:
        return f"{self.paper} {self.where}: “{self.words}”"


@dataclass(frozen=True)
class Item:
    """One point that a reproducer has to decide.

    Attributes:
        id: its name.
        papers: whose it is, of :data:`ctvlm_lib.ledger.published.PAPERS`.
        topic: of TOPICS.
        what: disagrees, or is left open.
        quotes: one to three.
        code: what the released code does; "" where none is public.
        here: what this workbook chose.
        switches: what chooses otherwise, each as :func:`resolve` reads it; () for none.
        difference: key of :data:`ctvlm_lib.ledger.audit_effects.EFFECTS`; "" where nothing is computed.
    """

    id: str
    papers: tuple[str, ...]
    topic: str
    what: str
    quotes: tuple[Quote, ...]
    code: str
    here: str
    switches: tuple[str, ...]
    difference: str


@cache
def load(path: str | Path = PATH) -> tuple[Item, ...]:
    """Read the items and check them.

    Raises:
        BadInput: the file isn't there or can't be read, or an item with an id that stands twice, an unknown paper,
            topic or difference, a field too many, no quote, or a quote of another paper.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        items = tuple(_item(row) for row in content["item"])
    except BadInput:
        raise
    except (OSError, KeyError, TypeError, AttributeError, *NOT_TOML) as error:
        raise BadInput(f"{path.name} can't be read as a paper audit ({error}); restore it") from None
    ids = [item.id for item in items]
    twice = next((one for one in ids if ids.count(one) > 1), None)
    if twice is not None:
        raise BadInput(f"{path.name} has the item {twice!r} twice; give each its own id")
    return items


def item(name: str) -> Item:
    """The item of an id.

    Raises:
        BadInput: there is none.
    """
    found = next((one for one in load() if one.id == name), None)
    if found is None:
        raise BadInput(f"the audit has no item {name!r}; choose one of {', '.join(one.id for one in load())}")
    return found


def table(paper: str = "", topic: str = "") -> "pandas.DataFrame":
    """Paper, code, here: the items as a table for a notebook.

    Args:
        paper: of PAPERS; "" takes all five.
        topic: of TOPICS; "" takes all.

    Returns:
        columns item, papers, topic, what, paper (the quotes), code, here, switch; the code's column says "–" where
        nothing is public or nothing needs to be said.

    Raises:
        BadInput: an unknown paper or topic.
    """
    import pandas

    _known("paper", paper, ("", *PAPERS))
    _known("topic", topic, ("", *TOPICS))
    chosen = [one for one in load() if (not paper or paper in one.papers) and topic in ("", one.topic)]
    return pandas.DataFrame(
        {
            "item": one.id, "papers": ", ".join(one.papers), "topic": one.topic, "what": one.what,
            "paper": "\n".join(map(str, one.quotes)), "code": one.code or "–", "here": one.here,
            "switch": "\n".join(one.switches),
        }
        for one in chosen
    )  # fmt: skip


def effect(one: Item | str) -> dict[str, Any]:
    """What an item's choice changes, computed now by the library's own functions; {} where nothing is computed."""
    one = item(one) if isinstance(one, str) else one
    return _computed(one.difference) if one.difference else {}


def effects() -> dict[str, dict[str, Any]]:
    """Item → what its choice changes, for all items of which something is computed."""
    return {one.id: effect(one) for one in load() if one.difference}


def resolve(switch: str) -> Any:
    """What a switch names, looked up in the library.

    Args:
        switch: ``package.module.name``; ``package.function(argument=value)``, also of a class;
            ``package.TABLE["key"]``; ``arm NAME`` of ``ctvlm arm``; or ``protocol part.key`` of the protocol.

    Returns:
        the object, the argument's ``inspect.Parameter``, the table's value, the arm's recipe, or the protocol's value.

    Raises:
        BadInput: there is no such thing.
    """
    kind, _, rest = switch.partition(" ")
    found = _SWITCH.fullmatch(switch)
    try:
        if kind == "arm":
            return _arms(rest)[rest]
        if kind == "protocol":
            from ctvlm_lib.records import protocol

            return reduce(lambda part, key: part[key], rest.split("."), protocol.load().content)
        target = reduce(_part, found["name"].split(".")[1:], import_module(found["name"].split(".")[0]))
        if found["argument"]:
            return inspect.signature(target).parameters[found["argument"]]
        return target[found["key"]] if found["key"] else target
    except (AttributeError, ImportError, KeyError, TypeError):
        raise BadInput(f"the switch {switch!r} leads to nothing in this library; correct it in {PATH.name}") from None


@cache
def _computed(name: str) -> Mapping[str, Any]:
    return EFFECTS[name]()


def _part(whole: Any, name: str) -> Any:
    """An attribute; or a module of a package, which is no attribute before it is imported."""
    if inspect.ismodule(whole) and not hasattr(whole, name):
        return import_module(f"{whole.__name__}.{name}")
    return getattr(whole, name)


def _arms(name: str) -> dict:
    """The arms among which a name stands; those of encoders take long to import."""
    if name.startswith("vlm-"):
        from ctvlm_lib.experiments import vlm_arms

        return vlm_arms.ARMS
    from ctvlm_lib.alignment import arms

    return arms.ARMS


def _item(row: dict) -> Item:
    name = row.get("id")
    odd = sorted(set(row) - set(_FIELDS))
    if odd or not name:
        raise BadInput(f"an item of the audit has {odd or 'no id'}; its fields are {', '.join(_FIELDS)}")
    _known(f"topic of {name!r}", row.get("topic"), TOPICS)
    for paper in row["papers"]:
        _known(f"paper of {name!r}", paper, tuple(PAPERS))
    quotes = tuple(Quote(*quote) for quote in row.get("quotes", ()))
    if not quotes or not all(quote.words.strip() for quote in quotes):
        raise BadInput(f"the item {name!r} has no quote, or an empty one; quote the paper's own words")
    for quote in quotes:
        _known(f"paper quoted by {name!r}", quote.paper, tuple(row["papers"]))
    _known(f"difference of {name!r}", row.get("difference", ""), ("", *EFFECTS))
    switches = tuple(" ".join(part.split()) for part in row.get("switch", "").split(";") if part.strip())
    what, code, here = (" ".join(row.get(key, "").split()) for key in ("what", "code", "here"))
    if not what or not here:
        raise BadInput(f"the item {name!r} doesn't say what disagrees, or what was chosen here; write both")
    return Item(name, tuple(row["papers"]), row["topic"], what, quotes, code, here, switches, row.get("difference", ""))


def _known(what: str, value: object, known: tuple) -> None:
    if value not in known:
        raise BadInput(f"{what} is {value!r}; choose one of {', '.join(filter(None, known))}")
