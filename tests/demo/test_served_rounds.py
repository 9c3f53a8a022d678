"""A served pair drafts what the reference loop drafts: the same greedy text in the same number of rounds.

Equal text alone would not show it, because verification makes any draft's text the target's. DSPARK_DEMO_PAIR names the
pair (of any head); without it a CI pair is trained into the user's cache.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("sglang") is None:
    pytest.skip("needs the extra `serve`", allow_module_level=True)
sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))

from live_server import LiveServer  # noqa: E402

TOKENS = 64
PROMPTS_PER_DOMAIN = 3


def a_pair() -> Path:
    """The pair to serve."""
    if given := os.environ.get("DSPARK_DEMO_PAIR"):
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sglang-dspark" / "pair-ci"
    program = [sys.executable, "-c", "from sglang_dspark.cli import main; main()"]
    subprocess.run([*program, "demo-model", "--out", str(cache), "--size", "ci", "--threads", "2"], check=True)
    return cache


@pytest.mark.engine
def test_greedy_rounds_equal_the_reference_loop_s(tmp_path: Path) -> None:
    import torch

    from sglang_dspark.demo.corpus import DOMAINS
    from sglang_dspark.demo.pair import load_pair
    from sglang_dspark.demo.reference import generate

    folder, prompts = a_pair(), []
    pair = load_pair(folder)
    for domain in DOMAINS:
        lines = (folder / "prompts" / f"{domain}.jsonl").read_text().splitlines()[:PROMPTS_PER_DOMAIN]
        prompts += [pair.tokenizer(json.loads(line)["turns"][0])["input_ids"] for line in lines]
    with LiveServer(folder, tmp_path / "server.log") as server:
        served = [server.generate(prompt, TOKENS, ignore_eos=True) for prompt in prompts]
    ties = 0
    for prompt, answer in zip(prompts, served, strict=True):
        made = generate(pair, prompt, TOKENS, 0.0, torch.Generator())
        if answer["output_ids"] == made.tokens:
            assert answer["meta_info"]["spec_verify_ct"] == len(made.rounds)
        else:
            ties += 1  # a near-equal pair of logits; the engine's own tests tell ties from errors
    assert ties <= 1
