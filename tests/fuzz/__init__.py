"""The robustness campaign: damaged files of every kind against every reader; ``make fuzz``, no part of ``make test``.

A reader that meets a damaged file shall read what is still sound, or say in one sentence what is wrong. Everything else
is a fault: another exception, a crash, more than five seconds, memory that a header merely claims, a file written or
changed. ``tests/test_robustness.py`` runs a small slice of it.
"""
