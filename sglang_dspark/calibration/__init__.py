"""Sequential temperature scaling of confidences, and how good they are (ECE, reliability, AUC)."""

from sglang_dspark.calibration.fit import Calibration, Samples, calibrate, samples_of_blocks, samples_of_shards
from sglang_dspark.calibration.metrics import NUM_BINS, area_under_curve, expected_calibration_error, reliability
from sglang_dspark.calibration.shards import Shards, read_shards
from sglang_dspark.calibration.sts import StsFile, fit_temperatures, raw_logits, read_sts, survival, write_sts

__all__ = [
    "NUM_BINS",
    "Calibration",
    "Samples",
    "Shards",
    "StsFile",
    "area_under_curve",
    "calibrate",
    "expected_calibration_error",
    "fit_temperatures",
    "raw_logits",
    "read_shards",
    "read_sts",
    "reliability",
    "samples_of_blocks",
    "samples_of_shards",
    "survival",
    "write_sts",
]
