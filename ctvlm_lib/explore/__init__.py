"""The prompt explorer: a page without code, and the same in a notebook. See :class:`ctvlm_lib.explore.page.Explorer`.

page.py        the page: viewer and sections            session.py   what is looked at
viewer.py/.js  three linked planes, drawn in the browser panels.py    case, structures, outlines, prompt
cases.py       what can be opened, and how safely        outline.py   shapes drawn by hand
prompts.py     lines and sentences                       ask.py       models, answers, thresholds, sensitivity
files.py/.js   uploads and downloads in parts            keep.py      what is exported
server.py      ``ctvlm app``
"""
