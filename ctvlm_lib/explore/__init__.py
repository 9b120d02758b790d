"""The prompt explorer: a page without code, and the same in a notebook. See :class:`ctvlm_lib.explore.page.Explorer`.

page.py        the page: viewer and sections            session.py   what is looked at
viewer.py/.js  three linked planes, drawn in the browser panels.py    case, structures, outlines, prompt
cases.py       what can be opened, and how safely        outline.py   shapes drawn by hand
prompts.py     lines and sentences                       ask.py       models, answers, thresholds, sensitivity
files.py/.js   uploads and downloads in parts            keep.py      what is exported
server.py      ``ctvlm app``
"""


def explore(volume, labels):
    """The explorer on a CT and its label map, for a notebook; long work waits, as nothing runs beside a cell.

    Args:
        volume: a :class:`ctvlm_lib.volume.Volume`. labels: a :class:`ctvlm_lib.mask.LabelMap` on its grid.
    """
    from ctvlm_lib.explore.cases import OWN, Case
    from ctvlm_lib.explore.page import Explorer

    return Explorer(Case("own-ct", OWN, volume, labels), background=False)
