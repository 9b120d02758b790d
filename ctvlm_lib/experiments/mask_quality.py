"""How much a drawn mask looks like one structure, by the encoder's own account: what to abstain by when masks are bad.

No truth is needed. The read-out "where" says of every token which structure it lies in; a mask that covers one of them
and nothing else has quality 1, a mask that was shifted, or grown into its neighbours, less. A mask of the wrong
structure looks perfect: this can't be found out from the mask.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ctvlm_lib.alignment.scans import Scans, as_input
from ctvlm_lib.alignment.tokens import shares
from ctvlm_lib.errors import BadInput
from ctvlm_lib.experiments.conditions import Drawing, draw
from ctvlm_lib.experiments.controls import Control, drawing_for
from ctvlm_lib.experiments.pointing import Pointing, look
from ctvlm_lib.records.record import Record


def with_quality(
    table: pd.DataFrame, reader: Pointing, records: Sequence[Record], scans: Scans, condition: str, control: Control
) -> pd.DataFrame:
    """Add the column ``mask quality`` to answers of one condition and control.

    The tokens are those of the picture without a prompt, as a line would tell the read-out where to look.

    Args:
        table: of :func:`ctvlm_lib.experiments.controls.ask`.
        reader: its read-outs of the condition "none" are used.
        records, scans, condition, control: as they were asked.

    Raises:
        BadInput: nothing is drawn under the condition and control.
    """
    known = {}
    place = {name: k for k, name in enumerate(scans.names)}
    for record in records:
        key = record.patient, record.region
        if key not in known and record.region is not None:
            k = place[record.patient]
            drawing, _ = drawing_for(record, scans, k, condition, control)
            if drawing.target is None:
                raise BadInput(f"under {condition!r} and {str(control)!r} no mask is drawn, so it has no quality")
            grey = draw(as_input(scans.hu[k]), Drawing("none"), reader.channels)
            known[key] = quality(reader, look(reader.encoder, grey[None])[0], drawing.target)
    asked = zip(table["patient"], table["region"], strict=True)
    return table.assign(**{"mask quality": [known.get(key, float("nan")) for key in asked]})


def quality(reader: Pointing, low: np.ndarray, mask: np.ndarray) -> float:
    """Soft Dice of a mask with the structure that it fits best.

    Args:
        reader: fitted for the condition "none".
        low: ``(tokens, channels)`` of the picture without a prompt.
        mask: bool ``(D, H, W)``.

    Returns:
        0…1.
    """
    grid = reader.encoder.grids(mask.shape)[-2]
    covered = shares(mask[None].astype(np.uint8), 2, grid)[0, 1]  # (tokens,)
    of = reader.read_outs["none"].where(low)[:, 1:]  # (tokens, regions)
    common = np.minimum(of, covered[:, None]).sum(axis=0)
    return float((2 * common / (of.sum(axis=0) + covered.sum())).max())
