"""What is recorded: one `StepRecord` per decode step, one `RequestRecord` per request, a `Header` at the top of a file.

R is the number of requests in the decode batch, gamma the draft block size. Arrays are NumPy; rows are in the order in
which the engine held the requests. Seconds everywhere; `*_time_s` stamps are Unix time. Lengths count draft tokens and
never anchors.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

FORMAT = "dspark-records"
FORMAT_VERSION = 4
"""2: a cost model's assumptions are maps (`cost.Assumption`), in 1 they were sentences. 4: `StepRecord.asked_tokens`,
without which the filled steps of DP-attention ranks would not be decided again."""

MODES = ("compact", "cap-accept", "static")
SCHEDULES = ("overlapped", "synchronous", "no-overlap")

EXACT = "exact"
FORCED = "forced"
ROUNDED = "rounded, not exactly replayable"


class Header(msgspec.Struct, tag="header", omit_defaults=True, kw_only=True):
    """Circumstances of a run, repeated at the top of each of its files.

    run: names the run; part: number of the file within it. group: names the DP-attention group whose ranks recorded a
    run each, which together are one server (empty: a run is one). policy: its string form at the start of the file
    (each step names its own). costs: step-cost models by table hash, as `records.costs` writes them. profile_meta:
    provenance of the profile. temperatures: STS temperatures that were in the confidences already, [gamma] or empty.
    engine: settings of the server. fidelity: `EXACT`, or `ROUNDED` for records drained from an unmodified server.
    """

    format: str = FORMAT
    version: int = FORMAT_VERSION
    software: str = ""
    run: str = ""
    group: str = ""
    part: int = 0
    created_time_s: float = 0.0
    gamma: int
    policy: str = ""
    profile: str = ""
    profile_meta: dict[str, Any] = {}
    costs: dict[str, dict[str, Any]] = {}
    temperatures: list[float] = []
    engine: dict[str, Any] = {}
    fidelity: str = EXACT
    explore_probability: float = 0.0
    block_verification: bool = False

    @property
    def server(self) -> str:
        """What names the server: all ranks of a group are one."""
        return self.group or self.run


class CostRecord(msgspec.Struct, tag="cost", omit_defaults=True, kw_only=True):
    """A step-cost model that came into use after the header was written."""

    table: str
    cost: dict[str, Any]


class Gap(msgspec.Struct, tag="gap", omit_defaults=True, kw_only=True):
    """Records that were dropped by the writer before this point, and why."""

    dropped: int
    reason: str
    time_s: float = 0.0


class Lagged(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Survivals of `lag` decode publishes ago, as the policy was shown them.

    units: [R, gamma] int32, multiples of 2^-24. published: [R] bool; rows without hold survival 1.
    """

    lag: int
    units: np.ndarray
    published: np.ndarray


