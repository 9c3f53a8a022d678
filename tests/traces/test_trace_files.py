"""The shipped example, and public traces where they lie beside the repository."""

import gzip
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import simulator
from simulator.traces import example_trace, load_trace
from simulator.traces.example import make_example
from simulator.traces.write import write_trace

EXAMPLE = Path(simulator.__file__).parent / "examples" / "example.jsonl.gz"
SHARED = Path(__file__).parents[3] / "shared" / "data"

#: File; format; requests, span in seconds, mean prompt, mean answer (counted by other means in each folder's notes).
PUBLIC = [
    ("azure2023/AzureLLMInferenceTrace_conv.csv", "azure", 19366, 3501.721937, 1155, 211),
    ("azure2023/AzureLLMInferenceTrace_code.csv", "azure", 8819, 3435.948056, 2048, 28),
    ("mooncake/synthetic_trace.jsonl", "mooncake", 3993, 1022.025, 15325, 149),
]


def public(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository (../shared/data)")
    return path


def test_the_example_is_what_its_script_makes(tmp_path):
    write_trace(tmp_path / "example.jsonl", make_example())
    assert (tmp_path / "example.jsonl").read_bytes() == gzip.decompress(EXAMPLE.read_bytes())
    assert EXAMPLE.stat().st_size <= 8 * 1024


def test_the_script_writes_the_example_and_refuses_bad_arguments(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "simulator.traces.example"]
    subprocess.run([*command, tmp_path / "e.jsonl.gz"], check=True)
    assert gzip.decompress((tmp_path / "e.jsonl.gz").read_bytes()) == gzip.decompress(EXAMPLE.read_bytes())
    for arguments, said in (([], "usage:"), ([tmp_path / "no" / "e"], "the trace cannot be written")):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_the_example_is_mixed_and_bursty():
    trace = example_trace()
    assert len(trace) == 600 and 120 < trace.span_s < 180
    assert trace.domains == ("math", "code", "chat")
    assert np.bincount(trace.domain, minlength=3).min() > 100
    per_second = np.bincount(trace.arrival_s.astype(int))
    assert per_second.var() > 1.5 * per_second.mean()  # 1 for a Poisson process
    assert trace.input_length.max() > 10 * np.median(trace.input_length)


@pytest.mark.parametrize(("name", "format", "count", "span_s", "prompt", "answer"), PUBLIC)
def test_public_traces(name, format, count, span_s, prompt, answer):
    path = public(name)
    trace = load_trace(path)
    assert trace.source == f"{path.name} ({format})"
    assert (len(trace), trace.arrival_s[0], trace.notes) == (count, 0.0, ())
    assert trace.span_s == pytest.approx(span_s, abs=1e-6)
    assert trace.input_length.mean() == pytest.approx(prompt, abs=0.6)
    assert trace.output_length.mean() == pytest.approx(answer, abs=0.6)


def test_the_azure_conversation_trace_loads_fast():
    path = public(PUBLIC[0][0])
    start = time.perf_counter()
    load_trace(path)
    assert time.perf_counter() - start < 2.0  # 0.2 s alone on a core; the limit leaves room for a busy machine
