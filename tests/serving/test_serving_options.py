"""Refusals that need no server: one sentence that names the value and what to do."""

import pytest
from serving_support import flat_cost

from sglang_dspark.errors import InputError
from sglang_dspark.jit import stated
from sglang_dspark.policies import POLICIES, make_policy, needs_prices
from sglang_dspark.serving.base.options import (
    Resolved,
    ServingOptions,
    check_policy,
    record_limit,
    resolve,
)


def test_no_flag_is_not_active() -> None:
    assert not ServingOptions().active
    assert ServingOptions(schedule="overlapped").active and ServingOptions(explore=0.1).active


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"none", "oracle", "argmax-live", "guard"}))
def test_every_lossless_policy_is_accepted_by_one_schedule(name: str) -> None:
    policy = make_policy(name)
    schedule = "synchronous" if policy.live else "overlapped"
    check_policy(policy, schedule, flat_cost(), 7)
    if policy.live:
        with pytest.raises(InputError, match="--speculative-dspark-schedule synchronous"):
            check_policy(policy, "overlapped", flat_cost(), 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ServingOptions(schedule="synchronous"), "need a policy or a profile"),
        (ServingOptions(policy="argmax-live", profile="x"), "unknown profile"),
        (ServingOptions(policy="nonsense"), "unknown policy 'nonsense'"),
        (ServingOptions(policy="none"), "without --speculative-algorithm"),
        (ServingOptions(policy="argmax-live"), "not lossless"),
        (ServingOptions(policy="oracle"), "not lossless"),
        (ServingOptions(policy="hull"), "--speculative-dspark-profile"),
        (ServingOptions(policy="fixed:k=8"), "expected 0..7"),
        (ServingOptions(policy="fixed:k=3", explore=1.5), "expected a chance in 0..1"),
        (ServingOptions(policy="fixed:k=3", shadow="oracle"), "only the simulator"),
        (ServingOptions(policy="fixed:k=3", shadow="hull"), "--speculative-dspark-profile"),
    ],
)
def test_refusals_name_what_to_do(options: ServingOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(options, gamma=7)


@pytest.mark.parametrize(
    ("text", "size"), [(None, 10**10), ("10GB", 10**10), ("1.5TB", 1_500_000_000_000), (" 500mb", 5 * 10**8)]
)
def test_record_limits_are_sizes(text: str | None, size: int) -> None:
    assert record_limit(ServingOptions(record="x", record_limit=text)) == size


@pytest.mark.parametrize("text", ["", "10", "GB", "-1GB", "nanGB", "1e400GB", "9MB", "10GiB"])
def test_other_record_limits_are_refused(text: str) -> None:
    if text:
        with pytest.raises(InputError, match="expected a size from 10MB"):
            resolve(ServingOptions(policy="fixed:k=3", record="x", record_limit=text))
    with pytest.raises(InputError, match="record-limit needs --speculative-dspark-record"):
        resolve(ServingOptions(policy="fixed:k=3", record_limit="1GB"))


def test_a_refusal_is_one_printable_line() -> None:
    with pytest.raises(InputError) as refused:
        resolve(ServingOptions(policy="no\x1b[31m\nsuch\x00 policy"))
    assert str(refused.value).isprintable() and "no [31m such policy" in str(refused.value)


ESTIMATE = "estimate-h100-qwen3-8b-bf16"


def test_an_estimate_needs_permission_and_the_start_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang_dspark.serving.base import start_line

    with pytest.raises(InputError, match="is an estimate, not measured.*--speculative-dspark-allow-estimate"):
        resolve(ServingOptions(policy="hull", profile=ESTIMATE), gamma=7)
    with pytest.raises(InputError, match="is an estimate, not measured"):  # as SGLang's own flag gives it
        resolve(ServingOptions(policy="hull"), gamma=7, sps_table=ESTIMATE)
    allowed = ServingOptions(policy="hull", profile=ESTIMATE, allow_estimate=True)
    resolved = resolve(allowed, gamma=7)
    with pytest.raises(InputError, match="--speculative-dspark-allow-foreign-profile"):
        start_line.check_hardware(resolved.cost, allowed, "NVIDIA B200")
    start_line.check_hardware(resolved.cost, allowed, "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(start_line, "hardware_name", lambda: "NVIDIA H100 80GB HBM3")
    line = start_line.start_line(resolved, allowed, "compact", "overlap")
    assert "ESTIMATE, NOT MEASURED (allowed)" in line and "off by" in line and "FOREIGN" not in line
    assert line.endswith(f"; decisions: {stated()}")


@pytest.mark.parametrize("profile", [None, "vllm-b300-dsv4-flash"])
def test_permission_for_an_estimate_that_is_none_is_an_error(profile: str | None) -> None:
    with pytest.raises(InputError, match="allow-estimate does nothing"):
        resolve(ServingOptions(policy="fixed:k=3", profile=profile, allow_estimate=True), gamma=7)


def test_lag_must_fit_the_schedule() -> None:
    with pytest.raises(InputError, match="expected at least 2"):
        check_policy(make_policy("argmax:lag=1"), "overlapped", flat_cost(), 7)
    check_policy(make_policy("argmax:lag=1"), "synchronous", flat_cost(), 7)


def test_a_diagonal_table_prices_nothing_else() -> None:
    with pytest.raises(InputError, match="measured only at B"):
        check_policy(make_policy("argmax"), "overlapped", flat_cost(diagonal=True), 7)
    check_policy(make_policy("fixed:k=3"), "overlapped", flat_cost(diagonal=True), 7)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"oracle"}))
def test_who_needs_prices(name: str) -> None:
    expected = name not in {"none", "fixed", "schedule", "tetris", "threshold"}
    assert needs_prices(make_policy(name)) is expected


def test_the_schedule_follows_the_policy() -> None:
    assert resolve(ServingOptions(policy="fixed:k=3"), 7).schedule == "overlapped"
    resolved = resolve(ServingOptions(policy="threshold:t=0.5"), 7)
    assert isinstance(resolved, Resolved) and resolved.schedule == "synchronous"


def test_a_shadow_may_be_biased() -> None:
    resolved = resolve(ServingOptions(policy="fixed:k=3", shadow="threshold:t=0.2"), 7)
    assert resolved.shadow == make_policy("threshold:t=0.2")
