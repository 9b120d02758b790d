"""Every published number beside ours.

What the papers print: ``published`` (tables), ``claims`` (sentences). What each number is: ``places``, and with a
user's data ``real_places``; ours: ``quantities``, ``ours``; both together: ``rows``, as text ``table_text``, as a page
``page``. What is judged:
``contrasts``, ``verdicts``. Where papers, code and this workbook part ways: ``audit``. Whether stored tables follow
from stored answers: ``verify``; packed for elsewhere: ``packed_results``.
"""
