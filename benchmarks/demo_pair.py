"""Measure saved demo pairs with the reference loop on more prompts than their manifests did.

    python benchmarks/demo_pair.py DIR [DIR ...] [--prompts 24] [--new-tokens 96] [--threads 1] [--seed 1]

Prints, for each pair and temperature, the accept length (bonus included) over all and by domain, conditional acceptance
and survival AUC by draft position, calibration error, and the time of one round at batch 1. Needs the extra `serve`.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from sglang_dspark.demo.build import measure
from sglang_dspark.demo.corpus import DOMAINS
from sglang_dspark.demo.metrics import Sample
from sglang_dspark.demo.pair import load_pair


def read_prompts(folder: Path) -> dict[str, list[str]]:
    """The pair's held-out prompts by domain."""
    files = {domain: folder / "prompts" / f"{domain}.jsonl" for domain in DOMAINS}
    lines = {domain: path.read_text().splitlines() for domain, path in files.items()}
    return {domain: [json.loads(line)["turns"][0] for line in rows] for domain, rows in lines.items()}


def row(values: list[float | None]) -> str:
    """Fractions as two decimals."""
    return " ".join("  -  " if value is None else f"{value:5.2f}" for value in values)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--prompts", type=int, default=24, help="prompts of each domain, at most 64")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for folder in args.pairs:
        start, rounds = time.perf_counter(), 0
        sample = Sample(args.prompts, args.new_tokens)
        results = measure(load_pair(folder), read_prompts(folder), sample, args.seed, lambda *_: None)
        print(f"{folder}: {args.prompts} prompts of each domain, {args.new_tokens} tokens each, seed {args.seed}")
        for name, stats in results.items():
            rounds += stats["rounds"]
            domains = ", ".join(f"{domain} {length:.2f}" for domain, length in stats["accept_length_by_domain"].items())
            print(f"  {name}  accept length {stats['accept_length']:.2f} ({domains}), {stats['rounds']} rounds")
            print(f"       acceptance   {row(stats['acceptance'])}")
            print(f"       survival AUC {row(stats['survival_auc'])}  mean {stats['survival_auc_mean']:.2f}")
            print(f"       survival ECE {row(stats['survival_ece'])}")
        print(f"  {1000 * (time.perf_counter() - start) / rounds:.1f} ms a round on {args.threads} threads")


if __name__ == "__main__":
    main()
