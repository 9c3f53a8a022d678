"""A table that cannot inform a decision is an error that says why, never a silent verify-all."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.cost import StepCost, decode_table, keys_of, load_profile, model_from_table, profile_names
from sglang_dspark.errors import InputError

FLOOR = {"sample_batch_tokens": [8, 16, 32], "sample_steps_per_sec": [120.1, 118.0, 110.5], "max_batch_tokens": 32}
ADDITIVE = {
    "bias_seconds": 0.008,
    "bs_probes": [1, 8, 64],
    "alpha_seconds": [0.0, 0.0004, 0.002],
    "m_probes": [0, 64, 128],
    "theta_seconds": [0.0, 0.0003, 0.0011],
}
TIERED = {
    **ADDITIVE,
    "tiered": {
        "draft": {"num_requests": [1, 8], "seconds": [0.001, 0.002]},
        "verify": {"num_tokens": [1, 8, 16], "seconds": [0.01, 0.011, 0.02]},
        "captured_tokens": [8, 16],
        "captured_requests": 8,
        "eager": {"num_tokens": [17], "seconds": [0.1]},
        "terms": {"copy_s": 0.0001},
    },
}


def load(document: Any, path: Path) -> StepCost:
    file = path / "table.json"
    file.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return load_profile(str(file))


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `document` with the value at a dotted path replaced."""
    found = copy.deepcopy(document)
    *parents, last = path.split(".")
    inner = found
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return found


