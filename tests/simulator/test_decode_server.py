"""A decode server: first tokens from elsewhere, admission with room to decode, retraction that resumes."""

from __future__ import annotations

import numpy as np
import pytest
from client_timeline import watched
from command_line import PROFILE, assert_one_line_error, call
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_worlds import finished, flat_cost, setting_of, trace_of

from sglang_dspark.policies import make_policy
from simulator.engine.admission import RESERVED_DECODE_TOKENS
from simulator.results.metrics import figures


def test_a_worked_case() -> None:
    """Two requests at 0 s, KV after 50 ms, steps of 10 ms: first token at 50 ms, then one token a step."""
    setting = setting_of(
        trace_of([(100, 5), (2000, 3)]), flat_cost(0.0, 0.01), schedule="no-overlap", prefill_elsewhere_s=0.05
    )
    run, outputs = watched(setting, make_policy("none"))
    assert [output.ttft for output in outputs] == pytest.approx([0.05, 0.05])
    assert outputs[0].itl == pytest.approx([0.01] * 4) and outputs[1].itl == pytest.approx([0.01] * 2)
    assert run.recorder.prefill_steps == 0 and run.recorder.finish_s.tolist() == pytest.approx([0.09, 0.07])


def test_one_token_ends_where_it_was_prefilled() -> None:
    setting = setting_of(trace_of([(10, 1)] * 3), prefill_elsewhere_s=0.02, concurrency=1)
    run, _ = finished(setting, make_policy("fixed"))
    assert run.recorder.finish_s.tolist() == pytest.approx([0.02, 0.04, 0.06]) and run.recorder.decode_steps == 0


def test_room_to_decode_on_is_kept_for_everybody() -> None:
    """Memory for three requests with their reserve, not for four: the fourth waits though its context would fit."""
    context = 100
    capacity = 3 * (context + 1 + RESERVED_DECODE_TOKENS) + 60
    setting = setting_of(
        trace_of([(context, 40)] * 4), kv_tokens=capacity, gamma=1, prefill_elsewhere_s=0.0, schedule="no-overlap"
    )
    run, steps = finished(setting, make_policy("fixed:k=0"))
    assert max(step.batch for step in steps) == 3
    assert run.recorder.retractions.sum() == 0


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(900, 3000), st.integers(1, 7), st.sampled_from([None, 3, 20]))
def test_every_request_gets_every_token(seed: int, kv: int, gamma: int, concurrency: int | None) -> None:
    rng = np.random.default_rng(seed)
    lengths = [(int(rng.integers(5, 100)), int(rng.integers(1, 700))) for _ in range(25)]
    setting = setting_of(
        trace_of(lengths, rng.random(25).tolist()),
        gamma=gamma,
        kv_tokens=kv,
        max_running_requests=8,
        concurrency=concurrency,
        prefill_elsewhere_s=0.03,
    )
    run, steps = finished(setting, make_policy("hull"))
    check_end_without_prefill(run, steps)
    _, outputs = watched(setting, make_policy("hull"))
    served = [output for output in outputs if output.success]
    assert sum(len(output.itl) for output in served) == sum(output.output_len - 1 for output in served)
    assert figures(run)["mean_ttft_ms"] == pytest.approx(30) if served else True


def check_end_without_prefill(run, steps) -> None:  # type: ignore[no-untyped-def]
    """`check_end`, with first tokens that no step of this server gave."""
    done = ~np.isnan(run.recorder.finish_s)
    assert sum(step.committed for step in steps) + done.sum() == run.trace.output_length[done].sum()
    assert all(step.kind == "decode" for step in steps)
    assert run.recorder.output_tokens == run.trace.output_length[done].sum()


@pytest.mark.parametrize(
    "flags, says",
    [
        (("--prefill", "here"), "expected elsewhere or elsewhere:MILLISECONDS"),
        (("--prefill", "elsewhere:-3"), "elsewhere:-3 is refused"),
        (("--prefill", "elsewhere", "--chunked-prefill-size", "512"), "--chunked-prefill-size does nothing"),
        (("--prefill", "elsewhere", "--replicas", "2", "--dp-attention"), "expected independent replicas"),
    ],
)
def test_what_makes_no_sense(capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], says: str) -> None:
    assert_one_line_error(call(capsys, "--trace", "example", "--profile", PROFILE, *flags), says)
