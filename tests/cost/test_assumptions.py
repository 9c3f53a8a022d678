"""Assumptions are looked up by key; the sentence is made from the values, and records of either form are read."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.cost import TERMS, Assumption, keys_of, load_profile
from sglang_dspark.records.costs import cost_from_plain, cost_to_plain, table_hash

FIRST_TERMS = (
    "host_s",
    "copy_s",
    "prefill_base_s",
    "prefill_token_s",
    "prefill_pair_s",
    "context_token_s",
    "draft_context_token_s",
    "kv_tokens",
)
WORDS = st.text(max_size=20)
ASSUMPTIONS = st.builds(Assumption, WORDS, st.one_of(st.none(), st.floats(allow_nan=False), WORDS), WORDS, WORDS, WORDS)


@pytest.mark.parametrize(
    ("assumption", "text"),
    [
        (Assumption("host_s", 0.003, "s", "assumed: 3 ms of work"), "host_s = 0.003 (assumed: 3 ms of work)"),
        (Assumption("kv_tokens", 1e6, "tokens", "set by the user"), "kv_tokens = 1e+06 (set by the user)"),
        (Assumption("eager", None, "", "no source", "eager is free"), "eager is free (no source)"),
        (Assumption("", None, "", "", "as an older file says"), "as an older file says"),
    ],
)
def test_the_sentence(assumption: Assumption, text: str) -> None:
    assert assumption.text == text and assumption.as_json()["text"] == text


@given(ASSUMPTIONS)
def test_records_give_an_assumption_back(assumption: Assumption) -> None:
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(assumption.as_plain()))
    assert Assumption.from_plain(stored) == assumption


@given(st.text(min_size=1, max_size=20))
def test_the_sentences_of_older_records_keep_their_words(text: str) -> None:
    old = Assumption.from_plain(text)
    assert old.text == text and not old.key and old.value is None


def test_a_cost_of_record_format_1_is_read_and_prices_alike() -> None:
    cost = load_profile("vllm-b300-dsv4-flash")
    plain = cost_to_plain(cost)
    old = {**plain, "assumptions": ["host_s = 0.003 (assumed: 3 ms of scheduler work a step)"]}
    old["terms"] = {key: plain["terms"][key] for key in FIRST_TERMS}
    for curve in ("draft", "verify", "eager"):
        old[curve] = {key: value for key, value in plain[curve].items() if key != "measured_to"}
    read = cost_from_plain(msgspec.msgpack.decode(msgspec.msgpack.encode(old)))
    assert [one.text for one in read.assumptions] == old["assumptions"]
    priced = {key: value for key, value in old.items() if key not in ("name", "assumptions", "meta", "diagonal_gamma")}
    named = hashlib.sha256(msgspec.msgpack.encode(priced, order="deterministic")).hexdigest()[:16]
    assert table_hash(read) == table_hash(cost) == named, "as software of format 1 names it"
    assert read.measured_tokens == cost.measured_tokens
    assert cost_from_plain(msgspec.msgpack.decode(msgspec.msgpack.encode(plain))).assumptions == cost.assumptions


def test_every_term_is_given_or_assumed_with_its_unit_and_value() -> None:
    cost = load_profile("vllm-b300-dsv4-flash")
    for assumption in cost.assumptions:
        if assumption.key in TERMS:
            assert assumption.value == cost.terms[assumption.key] and assumption.unit == TERMS[assumption.key].unit
    assert "host_s" in keys_of(cost.assumptions)
