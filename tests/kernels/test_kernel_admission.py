"""Admission on the device is bit-equal to the NumPy policies that decide everywhere else."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("triton", reason="needs torch and triton (extra `serve`)")
pytest.importorskip("msgspec", reason="policies need msgspec")

from dspark_kernels import admission, admission_reference  # noqa: E402

from sglang_dspark.cost import StepPrices  # noqa: E402
from sglang_dspark.policies import EarlyStop, Foresight, Hull, LiveBlock, Lookahead, Past, allocate, survival_units  # noqa: E402
from sglang_dspark.policies.drawing import random_confidence  # noqa: E402

FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CONFIDENCES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.875, 1.0]), st.floats(0, 1, width=32))


@st.composite
def batches(draw, requests=(1, 2, 6), gammas=(1, 3, 5)):
    """A block of confidences with many ties, a floor below the cap, and a staircase of step times with dips and a
    cliff. A few sizes stand for all: 1, and others that fill their block and that do not; each is compiled on a GPU."""
    num_requests, gamma = draw(st.sampled_from(requests)), draw(st.sampled_from(gammas))
    cap = draw(st.integers(1, gamma))
    floor = draw(st.integers(0, cap - 1))
    values = draw(st.lists(CONFIDENCES, min_size=num_requests * gamma, max_size=num_requests * gamma))
    confidence = np.array(values, dtype=np.float32).reshape(num_requests, gamma)
    return LiveBlock.of(confidence), floor, cap, draw(prices(num_requests * gamma + 1))


@st.composite
def prices(draw, size):
    last_captured = draw(st.integers(0, size - 1))
    ends = sorted(draw(st.sets(st.integers(0, last_captured), max_size=5)) | {last_captured})
    top = np.array([next((end for end in ends if end >= k), k) for k in range(size)], dtype=np.int64)
    step = {end: draw(st.floats(1e-3, 1e-1)) for end in sorted(set(top.tolist()))}
    seconds = np.array([step[end] for end in top.tolist()])
    return StepPrices(seconds, seconds.copy(), top, last_captured)


@pytest.fixture(params=["served blocks", "small blocks"])
def blocks(request, monkeypatch, device):
    """Small blocks: these few candidates then take several programs, chunks of the walk and blocks of requests."""
    if request.param == "small blocks":
        if device.type == "cuda":
            pytest.skip("a GPU runs the large batches instead")
        for name, entries in {"RANKED": 4, "COMPARED": 2, "CHUNK": 4, "ROWS": 2, "TOPS": 2}.items():
            monkeypatch.setattr(admission, name, entries)


def on(device, array):
    return torch.tensor(np.ascontiguousarray(array), device=device)


def same(got, lengths, total):
    assert got.lengths.cpu().tolist() == list(lengths)
    assert got.total.cpu().tolist() == [total]


@given(batches(), st.integers(-3, 40), st.booleans())
@FEW
def test_budget_takes_the_policies_first_k(device, blocks, batch, budget, on_device):
    live, floor, cap, _ = batch
    num_requests = len(live.units)
    total = min(max(budget, num_requests * floor), num_requests * cap)
    given_budget = torch.tensor([budget], device=device) if on_device else budget
    got = admission.admit(on(device, live.units), "budget", budget=given_budget, floor=floor, cap=cap)
    same(got, allocate(live.units, budget, floor, cap), total)


@given(batches())
@FEW
def test_early_stop_decides_as_the_policy(device, blocks, batch):
    live, floor, cap, table = batch
    want = EarlyStop(floor=floor, cap=cap).decide(Past(*live.units.shape, table), live)
    got = admission.admit(on(device, live.units), "early-stop", inverse=on(device, table.inverse), floor=floor, cap=cap)
    same(got, want.lengths, want.total)


@given(batches(), st.booleans(), st.booleans())
@FEW
def test_hull_decides_as_the_policy(device, blocks, batch, fill, dips):
    live, floor, cap, table = batch
    policy = Hull(floor=floor, cap=cap, fill=fill, dips=dips)
    want = policy.decide(Past(*live.units.shape, table), live)
    inverse, fill_to = policy.tables(Past(*live.units.shape, table))
    got = admission.admit(
        on(device, live.units),
        "early-stop",
        inverse=on(device, inverse),
        fill_to=None if fill_to is None else on(device, fill_to),
        floor=floor,
        cap=cap,
    )
    same(got, want.lengths, want.total)


@given(batches())
@FEW
def test_lookahead_decides_as_the_policy(device, blocks, batch):
    live, floor, cap, table = batch
    policy = Lookahead(floor=floor, cap=cap)
    past = Past(*live.units.shape, table)
    want = policy.decide(past, live)
    tops = on(device, policy.tables(past))
    got = admission.admit(
        on(device, live.units), "lookahead", inverse=on(device, table.inverse), tops=tops, floor=floor, cap=cap
    )
    same(got, want.lengths, want.total)


def foreseen(device, policy, past, seed):
    """(what the past says of the tops, on the device; the past with lagged survivals)."""
    rng = np.random.default_rng(seed)
    shape = (past.num_requests, past.gamma)
    lagged = survival_units(random_confidence(rng, *shape)), np.ones(shape[0], dtype=bool)
    past = Past(*shape, past.prices, lambda lag: lagged)
    beyond = policy.tables(past)
    return dict(tops=on(device, beyond.tops), beyond=(on(device, beyond.summed), on(device, beyond.next))), past


@given(batches(), st.integers(0, 2**32))
@FEW
def test_foresight_decides_as_the_policy(device, blocks, batch, seed):
    live, floor, cap, table = batch
    policy = Foresight(floor=floor, cap=cap)
    tables, past = foreseen(device, policy, Past(*live.units.shape, table), seed)
    want = policy.decide(past, live)
    arguments = dict(inverse=on(device, table.inverse), floor=floor, cap=cap, **tables)
    same(admission.admit(on(device, live.units), "foresight", **arguments), want.lengths, want.total)
    reference = admission_reference.admit_reference(on(device, live.units), "foresight", **arguments)
    same(reference, want.lengths, want.total)


@given(batches(), st.sampled_from(["early-stop", "lookahead"]))
@FEW
def test_reference_decides_as_the_kernel(device, batch, rule):
    live, floor, cap, table = batch
    tops = on(device, table.tier_tops) if rule == "lookahead" else None
    arguments = dict(inverse=on(device, table.inverse), tops=tops, floor=floor, cap=cap)
    got = admission.admit(on(device, live.units), rule, **arguments)
    want = admission_reference.admit_reference(on(device, live.units), rule, **arguments)
    same(got, want.lengths.tolist(), int(want.total))


@pytest.mark.parametrize(
    ("num_requests", "gamma", "rules"),
    [
        (600, 2, ["hull"]),
        pytest.param(160, 7, ["early-stop", "hull", "budget"], marks=pytest.mark.slow),
        pytest.param(256, 7, ["early-stop", "hull", "budget"], marks=pytest.mark.slow),
        pytest.param(1024, 16, ["early-stop", "hull", "budget"], marks=pytest.mark.slow),
    ],
)
def test_large_batches_walk_over_several_chunks(device, num_requests, gamma, rules):
    confidence = np.random.default_rng(3).beta(8, 2, size=(num_requests, gamma)).astype(np.float32)
    live = LiveBlock.of(confidence)
    counts = np.arange(num_requests * gamma + 1)
    top = np.minimum((counts // 64 + 1) * 64, counts[-1])
    seconds = 1e-2 + 1e-7 * (top + num_requests)
    table = StepPrices(seconds, seconds.copy(), top, int(counts[-1]))
    past = Past(num_requests, gamma, table)
    # A price this flat keeps the hull walking past the first chunk of ranks.
    stop, hull, half = EarlyStop().decide(past, live), Hull().decide(past, live), num_requests * gamma // 2
    assert hull.total > admission.CHUNK
    inverse, fill_to = (on(device, array) for array in Hull().tables(past))
    asked = {
        "early-stop": (dict(rule="early-stop", inverse=on(device, table.inverse)), stop.lengths, stop.total),
        "hull": (dict(rule="early-stop", inverse=inverse, fill_to=fill_to), hull.lengths, hull.total),
        "budget": (dict(rule="budget", budget=half), allocate(live.units, half), half),
    }
    for rule in rules:
        options, lengths, total = asked[rule]
        same(admission.admit(on(device, live.units), **options), lengths, total)


@pytest.mark.parametrize("rule", ["budget", "early-stop", "lookahead"])
@pytest.mark.parametrize(("num_requests", "gamma", "floor"), [(1, 1, 1), (2, 1, 1), (3, 4, 2), (2, 3, 0)])
def test_where_floor_meets_cap_nothing_is_decided(device, num_requests, gamma, floor, rule):
    units = on(device, np.ones((num_requests, gamma), dtype=np.int32))
    inverse = on(device, np.ones(num_requests * gamma + 1))
    given_tables = {"budget": dict(budget=99), "early-stop": dict(inverse=inverse), "lookahead": dict(inverse=inverse)}
    if rule == "lookahead":
        given_tables[rule]["tops"] = on(device, np.array([0]))
    got = admission.admit(units, rule, floor=floor, cap=floor, **given_tables[rule])
    same(got, [floor] * num_requests, num_requests * floor)
    assert (got.lengths.dtype, got.total.dtype) == (torch.int32, torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "argmax"}, "rule='argmax'"),
        ({"budget": None}, "needs budget"),
        ({"cap": 9}, "cap=9"),
        ({"floor": 5}, "floor=5"),
        ({"inverse": torch.ones(9, dtype=torch.float64)}, "does not take inverse"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"rule": "budget", "budget": 3, **change}
    with pytest.raises(ValueError, match=message):
        admission.admit(torch.ones(2, 4, dtype=torch.int32), **arguments)
