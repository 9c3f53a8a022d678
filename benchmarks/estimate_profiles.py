"""The estimates that ship as files in profiles/, so that the core install answers common questions.

Run: python benchmarks/estimate_profiles.py [--check]. Needs the extra `estimate`; no GPU and no network. --check
compares with the files instead of writing them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sglang_dspark.cost import encode_table, write_atomically
from sglang_dspark.cost.estimate.asked import Asked
from sglang_dspark.cost.estimate.table import estimate_table

FOLDER = Path(__file__).parents[1] / "profiles"
GPUS = ("h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm")
DENSE = ("Qwen3-8B", "Qwen3-14B", "Qwen3-32B")
PRECISIONS = {"bf16": "bfloat16", "fp8": "fp8_block"}
LARGE = {
    "estimate-h200x8-deepseek-v3-fp8": Asked("h200_sxm", "DeepSeek-V3", tp=8),
    "estimate-b200x8-deepseek-v3-fp8": Asked("b200_sxm", "DeepSeek-V3", tp=8),
    "estimate-b300x8-deepseek-v3-fp8": Asked("b300_sxm", "DeepSeek-V3", tp=8),
    "estimate-b200x4-deepseek-v4-flash": Asked("b200_sxm", "DeepSeek-V4-Flash", tp=4),
    "estimate-b300x4-deepseek-v4-flash": Asked("b300_sxm", "DeepSeek-V4-Flash", tp=4),
    "estimate-b200x8-deepseek-v4-pro": Asked("b200_sxm", "DeepSeek-V4-Pro", tp=8),
    "estimate-b300x8-deepseek-v4-pro": Asked("b300_sxm", "DeepSeek-V4-Pro", tp=8),
}
TWO_GPUS = {("h100_sxm", "Qwen3-32B", "bf16")}
"""What leaves too little memory for KV on one."""


def shipped() -> dict[str, Asked]:
    """Name of the file -> what it is an estimate of."""
    found = {}
    for gpu in GPUS:
        for model in DENSE:
            for precision, gemm in PRECISIONS.items():
                tp = 2 if (gpu, model, precision) in TWO_GPUS else 1
                short = gpu.partition("_")[0] + (f"x{tp}" if tp > 1 else "")
                found[f"estimate-{short}-{model.lower()}-{precision}"] = Asked(gpu, model, tp=tp, gemm=gemm)
    return found | LARGE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = []
    for name, asked in shipped().items():
        path, data = FOLDER / f"{name}.json", encode_table(estimate_table(asked)) + b"\n"
        if args.check:
            stale += [] if path.is_file() and path.read_bytes() == data else [name]
        else:
            write_atomically(path, data)
        print(f"{name}: {asked.text}", flush=True)
    if stale:
        sys.exit(f"not what the estimate is now: {', '.join(stale)}")


if __name__ == "__main__":
    main()
