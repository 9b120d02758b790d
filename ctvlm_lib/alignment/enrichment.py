"""Semantic enrichment: reports and region sentences as presence-or-absence statements, and a guard for rewrites.

MedVista3D has a chat model rewrite each report and each region's sentence, and trains on what comes out. The paper has
no check that a rewrite says what its original says. Here :func:`guarded` accepts a rewrite only if the findings that
are read from it, and their places, are the original's, if what was denied is still denied, and if it brings no number
that wasn't there; else the deterministic statement stands in its place, and the refusal is counted.

Findings are read by rules that are exact on the cohort's language and nowhere else
(:mod:`ctvlm_lib.evaluate.abnormalities`): a faithful rewrite in words that they don't know is refused as well, so a
share of refusals isn't the share of unfaithful rewrites.

Source: medvista3d.txt §3.2, Figure 2 (right), Figure A.5.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ctvlm_lib.alignment.objectives import article
from ctvlm_lib.alignment.scans import kinds_of
from ctvlm_lib.errors import BadInput
from ctvlm_lib.evaluate.abnormalities import affirmed_findings, denies
from ctvlm_lib.records.phantom import REGIONS

Rewriter = Callable[[Sequence[str]], Sequence[str]]
FINDING, DENIAL, PLACE, NUMBER, EMPTY, REPEATED = (
    "other findings", "a denial is lost or turned", "doesn't name the region", "a number that wasn't there", "no text",
    "more than twice as long and 40 words",
)  # fmt: skip
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LONGEST = 40  # words, beyond which a rewrite may not be more than twice its original


def present(kind: str, region: str = "") -> str:
    """The statement that a finding is there."""
    return f"There is {article(kind)}{f' in the {region}' if region else ''}."


def absent(kinds: str | Sequence[str], region: str = "") -> str:
    """The statement that it isn't, of one kind or several."""
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    told = f"{', '.join(kinds[:-1])} or {kinds[-1]}" if len(kinds) > 1 else kinds[0]
    return f"There is no {told}{f' in the {region}' if region else ''}."


def region_statement(text: str, region: str) -> str:
    """A region's sentence as one statement for each finding, or one that denies all that the region could show.

    Args:
        text: what the report says of the region.
        region: one of the cohort's ten.

    Raises:
        BadInput: no text, or an unknown region.
    """
    if region not in REGIONS:
        raise BadInput(f"no region is called {region!r}; choose one of {', '.join(REGIONS)}")
    possible = kinds_of(region)[1:]
    there = {kind for place, kind in affirmed_findings(text, region) if place == region}
    said = [present(kind, region) for kind in possible if kind in there] or [absent(possible, region)]
    return " ".join([*said, "There is cardiomegaly."] if "cardiomegaly" in there else said)


def report_statement(text: str) -> str:
    """A report as statements: every finding with its region, then one sentence on what is seen nowhere.

    Raises:
        BadInput: no text.
    """
    found = affirmed_findings(text)
    said = [present(kind, region) for region in REGIONS for kind in kinds_of(region)[1:] if (region, kind) in found]
    everywhere = {("pleura", "effusion"): "pleural effusion", ("heart", "cardiomegaly"): "cardiomegaly"}
    said += [f"There is {name}." for key, name in everywhere.items() if key in found]
    kinds = {kind for _, kind in found}
    never = [kind for kind in dict.fromkeys(k for region in REGIONS for k in kinds_of(region)[1:]) if kind not in kinds]
    never += [name for key, name in everywhere.items() if key not in found]
    return " ".join([*said, absent(never)] if never else said)


def refused(original: str, rewrite: str, region: str = "") -> str:
    """Why a rewrite isn't accepted: FINDING … REPEATED, or "" if it is.

    Args:
        original, rewrite: the texts.
        region: what sentences are about that name no region.
    """
    if not rewrite.strip():
        return EMPTY
    found = affirmed_findings(original, region)
    if affirmed_findings(rewrite, region) != found:
        return FINDING
    if not found and denies(original) and not denies(rewrite):
        return DENIAL
    if region in original and region not in rewrite.lower():
        return PLACE
    if set(_NUMBER.findall(rewrite)) - set(_NUMBER.findall(original)):
        return NUMBER
    words = len(rewrite.split())
    return REPEATED if words > max(_LONGEST, 2 * len(original.split())) else ""


@dataclass(frozen=True)
class Rewrites:
    """Texts after the guard.

    Attributes:
        texts: accepted rewrites, and the deterministic statement in the place of those that were refused.
        rewrites: what the model wrote, refused or not.
        reasons: of each text why its rewrite was refused, "" if it was accepted.
    """

    texts: tuple[str, ...]
    rewrites: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Reason → how many were refused for it."""
        return dict(Counter(reason for reason in self.reasons if reason))


def guarded(texts: Sequence[str], rewriter: Rewriter, regions: Sequence[str] = ()) -> Rewrites:
    """Have texts rewritten, and keep what is faithful.

    Args:
        texts: reports, or sentences of regions.
        rewriter: all texts → as many rewrites, in their order.
        regions: of each text the region that it is about; () for reports.

    Raises:
        BadInput: no text, another number of regions, or of rewrites than texts.
    """
    if not texts or (regions and len(regions) != len(texts)):
        raise BadInput(f"{len(texts)} texts and {len(regions)} regions were given; give one region a text, or none")
    said = list(rewriter(texts))
    if len(said) != len(texts):
        raise BadInput(
            f"the rewriter gave {len(said)} texts for {len(texts)}; it has to answer each, if need be with ''"
        )
    where = regions or [""] * len(texts)
    reasons = [refused(*those) for those in zip(texts, said, where, strict=True)]
    kept = [
        new if not reason else (region_statement(old, region) if region else report_statement(old))
        for old, new, reason, region in zip(texts, said, reasons, where, strict=True)
    ]
    return Rewrites(tuple(kept), tuple(said), tuple(reasons))
