"""Policies as text and JSON: whatever can be made can be written and read back; what cannot be made says why."""

from __future__ import annotations

import json
import pickle

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_strategies import policies

from sglang_dspark.errors import InputError
from sglang_dspark.policies import (
    Argmax,
    Fixed,
    Guard,
    Hull,
    Policy,
    Schedule,
    make_policy,
    policy_from_json,
    policy_from_string,
    policy_to_json,
    policy_to_string,
)


@given(policies())
def test_string_form_round_trips(policy: Policy) -> None:
    text = policy_to_string(policy)
    assert policy_from_string(text) == policy
    assert policy_to_string(policy_from_string(text)) == text


@given(policies())
def test_json_form_round_trips(policy: Policy) -> None:
    written = json.dumps(policy_to_json(policy))
    assert policy_from_json(json.loads(written)) == policy
    assert policy_from_json(msgspec.json.decode(msgspec.json.encode(policy_to_json(policy)))) == policy


@given(policies())
@settings(max_examples=30)
def test_policies_are_values(policy: Policy) -> None:
    """Hashable and picklable: they key caches and go to worker processes."""
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert len({policy, policy_from_string(policy_to_string(policy))}) == 1


def test_a_file_holds_a_policy(tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"policy": "guard", "inner": "hull:fill=false", "baseline": {"policy": "fixed", "k": 3}})
    )
    assert make_policy(str(path)) == Guard(inner=Hull(fill=False), baseline=Fixed(k=3))


def test_the_forms_of_the_documentation() -> None:
    assert make_policy("hull:fill=true") == Hull()
    assert make_policy(" argmax : lag=1 , pricing=floor ") == Argmax(lag=1, pricing="floor")
    assert make_policy("schedule:upto=8/32,k=7/5/3") == Schedule(upto=(8, 32), k=(7, 5, 3))
    assert policy_to_string(Guard(inner=Hull(fill=False))) == "guard:inner=(hull:fill=false)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "unknown policy ''"),
        ("hulk", "unknown policy 'hulk', expected one of argmax"),
        ("hull:", "expected key=value"),
        ("hull:fill", "expected key=value"),
        ("hull:fil=true", "'hull' has no parameter 'fil', expected one of: floor, cap, fill"),
        ("none:k=1", "expected one of: none"),
        ("hull:fill=maybe", "'hull': fill=maybe is refused, expected true or false"),
        ("hull:fill=true,fill=true", "given twice"),
        ("argmax:lag=0", "'argmax': lag=0 is refused, expected an integer in 1..8"),
        ("argmax:lag=9", "expected an integer in 1..8"),
        ("argmax:lag=two", "'argmax': lag=two is refused, expected an integer in 1..8"),
        ("argmax:pricing=cheap", "expected one of tier, floor"),
        ("threshold:t=nan", "'threshold': t=nan is refused, expected a number in 0.0..1.0"),
        ("threshold:t=1.5", "expected a number in 0.0..1.0"),
        ("fixed:k=-1", "'fixed': k=-1 is refused, expected an integer in 0..64"),
        ("hull:floor=3,cap=1", "'hull': floor=3 exceeds cap=1"),
        ("threshold:floor=3,cap=1", "floor=3 exceeds cap=1"),
        ("schedule:upto=8/4,k=1/2/3", "expected increasing batch sizes"),
        ("schedule:upto=8,k=1", "one k more than batch sizes"),
        ("schedule:upto=8,k=a/b", "expected integers in 0..64 separated by /"),
        ("guard:inner=(argmax-live)", "'argmax-live' is not lossless"),
        ("guard:inner=(none)", "'none' has no drafter"),
        ("guard:inner=(hull", "parentheses do not match"),
        ("guard:inner=hull)", "parentheses do not match"),
        ("guard:inner=(hulk)", "unknown policy 'hulk'"),
    ],
)
def test_bad_text_names_policy_parameter_and_range(text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        make_policy(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], '"policy" name'),
        ({"k": 1}, '"policy" name'),
        ({"policy": 3}, '"policy" name'),
        ({"policy": "fixed", "k": 1.5}, "'fixed': k=1.5 is refused, expected an integer in 0..64"),
        ({"policy": "fixed", "k": True}, "k=True is refused"),
        ({"policy": "fixed", "k": None}, "k=None is refused"),
        ({"policy": "hull", "fill": 1}, "fill=1 is refused, expected true or false"),
        ({"policy": "schedule", "upto": [8, "9"], "k": [1, 2, 3]}, "expected integers"),
        ({"policy": "guard", "inner": 5}, '"policy" name'),
    ],
)
def test_bad_json_is_refused(data: object, words: str) -> None:
    with pytest.raises(InputError, match=None) as error:
        policy_from_json(data)
    assert words in str(error.value)


def test_nesting_is_bounded() -> None:
    text = "hull"
    for _ in range(8):
        text = f"guard:inner=({text})"
    with pytest.raises(InputError, match="nests deeper than 4"):
        make_policy(text)
    data: object = "hull"
    for _ in range(8):
        data = {"policy": "guard", "inner": data}
    with pytest.raises(InputError, match="nests deeper than 4"):
        policy_from_json(data)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 5000, b""])
def test_a_broken_file_is_one_sentence(content: bytes, tmp_path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not JSON"):
        make_policy(str(path))


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match="gone.json: No such file"):
        make_policy(str(tmp_path / "gone.json"))


@given(st.text(max_size=40))
def test_any_text_is_a_policy_or_an_input_error(text: str) -> None:
    try:
        assert isinstance(make_policy(text), Policy)
    except InputError:
        pass


@pytest.mark.parametrize("text", ["fixed:k=7", "hull:floor=3", "hull:cap=4", "schedule:upto=1,k=3/1"])
def test_parameters_beyond_the_block_are_refused_for_it(text: str) -> None:
    with pytest.raises(InputError, match=r"expected 0\.\.2"):
        make_policy(text).check(2)
    make_policy(text).check(8)


def test_a_file_may_say_what_it_was_tuned_for(tmp_path) -> None:
    """`meta` stands beside the policy, as an object, and nowhere inside it."""
    from sglang_dspark.policies import Hull
    from sglang_dspark.policies.parse import load_policy_meta

    path = tmp_path / "policy.json"
    path.write_text('{"policy": "hull", "cap": 5, "meta": {"gamma": 5}}')
    assert make_policy(str(path)) == Hull(cap=5) and load_policy_meta(path) == {"gamma": 5}
    path.write_text('{"policy": "hull", "meta": 3}')
    with pytest.raises(InputError, match="meta is refused, expected an object"):
        load_policy_meta(path)
    path.write_text('{"policy": "guard", "inner": {"policy": "hull", "meta": {}}}')
    with pytest.raises(InputError, match="no parameter 'meta'"):
        make_policy(str(path))
