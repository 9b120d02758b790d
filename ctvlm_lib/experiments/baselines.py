"""Readers that set the floor and the roof: without an image, and with the masks in hand; as tables of answers."""

from collections.abc import Iterable, Sequence

import pandas as pd

from ctvlm_lib.experiments.answers import answer_table
from ctvlm_lib.records.blind import blind_answers
from ctvlm_lib.records.oracle import oracle_answers
from ctvlm_lib.records.phantom import Patient
from ctvlm_lib.records.record import Record

BLIND, ORACLE = "text only", "oracle"  # they stand in the column `control`


def blind_table(records: Sequence[Record], reader: str = "bag of words") -> pd.DataFrame:
    """What can be answered from the words alone: the control "text only".

    Args:
        records: of train and test; the test records of groups that have training records are answered.
        reader: of :data:`ctvlm_lib.records.blind.READERS`.
    """
    said = blind_answers(records, reader)
    answered = [record for record in records if record.id in said]
    return answer_table(answered, [said[r.id] for r in answered], condition="none", control=f"{BLIND}: {reader}")


def oracle_table(records: Iterable[Record], patients: Iterable[Patient]) -> pd.DataFrame:
    """What a reader of masks and HU answers to closed questions: the control "oracle".

    Args:
        records: closed ones of test are answered.
        patients: theirs; others are passed over.
    """
    closed = [record for record in records if record.form == "closed" and record.split == "test"]
    said = oracle_answers(closed, patients)
    return answer_table(closed, [said[r.id] for r in closed], condition="none", control=ORACLE)
