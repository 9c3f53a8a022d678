"""Records of a running engine: their schema, their writer beside the engine, their reader in bounded memory."""

from sglang_dspark.records.files import SUFFIX
from sglang_dspark.records.reader import Problem, RecordSet, Summary, read_records, record_files
from sglang_dspark.records.schema import (
    EXACT,
    FORCED,
    MODES,
    ROUNDED,
    SCHEDULES,
    CostRecord,
    Gap,
    Header,
    Lagged,
    Record,
    RequestRecord,
    Shadow,
    StepRecord,
    fault,
)
from sglang_dspark.records.writer import RecordWriter, WriterLimits, WriterStats

__all__ = [
    "EXACT",
    "FORCED",
    "MODES",
    "ROUNDED",
    "SCHEDULES",
    "SUFFIX",
    "CostRecord",
    "Gap",
    "Header",
    "Lagged",
    "Problem",
    "Record",
    "RecordSet",
    "RecordWriter",
    "RequestRecord",
    "Shadow",
    "StepRecord",
    "Summary",
    "WriterLimits",
    "WriterStats",
    "fault",
    "read_records",
    "record_files",
]