def test_the_documents_themselves_load(tmp_path: Path) -> None:
    assert load(FLOOR, tmp_path).form == "1-d"
    assert load(ADDITIVE, tmp_path).form == "additive"
    assert load(TIERED, tmp_path).form == "tiered"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({**FLOOR, "sample_batch_tokens": [8], "sample_steps_per_sec": [1.0]}, "1 probe(s) cannot inform a decision"),
        ({**FLOOR, "sample_batch_tokens": [], "sample_steps_per_sec": []}, "0 probe(s) cannot inform a decision"),
        ({**FLOOR, "sample_batch_tokens": [8, 32, 16]}, "expected strictly increasing integers"),
        ({**FLOOR, "sample_batch_tokens": [8, 8, 16]}, "expected strictly increasing integers"),
        ({**FLOOR, "sample_batch_tokens": [0, 8, 16]}, "expected strictly increasing integers from 1"),
        ({**FLOOR, "sample_steps_per_sec": [1.0, 2.0]}, "3 probes but 2 values"),
        ({**FLOOR, "sample_steps_per_sec": [1.0, 0.0, 2.0]}, "holds 0.0, expected positive"),
        ({**FLOOR, "sample_steps_per_sec": [1.0, -3.0, 2.0]}, "holds -3.0, expected positive"),
        ({**FLOOR, "sample_steps_per_sec": [1.0, 1e-320, 2.0]}, "between 1e-09 and 1e+09"),
        ({**FLOOR, "max_batch_tokens": 31}, "expected at least the last probe 32"),
        ({**FLOOR, "meta": {"bias_seconds": 1}}, "missing required field"),
        ({**FLOOR, "meta": {"captured_tokens": [16, 8]}}, "captured_tokens is refused"),
        ({**FLOOR, "meta": {"captured_tokens": []}}, "captured_tokens is refused"),
        ({**FLOOR, "meta": {"captured_tokens": [8, 16], "captured_requests": "many"}}, "captured_requests"),
        ({**ADDITIVE, "bias_seconds": 0.0}, "bias_seconds=0.0, expected a positive number"),
        ({**ADDITIVE, "m_probes": [64], "theta_seconds": [0.1]}, "1 probe(s) cannot inform a decision"),
        ({**ADDITIVE, "theta_seconds": [0.0, 0.1]}, "3 probes but 2 values"),
        ({**ADDITIVE, "alpha_seconds": [-1.0, 0.0, 0.0]}, "expected positive seconds"),
        ({**ADDITIVE, "m_probes": [-64, 0, 64]}, "expected strictly increasing integers from 0"),
        (changed(TIERED, "tiered.verify.seconds", [0.01, 0.0, 0.02]), "expected positive"),
        (changed(TIERED, "tiered.verify.seconds", [[0.01], [0.02], 1.0]), "expected numbers, or rows of one length"),
        (changed(TIERED, "tiered.verify.seconds", [[0.01, 0.02, 0.03]]), "one row of values for every context length"),
        (changed(TIERED, "tiered.captured_tokens", [8, 8]), "captured_tokens is refused"),
        (changed(TIERED, "tiered.captured_tokens", [8, 2**70]), "captured_tokens"),
        (changed(TIERED, "tiered.captured_requests", 0), "captured_requests=0 is refused"),
        (changed(TIERED, "tiered.terms", {"speed": 1.0}), "unknown cost term 'speed'"),
        (changed(TIERED, "tiered.terms", {"copy_s": -1.0}), "copy_s=-1.0 is refused, expected 0..1"),
        ({"sample_batch_tokens": "many"}, "sample_batch_tokens"),
        ([], "Expected `object`"),
        (b"not json", "table.json"),
        (b"", "table.json"),
        (b"\xff\xfe\x00", "table.json"),
        (b'{"sample_batch_tokens": [8, 16], "sample_steps_per_sec": [1.0, NaN], "max_batch_tokens": 16}', "table.json"),
        (
            b'{"sample_batch_tokens": [8, 16], "sample_steps_per_sec": [1.0, 1e999], "max_batch_tokens": 16}',
            "table.json",
        ),
    ],
)
def test_a_refusal_names_file_and_reason(document: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(document, tmp_path)
    message = str(error.value)
    assert words in message and "table" in message and "\n" not in message


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown profile 'b300', expected a file or one of vllm-b300-dsv4-flash"):
        load_profile("b300")
    with pytest.raises(InputError, match="gone.json: No such file"):
        load_profile(str(tmp_path / "gone.json"))
    with pytest.raises(InputError, match="Is a directory"):
        load_profile(str(tmp_path))


def test_a_diagonal_table_is_marked_and_forcing_is_stated(tmp_path: Path) -> None:
    assert load(FLOOR, tmp_path).diagonal
    assert not load({**FLOOR, "meta": {"sweep": "off-diagonal"}}, tmp_path).diagonal
    forced = load_profile(str(tmp_path / "table.json"), force_diagonal=True)
    assert not forced.diagonal
    load(FLOOR, tmp_path)
    forced = load_profile(str(tmp_path / "table.json"), force_diagonal=True)
    assert "diagonal_forced" in keys_of(forced.assumptions)


def test_terms_that_the_source_does_not_give_are_stated(tmp_path: Path) -> None:
    model = load(TIERED, tmp_path)
    stated = {assumption.key: assumption.value for assumption in model.assumptions}
    assert "copy_s" not in stated and model.terms["copy_s"] == 0.0001
    for term in ("host_s", "prefill_token_s", "kv_tokens"):
        assert stated[term] == model.terms[term]
    changed_model = model.with_terms(host_s=0.002)
    assert changed_model.terms["host_s"] == 0.002
    [changed_host] = [assumption for assumption in changed_model.assumptions if assumption.key == "host_s"]
    assert changed_host.text == "host_s = 0.002 (set by the user)" and changed_host.unit == "s"
    assert keys_of(changed_model.assumptions) == keys_of(model.assumptions)
    with pytest.raises(InputError, match="unknown cost term 'hosts'"):
        model.with_terms(hosts=1.0)
    with pytest.raises(InputError, match=r"host_s=nan is refused, expected 0\.\.10"):
        model.with_terms(host_s=float("nan"))


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
PATHS = [
    *FLOOR,
    "meta.captured_tokens",
    "meta.captured_requests",
    "meta.sweep",
]
TIERED_PATHS = [
    *ADDITIVE,
    "tiered",
    "tiered.draft",
    "tiered.draft.seconds",
    "tiered.draft.num_requests",
    "tiered.verify.num_tokens",
    "tiered.verify.seconds",
    "tiered.captured_tokens",
    "tiered.captured_requests",
    "tiered.eager",
    "tiered.terms",
    "tiered.draft.context_tokens_per_request",
    "tiered.eager.seconds",
]


@given(st.data())
def test_a_damaged_table_is_a_model_or_one_sentence(data: st.DataObject) -> None:
    """Whatever stands in one place: it loads and prices are finite and positive, or InputError."""
    if data.draw(st.booleans()):
        document = changed({**FLOOR, "meta": {}}, data.draw(st.sampled_from(PATHS)), data.draw(JSON_VALUES))
    else:
        document = changed(TIERED, data.draw(st.sampled_from(TIERED_PATHS)), data.draw(JSON_VALUES))
    try:
        model = model_from_table(decode_table(json.dumps(document).encode(), "t"), "t")
    except InputError as error:
        assert "\n" not in str(error)
        return
    prices = model.prices(3, 4, 100.0)
    assert np.isfinite(prices.seconds).all() and (prices.seconds > 0).all()
    assert np.isfinite(prices.inverse).all()


@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_or_one_sentence(data: bytes) -> None:
    try:
        decode_table(data, "t")
    except InputError as error:
        assert "\n" not in str(error)


def test_shipped_profiles_load_and_tell_where_they_come_from() -> None:
    assert "vllm-b300-dsv4-flash" in profile_names()
    for name in profile_names():
        model = load_profile(name)
        assert {"hardware", "model", "software", "source"} <= set(model.meta)
        assert model.assumptions
        assert msgspec.json.decode(msgspec.json.encode(model.meta)) == model.meta
