"""Records: one grounded question each, read and written as JSON lines, packaged for models, split by patient."""

from ctvlm_lib.records.leaks import Leak, check_leaks, file_hash, find_leaks
from ctvlm_lib.records.package import chat_messages, four_role, png_stack
from ctvlm_lib.records.record import FORMS, KINDS, SPLITS, Record, read_jsonl, region_name, write_jsonl
from ctvlm_lib.records.split import FRACTIONS, assign_splits

__all__ = [
    "FORMS",
    "FRACTIONS",
    "KINDS",
    "SPLITS",
    "Leak",
    "Record",
    "assign_splits",
    "chat_messages",
    "check_leaks",
    "file_hash",
    "find_leaks",
    "four_role",
    "png_stack",
    "read_jsonl",
    "region_name",
    "write_jsonl",
]
