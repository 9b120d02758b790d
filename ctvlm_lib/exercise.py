"""Check a reader's answer to an exercise: print ``ok``, or what was expected beside what was given."""

import numpy as np


def check(what: str, given, expected, tolerance: float = 1e-6) -> bool:
    """Compare an answer with the expected one and print one line.

    Args:
        what: names the case, e.g. ``"a 5×5 square"``.
        given: the reader's answer; ``None`` means that the stub is still empty.
        expected: a number, a text or an array.
        tolerance: largest absolute difference that still counts as equal.

    Returns:
        Whether it is right.
    """
    right, difference = _compare(given, expected, tolerance)
    print(f"ok       {what}" if right else f"not yet  {what}: {difference}")
    return right


def _compare(given, expected, tolerance: float) -> tuple[bool, str]:
    if given is None:
        return False, "the function returns None; write its body and run the cell again"
    if isinstance(expected, str):
        return given == expected, f"expected {expected!r}, got {given!r}"
    try:
        got, want = np.asarray(given), np.asarray(expected)
        if got.shape != want.shape:
            return False, f"expected shape {want.shape}, got {got.shape}"
        wrong = int(np.count_nonzero(~np.isclose(got.astype(float), want.astype(float), rtol=0, atol=tolerance)))
    except (TypeError, ValueError):
        return False, f"expected {_short(expected)}, got {type(given).__name__}"
    if want.ndim == 0:
        return wrong == 0, f"expected {_short(expected)}, got {_short(given)}"
    if want.size <= 8:
        return wrong == 0, f"expected {want.tolist()}, got {got.tolist()}"
    return wrong == 0, f"{wrong} of {want.size} values differ"


def _short(value) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        else repr(value)[:80]
    )
