"""Our kernels behind SGLang's own functions: same results, same bookkeeping, upstream's path where ours does not
apply."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `serve`")
pytest.importorskip("sglang", reason="needs the extra `serve`")

from dspark_kernels.choose import Choice  # noqa: E402
from dspark_kernels.markov_bounds import markov_bounds  # noqa: E402
from dspark_kernels.rejection_reference import DraftLaw, Sampling, verify_reference  # noqa: E402
from sglang.srt.models import dspark  # noqa: E402
from sglang.srt.speculative.dspark_components import dspark_draft, dspark_draft_sampler, dspark_verify  # noqa: E402
from sglang.srt.speculative.dspark_components.dspark_draft import DraftBlockResult, DraftNoise  # noqa: E402
from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout  # noqa: E402

from sglang_dspark.cost import load_profile  # noqa: E402
from sglang_dspark.policies import EarlyStop, Foresight, Hull, Lookahead, Past, Plan  # noqa: E402
from sglang_dspark.serving.base import admission, contract  # noqa: E402
from sglang_dspark.serving.base.faults import Faults  # noqa: E402
from sglang_dspark.serving.gpu.device_kernels import cases, choice, operations  # noqa: E402
from sglang_dspark.serving.gpu.device_kernels.choice import OPERATIONS, Installed, agreed, attempt  # noqa: E402
from sglang_dspark.serving.gpu.device_kernels.guarded import Guarded  # noqa: E402
from sglang_dspark.serving.gpu.device_kernels.live import LiveDecisions  # noqa: E402
from sglang_dspark.serving.gpu.device_kernels.operations import (  # noqa: E402
    ConfidenceOperation,
    MarkovOperation,
    RejectionOperation,
    markov_head_of,
)
from tests.kernels.kernel_compile import compiled_ahead  # noqa: E402

VOCAB, RANK, WIDTH, GAMMA, ROWS = 60, 8, 12, 3, 4
NO_SYNC = SimpleNamespace(sync=lambda site, value: value)


def draft_model(kind="vanilla"):
    torch.manual_seed(0)
    config = SimpleNamespace(vocab_size=VOCAB, markov_rank=RANK, markov_head_type=kind, hidden_size=WIDTH)
    model = torch.nn.Module()
    model.config, model.markov_head = config, dspark.build_markov_head(config)
    model.confidence_head = dspark.DSparkConfidenceHead(hidden_size=WIDTH, markov_rank=RANK)
    model.lm_head = torch.nn.Linear(WIDTH, VOCAB, bias=False)
    model.lm_head.org_vocab_size = VOCAB
    model.compute_confidence = lambda **arguments: "upstream's"
    return model.requires_grad_(False)


def fake_worker(kind="vanilla", compact=True):
    return SimpleNamespace(
        device="cpu",
        gamma=GAMMA,
        draft_model=draft_model(kind),
        _greedy_draft=False,
        model_runner=SimpleNamespace(max_running_requests=16),
        target_worker=SimpleNamespace(random_seed=9),
        _verify_planner=SimpleNamespace(is_compact_mode=compact),
    )


def markov_arguments(module, temperatures, **more):
    torch.manual_seed(1)
    return dict(
        markov_head=module,
        base_logits=2 * torch.randn(ROWS, GAMMA, VOCAB),
        anchor_tokens=torch.arange(ROWS),
        draft_hidden=torch.randn(ROWS, GAMMA, WIDTH),
        step_temperatures=torch.tensor(temperatures),
        noise=DraftNoise(key=3, offset=torch.zeros(1, dtype=torch.int64)),
        tp_sync=NO_SYNC,
        **more,
    )


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
@pytest.mark.parametrize("greedy_draft", [True, False])
def test_greedy_blocks_equal_upstreams(kind, greedy_draft):
    module = draft_model(kind).markov_head
    operation = MarkovOperation.of(dspark_draft.draft_markov_block, module, screened=kind == "vanilla")
    ours = operation(**markov_arguments(module, [0.0] * ROWS, greedy_draft=greedy_draft))
    theirs = dspark_draft.draft_markov_block(**markov_arguments(module, [0.0] * ROWS, greedy_draft=greedy_draft))
    assert torch.equal(ours[0], theirs[0])
    if greedy_draft:
        assert ours[1] is None and theirs[1] is None
    else:
        torch.testing.assert_close(ours[1], theirs[1])


def test_sampled_blocks_fill_upstreams_buffer_and_advance_its_noise():
    module = draft_model().markov_head
    operation = MarkovOperation.of(dspark_draft.draft_markov_block, module, screened=False)
    buffer = torch.full((ROWS, GAMMA, VOCAB), float("nan"))
    arguments = markov_arguments(module, [1.0, 0.0, 0.5, 2.0], logits_out=buffer)
    first, logits = operation(**arguments)
    assert logits.data_ptr() == buffer.data_ptr() and torch.isfinite(buffer).all()
    assert int(arguments["noise"].offset) == 1
    greedy = buffer.argmax(dim=-1)
    assert torch.equal(first[1], greedy[1])
    draws = [operation(**arguments)[0] for _ in range(5)]
    assert len({tuple(draw[3].tolist()) for draw in draws}) > 1, "every block draws afresh"
    assert all(torch.equal(draw[1], greedy[1]) for draw in draws)


def test_another_head_takes_upstreams_path():
    seen = []
    operation = MarkovOperation.of(
        lambda **arguments: seen.append(arguments), draft_model().markov_head, screened=False
    )
    other = draft_model().markov_head
    operation(**markov_arguments(other, [1.0] * ROWS))
    assert seen[0]["markov_head"] is other
    sharded = SimpleNamespace(vocab_shard=object())
    assert markov_head_of(sharded) is None


def accept_arguments(temperatures, top_ks, *, greedy_draft=False, **more):
    torch.manual_seed(2)
    width, lens = GAMMA + 1, [1, 4, 2, 3]
    tokens, logits = torch.randint(0, VOCAB, (ROWS, GAMMA)), torch.randn(ROWS, GAMMA, VOCAB)
    target = torch.randn(ROWS * width, VOCAB)
    greedy = torch.tensor(top_ks) <= 1
    info = SimpleNamespace(
        is_all_greedy=bool(greedy.all()),
        is_any_greedy=bool(greedy.any()),
        temperatures=torch.tensor(temperatures)[:, None],
        top_ks=torch.tensor(top_ks, dtype=torch.int32),
        need_top_k_sampling=any(k < 1 << 30 for k in top_ks),
        need_top_p_sampling=False,
        need_min_p_sampling=False,
    )
    block = DraftBlockResult(
        draft_tokens=tokens,
        corrected_logits=None if greedy_draft else logits,
        greedy_mask=greedy,
        temperatures=torch.tensor(temperatures),
        greedy_draft=greedy_draft,
    )
    layout = RaggedVerifyLayout.from_verify_lens(verify_lens_cpu=lens, device=torch.device("cpu"), grid=[16])
    return dict(
        candidates=torch.cat([tokens[:, :1], tokens], 1),
        target_logits=target,
        draft_block=block,
        sampling_info=info,
        draft_input=None,
        gamma=GAMMA,
        verify_num_draft_tokens=width,
        cutoff_layout=layout,
        **more,
    )


@pytest.mark.parametrize("greedy_draft", [False, True])
def test_mixed_batches_are_accepted_as_the_reference_does(greedy_draft):
    temperatures, top_ks = [1.0, 0.7, 1.0, 1.3], [1 << 30, 20, 1, 1 << 30]
    operation = RejectionOperation.of(None, 5, torch.device("cpu"))
    arguments = accept_arguments(temperatures, top_ks, greedy_draft=greedy_draft)
    accepted, bonus, trimmed = operation(**arguments)
    block, rows = arguments["draft_block"], torch.arange(ROWS)
    law = None
    if not greedy_draft:
        scaled = block.corrected_logits / torch.tensor(temperatures)[:, None, None]
        law = DraftLaw(block.corrected_logits, torch.logsumexp(scaled, -1), torch.tensor(temperatures))
    sampling = Sampling(torch.tensor([1.0, 0.7, 0.0, 1.3]), torch.tensor(top_ks, dtype=torch.int32))
    want = verify_reference(
        arguments["target_logits"],
        rows * (GAMMA + 1),
        torch.tensor([0, 3, 1, 2], dtype=torch.int32),
        block.draft_tokens,
        sampling,
        law,
        seed=operation.seed,
        request=rows,
        step=torch.zeros(1, dtype=torch.int64),
    )
    assert torch.equal(accepted, want.accepted) and torch.equal(bonus, want.bonus)
    assert trimmed.tolist() == [0] * ROWS
    assert (accepted.dtype, bonus.dtype) == (torch.int32, torch.int64)
    assert int(operation.step) == 1


@pytest.mark.parametrize("change", [{"sampling_info": None}, {"cutoff_layout": None}, {"block_verification": True}])
def test_what_is_not_ours_goes_upstream(change):
    operation = RejectionOperation.of(lambda **arguments: "upstream's", 5, torch.device("cpu"))
    assert operation(**{**accept_arguments([1.0] * ROWS, [1 << 30] * ROWS), **change}) == "upstream's"
    assert operation(**accept_arguments([1.0] * ROWS, [1] * ROWS)) == "upstream's", "greedy batches"


def test_confidence_equals_upstreams():
    model = draft_model()
    model.confidence_head.sts_temperatures = torch.rand(GAMMA) + 0.5
    arguments = dict(anchor_tokens=torch.arange(ROWS), draft_tokens=torch.randint(0, VOCAB, (ROWS, GAMMA)))
    features = torch.randn(ROWS * GAMMA, WIDTH)
    ours = ConfidenceOperation.of(model)(**arguments, confidence_features=features)
    theirs = model.confidence_head.predict(features, **arguments, markov_head=model.markov_head)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.fixture
def alone(monkeypatch):
    """One rank."""
    monkeypatch.setattr(cases, "get_dp_tp_group", lambda: SimpleNamespace(world_size=1))


def choices_of(trials):
    return {trial.case.name: trial.choice for trial in trials}


def test_min_p_is_left_out_as_upstream_leaves_it_out():
    """Which kernels a measurement chose must not decide the law: SGLang's sampled accept knows no min_p."""
    given = accept_arguments([1.0] * ROWS, [1 << 30] * ROWS)
    plain = RejectionOperation.of(None, 5, torch.device("cpu"))(**given)
    given["sampling_info"].need_min_p_sampling, given["sampling_info"].min_ps = True, torch.full((ROWS,), 0.9)
    filtered = RejectionOperation.of(None, 5, torch.device("cpu"))(**given)
    assert all(torch.equal(one, other) for one, other in zip(plain, filtered, strict=True))


