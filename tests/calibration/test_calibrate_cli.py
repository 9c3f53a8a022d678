"""`dspark calibrate` from records to an STS file."""

import json
import subprocess
import sys

import pytest
from make_pt import sample, shard_bytes
from synthetic_records import header_of, synthetic_steps

from sglang_dspark.records import RecordWriter


def dspark(*arguments):
    command = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", "calibrate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def record(folder, header=None, **options):
    writer = RecordWriter(folder, header or header_of("argmax:lag=2", 5))
    for step in synthetic_steps(**{"steps": 600, "mode": "cap-accept", **options}):
        writer.put(step)
    writer.close()
    return folder


def test_a_sharp_head_is_fitted_and_plotted(tmp_path):
    folder = record(tmp_path / "r", sharpness=2.0)
    done = dspark(folder, "--out", tmp_path / "sts.json", "--plot", tmp_path / "p.svg")
    assert done.returncode == 0, done.stderr
    assert "held-out mean ECE falls by" in done.stdout and "position 5" in done.stdout
    temperatures = json.loads((tmp_path / "sts.json").read_text())["temperatures"]
    assert len(temperatures) == 5 and all(1.3 < value < 3.0 for value in temperatures)
    assert (tmp_path / "p.svg").read_text().startswith("<svg")


def test_a_calibrated_head_keeps_its_temperatures(tmp_path):
    header = header_of("argmax:lag=2", 5, temperatures=[1.0, 1.1, 1.0, 1.0, 1.0])
    done = dspark(record(tmp_path / "r", header), "--out", tmp_path / "sts.json")
    assert "no improvement" in done.stdout
    assert json.loads((tmp_path / "sts.json").read_text())["temperatures"] == [1.0, 1.1, 1.0, 1.0, 1.0]


def test_exploration_steps_are_the_ones_that_count(tmp_path):
    folder = record(tmp_path / "r", mode="compact", explore=0.3, steps=2000, sharpness=2.0)
    done = dspark(folder, "--out", tmp_path / "sts.json", "--json")
    answer = json.loads(done.stdout)
    assert answer["improved"] and "trimmed steps are censored" in answer["notes"][0]
    assert 3000 < answer["blocks"] < 8000, "about 30 % of the steps"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "compact", "policy": "fixed:k=2"}, "trimmed compact steps are censored"),
        ({"steps": 20}, "too few to fit on"),
    ],
)
def test_censored_or_too_few_blocks_are_refused(tmp_path, options, words):
    done = dspark(record(tmp_path / "r", **options), "--out", tmp_path / "sts.json")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr
    assert not (tmp_path / "sts.json").exists()


def test_block_verification_is_refused(tmp_path):
    header = header_of("argmax:lag=2", 5, block_verification=True)
    done = dspark(record(tmp_path / "r", header), "--out", tmp_path / "sts.json")
    assert done.returncode == 2 and "block verification" in done.stderr


def test_sglang_s_shards(tmp_path):
    logits, mask, _ = sample(rows=3000)
    (tmp_path / "s.0.pt").write_bytes(shard_bytes({"logits": logits * 2, "prefix_mask": mask}))
    done = dspark(tmp_path / "s.0.pt", "--out", tmp_path / "sts.json")
    assert done.returncode == 0, done.stderr
    assert "greedy matches" in done.stdout and "falls by" in done.stdout
    mixed = dspark(tmp_path / "s.0.pt", tmp_path, "--out", tmp_path / "sts.json")
    assert mixed.returncode == 2 and "cannot be mixed" in mixed.stderr


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    folder = record(tmp_path / "r", sharpness=2.0)
    done = dspark(folder, "--out", tmp_path / "nowhere" / "sts.json")
    assert done.returncode == 2 and "cannot write" in done.stderr
    assert dspark(folder, "--out", tmp_path / "sts.json", "--plot", "x.gif").returncode == 2