class Shadow(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a second policy would have done. lengths: [R] draft tokens."""

    policy: str
    lengths: np.ndarray
    carry: Any = None


class StepRecord(msgspec.Struct, tag="step", omit_defaults=True, kw_only=True):
    """One decode step of one rank.

    step: counts decode steps of the rank from 0; rows of dropped records are missing from the count's sequence.
    time_s: Unix time of the decision. mode, schedule: see `MODES`, `SCHEDULES`.
    slots, generation: [R] request slot and its owner's number. rids: [R] request names, in row order.
    fresh: [R] bool, no lagged survivals yet. anchor: [R] output tokens committed before this block (>= 1: prefill gives
    the first). ended: [R] bool, the request had all its tokens before this block (it leaves one step late when
    overlapped). context_lengths: [R] prompt + output tokens in the KV cache.
    temperature, top_p: [R] float32.

    policy, carry: who decided and with what carried state. table: hash of the cost model that it believed, or
    empty. context_tokens: the batch's context as priced. waiting: requests that waited for admission. caps:
    [R] what each request let the server verify (`None`: none said anything).
    confidence: [R, gamma] float32 of this step's draft, as the decision used them (`None`: there were none).
    lagged: the older survivals that the decision looked at.
    override: empty when the policy decided; "late" (the copy of earlier survivals), "fault" (something of ours failed),
    "explore" and "eager batch" (more requests than graphs) when the full block was verified instead; `FORCED` when an
    operator set the budget.
    explore: this step's coin said verify all; explore_probability: the coin's.

    asked_tokens, asked_requests: [ranks] what each rank of a DP-attention group asked to verify in this step (anchors
    included) for how many requests, 0 where it was idle; shared_tier: tokens that all of them execute (`None` and 0:
    ranks share nothing). A policy that fills its tier fills this one (`policies.shared_tier`).

    lengths: [R] scheduled draft tokens. accepted: [R] accepted draft tokens, bonus excluded.
    depth: [R] what the full block would have accepted, -1 where unknown (`None`: nowhere known beyond `lengths`).
    graph_tokens: executed verify tokens (tier), anchors included; 0 if eager. tiers: [G] captured sizes.

    predicted_*: the policy's own price of the decision. draft_s, verify_s: measured; step_s: until the next decode step
    began, None when something else ran between. prefill_tokens, prefill_ago_s: [P] new tokens of the prefills since the
    last decode step, and how long before this step each began (the last one ran until this step).
    """

    step: int
    time_s: float = 0.0
    rank: int = 0
    mode: str = "compact"
    schedule: str = "overlapped"

    slots: np.ndarray
    lengths: np.ndarray
    accepted: np.ndarray
    generation: np.ndarray | None = None
    rids: list[str] | None = None
    fresh: np.ndarray | None = None
    anchor: np.ndarray | None = None
    ended: np.ndarray | None = None
    context_lengths: np.ndarray | None = None
    temperature: np.ndarray | None = None
    top_p: np.ndarray | None = None

    policy: str = ""
    carry: Any = None
    table: str = ""
    context_tokens: float = 0.0
    waiting: int = 0
    caps: np.ndarray | None = None
    confidence: np.ndarray | None = None
    lagged: list[Lagged] = []
    override: str = ""
    explore: bool = False
    explore_probability: float = 0.0
    shadow: Shadow | None = None

    asked_tokens: np.ndarray | None = None
    asked_requests: np.ndarray | None = None
    shared_tier: int = 0

    depth: np.ndarray | None = None
    graph_tokens: int = 0
    tiers: np.ndarray | None = None

    predicted_draft_s: float | None = None
    predicted_verify_s: float | None = None
    predicted_step_s: float | None = None
    draft_s: float | None = None
    verify_s: float | None = None
    step_s: float | None = None
    prefill_tokens: np.ndarray | None = None
    prefill_ago_s: np.ndarray | None = None

    @property
    def num_requests(self) -> int:
        """R."""
        return len(self.slots)

    @property
    def num_tokens(self) -> int:
        """Verified tokens B, anchors included."""
        return len(self.slots) + int(self.lengths.sum())

    def uncapped_depth(self, gamma: int) -> np.ndarray:
        """[R] int64 accepted depth of the full block, -1 where this step does not show it.

        A row shows it when it was recorded, when the whole block was verified, or when a verified token was rejected.
        """
        shown = (self.lengths >= gamma) | (self.accepted < self.lengths)
        depth = np.where(shown, self.accepted, -1).astype(np.int64)
        return depth if self.depth is None else np.where(self.depth >= 0, self.depth, depth).astype(np.int64)

    def uncensored(self, gamma: int) -> bool:
        """Whether every row shows its full block's depth *whatever it was*: nothing is selected by the outcome."""
        if self.mode != "compact" and self.depth is not None:
            return bool((self.depth >= 0).all())
        return bool((self.lengths >= gamma).all())


class RequestRecord(msgspec.Struct, tag="request", omit_defaults=True, kw_only=True):
    """One request, written when it ends. first_token_time_s is None when no token came.

    num_steps: decode steps that it took part in. num_draft_tokens, num_accepted: scheduled and accepted draft tokens.
    prompt, output: text, only if the recorder was asked for it.
    """

    rid: str
    arrival_time_s: float
    finish_time_s: float
    input_length: int
    output_length: int
    first_token_time_s: float | None = None
    cached_tokens: int = 0
    finish_reason: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    max_new_tokens: int | None = None
    domain: str = ""
    rank: int = 0
    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted: int = 0
    prompt: str | None = None
    output: str | None = None


Record = Header | CostRecord | Gap | StepRecord | RequestRecord

_PER_ROW = {
    "lengths": "iu",
    "accepted": "iu",
    "generation": "iu",
    "fresh": "b",
    "anchor": "iu",
    "ended": "b",
    "context_lengths": "iu",
    "temperature": "f",
    "top_p": "f",
    "depth": "iu",
}


def fault(step: StepRecord, gamma: int) -> str | None:
    """What is wrong with a step read from a file, or None: shapes, types, ranges, confidences outside 0..1."""
    shape, block = step.slots.shape, (len(step.slots), gamma)
    checks: list[tuple[str, np.ndarray | None, str, tuple[int, ...]]] = [
        ("slots", step.slots, "iu", (len(step.slots),)),
        *((name, getattr(step, name), kinds, shape) for name, kinds in _PER_ROW.items()),
        ("confidence", step.confidence, "f", block),
    ]
    if step.prefill_tokens is not None or step.prefill_ago_s is not None:
        prefills = (0 if step.prefill_tokens is None else len(step.prefill_tokens),)
        checks += [("prefill_tokens", step.prefill_tokens, "iu", prefills)]
        checks += [("prefill_ago_s", step.prefill_ago_s, "f", prefills)]
    if step.asked_tokens is not None or step.asked_requests is not None:
        ranks = (0 if step.asked_tokens is None else len(step.asked_tokens),)
        checks += [
            ("asked_tokens", step.asked_tokens, "iu", ranks),
            ("asked_requests", step.asked_requests, "iu", ranks),
        ]
    for item in step.lagged:
        checks += [(f"lag {item.lag}", item.units, "iu", block), (f"lag {item.lag}", item.published, "b", shape)]
    if step.shadow is not None:
        checks.append(("shadow.lengths", step.shadow.lengths, "iu", shape))
    for name, array, kinds, expected in checks:
        if array is not None and (array.shape != expected or array.dtype.kind not in kinds):
            return f"{name} is {array.dtype}{list(array.shape)}, expected {'/'.join(kinds)}{list(expected)}"
    if step.rids is not None and len(step.rids) != len(step.slots):
        return f"rids has {len(step.rids)} names, expected {len(step.slots)}"
    return _bad_values(step, gamma)


def _bad_values(step: StepRecord, gamma: int) -> str | None:
    if step.confidence is not None and not bool(((step.confidence >= 0) & (step.confidence <= 1)).all()):
        return "confidence holds a value outside 0..1"
    if bool(((step.lengths < 0) | (step.lengths > gamma)).any()):
        return f"lengths holds a value outside 0..{gamma}"
    if bool(((step.accepted < 0) | (step.accepted > step.lengths)).any()):
        return "accepted holds a value outside 0..length"
    if step.asked_tokens is not None and not 0 <= step.rank < len(step.asked_tokens):
        return f"rank is {step.rank}, expected one of the {len(step.asked_tokens)} that asked"
    if step.depth is not None and bool((step.depth > gamma).any()):
        return f"depth holds a value above {gamma}"
    return None