def test_without_a_gpu_nothing_is_measured(alone):
    choices = choices_of(attempt(fake_worker(), "auto", Faults()))
    assert set(choices) == set(OPERATIONS)
    assert all(each.kernels == "upstream" and "no CUDA device" in each.reason for each in choices.values())


def test_refusals_are_reasons(monkeypatch):
    monkeypatch.setattr(cases, "get_dp_tp_group", lambda: SimpleNamespace(world_size=2))
    faults = Faults()
    choices = choices_of(attempt(fake_worker(compact=False), "ours", faults))
    assert choices["markov"].kernels == choices["rejection"].kernels == "upstream"
    assert "tensor-parallel" in choices["markov"].reason and "cap-accept" in choices["rejection"].reason
    assert choices["confidence"].kernels == choices["admission"].kernels == "ours" and not faults.as_list()


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
@pytest.mark.parametrize("greedy_draft", [False, True])
def test_every_operation_passes_its_check(alone, kind, greedy_draft):
    worker, faults = fake_worker(kind), Faults()
    worker._greedy_draft = greedy_draft
    choices = choices_of(attempt(worker, "ours", faults))
    assert all(each.kernels == "ours" for each in choices.values()), choices
    assert not faults.as_list()


WRONG = {
    "markov": ("sample_markov_block", lambda block: block._replace(tokens=(block.tokens + 1) % VOCAB)),
    "rejection": ("verify", lambda found: found._replace(bonus=(found.bonus + 1) % VOCAB)),
    "confidence": ("confidence_survival", lambda found: found._replace(confidence=found.confidence * 0.9)),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("how", ["raises", "lies"])
def test_an_operation_that_fails_at_start_is_upstreams(alone, monkeypatch, name, how):
    function, change = WRONG[name]
    right = getattr(operations, function)

    def wrong(*arguments, **named):
        if how == "raises":
            raise RuntimeError("no kernel image is available")
        return change(right(*arguments, **named))

    monkeypatch.setattr(operations, function, wrong)
    faults = Faults()
    choices = choices_of(attempt(fake_worker(), "ours", faults))
    assert choices.pop(name).kernels == "upstream"
    assert all(each.kernels == "ours" for each in choices.values())
    [fault] = faults.as_list()
    assert fault["what"] == f"kernel {name}"
    assert ("no kernel image" if how == "raises" else "differs from its reference") in fault["first"]


def test_an_admission_that_differs_is_found(alone, monkeypatch):
    monkeypatch.setattr(cases, "admit_plan", lambda confidence, plan: torch.full((confidence.shape[0],), 1))
    assert choices_of(attempt(fake_worker(), "ours", Faults()))["admission"].kernels == "upstream"


def test_only_what_was_built_runs_on_the_device(alone, monkeypatch):
    operation = cases.AdmissionCase(fake_worker()).build()
    confidence = torch.rand(4, GAMMA)
    monkeypatch.setattr(cases, "admit_plan", lambda *arguments: "the kernel")
    assert operation(confidence, Plan(3, 0, GAMMA)) == "the kernel"
    for plan in (Plan(3, 1, GAMMA), Plan(3, 0, GAMMA - 1)):
        assert operation(confidence, plan).tolist()


@pytest.mark.parametrize(
    ("free", "sizes", "reason"),
    [(1 << 40, [1, 8, 32], None), (120_000, [1, 6], None), (80_000, [1, 4], None), (70_000, [], "too little")],
)
def test_trials_fit_the_free_memory(alone, monkeypatch, free, sizes, reason):
    monkeypatch.setattr(choice, "free_bytes", lambda device: free)
    worker = fake_worker()
    worker.model_runner.max_running_requests = 32
    assert choice.trial_sizes(cases.RejectionCase(worker)) == sizes
    found = choices_of(attempt(worker, "ours", Faults()))["rejection"]
    assert found.kernels == ("upstream" if reason else "ours")
    assert reason is None or reason in found.reason


@pytest.mark.parametrize(
    ("slow", "kernels", "left"),
    [
        ((), "ours", ()),
        ((cases.FILTERED,), "ours", (cases.FILTERED,)),
        ((cases.FILTERED, cases.UNFILTERED), "upstream", ()),
    ],
)
def test_each_form_is_measured_at_every_size_and_the_slower_one_stays_upstreams(alone, slow, kernels, left):
    """The timer is a stand-in: 10 us a row, 30 us where we are slow, against 20 us of upstream's."""
    case, asked = cases.RejectionCase(fake_worker()), []

    def timer(pair, device):
        asked.append(pair.what)
        pair.ours()
        rows = int(pair.what.split()[0])
        return rows * (3e-5 if pair.what.split()[-1] in slow else 1e-5), rows * 2e-5, True

    ours = case.build()
    found = choice.measured(case, ours, [1, 3], timer)
    assert asked == ["1 rows unfiltered", "3 rows unfiltered", "1 rows filtered", "3 rows filtered"]
    assert (found.kernels, found.left) == (kernels, left) and "3 rows filtered" in found.reason
    assert ("filtered rows stay upstream's" in found.reason) == bool(left)
    case.leave(ours, frozenset(found.left))
    seen = []
    ours.upstream = lambda **step: seen.append(step)
    for top_k in (1 << 30, 20):
        ours(**accept_arguments([1.0] * ROWS, [top_k] * ROWS))
    assert len(seen) == len(left)


def test_a_form_is_ours_where_it_is_on_every_rank(alone):
    trials = attempt(fake_worker(), "ours", Faults())
    mine = choices_of(trials)
    ranks = [mine | {"rejection": Choice("rejection", "ours", "", left=left)} for left in ((), ("filtered",))]
    [chosen] = [trial for trial in agreed(trials, ranks) if trial.case.name == "rejection"]
    assert chosen.ours is not None and chosen.choice.left == ("filtered",)
    ranks.append(mine | {"rejection": Choice("rejection", "ours", "", left=("unfiltered",))})
    [chosen] = [trial for trial in agreed(trials, ranks) if trial.case.name == "rejection"]
    assert chosen.ours is None and chosen.choice.kernels == "upstream"


def test_one_kernel_that_moved_is_upstreams_and_the_others_stay(alone, monkeypatch):
    for name in ("markov", "rejection", "confidence"):
        moved_on = choice.REPLACED | {
            name: {"sglang.srt.models.dspark.DSparkDraftMixin.compute_confidence": "self, *x"}
        }
        with monkeypatch.context() as patch:
            patch.setattr(choice, "REPLACED", moved_on)
            choices = choices_of(attempt(fake_worker(), "ours", Faults()))
        assert [one for one, found in choices.items() if found.kernels == "upstream"] == [name]
        assert "another SGLang" in choices[name].reason and "does not take x" in choices[name].reason


def test_bounds_that_do_not_fit_are_not_made(alone, monkeypatch):
    monkeypatch.setattr(choice, "free_bytes", lambda device: 600)
    found = choices_of(attempt(fake_worker(), "ours", Faults()))["markov"]
    assert found.kernels == "upstream" and "free" in found.reason


@pytest.mark.parametrize("kind", [cases.MarkovCase, cases.RejectionCase, cases.ConfidenceCase, cases.AdmissionCase])
def test_nothing_is_compiled_for_a_batch_that_comes_later(alone, tmp_path, kind):
    """What `warm` builds is all that Triton asks for at any other batch size; compiled for Hopper, without a GPU."""
    worker = fake_worker()
    case = kind(worker)
    operation = case.build()
    with compiled_ahead(90, tmp_path) as found:
        case.warm(operation)
        warmed = {name: {id(kernel) for kernel in kernels} for name, kernels in found.items()}
        kept = list(found.values())
        found.clear()
        for rows in (1, 2, 4, 5, 7, 8, 15, 16, 17, 24, 32, 48, 100):
            operation(**case.arguments(rows))
        if kind is cases.RejectionCase:
            for top_k in (False, True):
                operation(**case.arguments(5, top_k=top_k, top_p=not top_k))
        assert warmed and found and kept
        for name, kernels in found.items():
            assert {id(kernel) for kernel in kernels} <= warmed[name], f"{name} is compiled while requests run"


def test_no_live_rule_is_compiled_while_requests_run(tmp_path):
    cost = load_profile("vllm-b300-dsv4-flash")
    live = LiveDecisions(torch.device("cpu"), "ours")

    def decided(policy, requests):
        past = Past(requests, 7, cost.prices(requests, 7, 100.0 * requests))
        live._admission.decide(policy, past, torch.rand(requests, 7))

    with compiled_ahead(90, tmp_path) as found:
        for policy in (EarlyStop(), Hull(), Lookahead(), Foresight()):
            for requests in cases.WARMED_ROWS:
                decided(policy, requests)
        warmed = {name: {id(kernel) for kernel in kernels} for name, kernels in found.items()}
        kept = list(found.values())
        found.clear()
        for policy in (EarlyStop(), Hull(), Hull(fill=False), Hull(dips=False), Lookahead(), Foresight()):
            for requests in (1, 2, 4, 9, 15, 16, 17, 31, 32, 48, 64, 96, 128):
                decided(policy, requests)
        assert kept
        for name, kernels in found.items():
            assert {id(kernel) for kernel in kernels} <= warmed[name], f"{name} is compiled while requests run"


def test_all_ranks_take_what_every_rank_can(alone):
    trials = attempt(fake_worker(), "ours", Faults())
    other = choices_of(trials) | {"confidence": Choice("confidence", "upstream", "it failed at start")}
    chosen = {trial.case.name: trial for trial in agreed(trials, [choices_of(trials), other])}
    assert chosen["confidence"].choice.reason == "it failed at start" and chosen["confidence"].ours is None
    assert chosen["markov"].ours is not None


def places(worker):
    return [
        (dspark_draft, "draft_markov_block"),
        (dspark_draft_sampler, "draft_markov_block"),
        (dspark_verify, "accept_draft_tokens"),
        (admission, "allocate_on_device"),
    ]


def test_installed_replaces_what_upstream_calls_and_undoes_it(alone):
    worker, faults = fake_worker(), Faults()
    before = [getattr(owner, name) for owner, name in places(worker)]
    upstreams = worker.draft_model.compute_confidence
    installed = Installed(worker, attempt(worker, "ours", faults), faults)
    assert installed
    assert all(getattr(owner, name) is not old for (owner, name), old in zip(places(worker), before, strict=True))
    assert worker.draft_model.compute_confidence is not upstreams
    installed.close()
    assert not installed and [getattr(owner, name) for owner, name in places(worker)] == before
    assert worker.draft_model.compute_confidence is upstreams
    assert not Installed(worker, attempt(worker, "upstream", faults), faults)
    assert [getattr(owner, name) for owner, name in places(worker)] == before


def test_a_kernel_that_raises_gives_way_to_upstreams():
    faults, calls = Faults(), []

    def ours(value, *, twice):
        calls.append(value)
        if value == 2:
            raise ValueError("a shape that nobody thought of\nand a second line")
        return "ours"

    guarded = Guarded("markov", ours, lambda value, *, twice: "upstream's", faults)
    assert [guarded(value, twice=True) for value in (1, 2, 3)] == ["ours", "upstream's", "upstream's"]
    assert calls == [1, 2] and guarded.given_up
    first = "ValueError: a shape that nobody thought of and a second line"
    assert faults.as_list() == [{"what": "kernel markov", "count": 1, "first": first}]


def test_weights_that_change_in_place_leave_nothing_stale(alone, monkeypatch):
    """What SGLang's weight updates do to the draft, with our screening on."""
    worker, faults = fake_worker(), Faults()
    installed = Installed(worker, attempt(worker, "ours", faults), faults)
    try:
        operation = installed._ours["markov"]
        stale = operation.bounds.table.clone()
        installed.weights_change()
        assert torch.isinf(operation.bounds.table).all()
        worker.draft_model.markov_head.markov_w2.weight.data.normal_()
        installed.weights_changed()
        assert torch.equal(operation.bounds.table, markov_bounds(operation.head).table)
        assert not torch.equal(operation.bounds.table, stale) and not faults.as_list()
        installed.weights_change()
        monkeypatch.setattr(operations, "markov_head_of", lambda module: None)
        installed.weights_changed()
        assert torch.isinf(operation.bounds.table).all(), "what cannot be computed again decides nothing"
        assert [fault["what"] for fault in faults.as_list()] == ["kernel markov bounds"]
    finally:
        installed.close()


def test_upstream_is_what_was_replaced():
    assert [contract.moved(targets) for targets in choice.REPLACED.values()] == [[]] * len(choice.CASES)


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
def test_heads_are_sglangs(kind):
    torch.manual_seed(5)
    vocab, rank, width, rows, gamma = 60, 8, 12, 4, 3
    config = type("Config", (), dict(vocab_size=vocab, markov_rank=rank, markov_head_type=kind, hidden_size=width))
    theirs = dspark.build_markov_head(config).to(torch.bfloat16)
    head = markov_head_of(theirs)
    assert head.kind == kind
    hidden = torch.randn(rows, gamma, width, dtype=torch.bfloat16)
    their_state, state = theirs.init_state(hidden), head.first_state(hidden)
    previous = torch.randint(0, vocab, (rows,))
    with torch.no_grad():
        for position in range(gamma):
            want, their_state = theirs.step_bias(previous, hidden_states=hidden[:, position], state=their_state)
            latent, state = head.latent(previous, hidden[:, position], state)
            torch.testing.assert_close(torch.nn.functional.linear(latent, head.w2), want, rtol=0, atol=0)
            previous = want.argmax(dim=1)
    assert head.step_dtype(torch.bfloat16) == theirs.step_logits_dtype(torch.bfloat16)


def test_a_profile_of_our_recorder_is_a_table_of_sglangs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from record_gpu_profile import as_profile
    from sglang.srt.speculative.dspark_components.dspark_sps import load_sps_table_from_path

    terms = {
        "context_token_s": 1e-9,
        "draft_context_token_s": 1e-10,
        "prefill_base_s": 0.01,
        "prefill_token_s": 1e-5,
        "copy_s": 1e-5,
    }
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(as_profile({1: 1e-3}, {8: 8e-3, 16: 9e-3}, [(16, 12e-3)], 2, terms, {})))
    assert load_sps_table_from_path(str(path)).bias_seconds == pytest.approx(8e-3)
