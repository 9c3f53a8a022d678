"""What the way to a Ray cluster does without one: a real one is in tests/ray_cluster."""

from __future__ import annotations

import pytest

from sglang_dspark import on_ray
from sglang_dspark.errors import InputError


@pytest.mark.parametrize(
    "address", ["head", "head:", ":6379", "head:x", "127.0.0.1:1", "127.0.0.1:99999", "ray://127.0.0.1:1"]
)
def test_an_address_where_nobody_is_gets_one_sentence(address: str) -> None:
    with pytest.raises(InputError, match=rf"no Ray cluster answers at {address} .*expected HOST:PORT"):
        on_ray.check_answers(address)


@pytest.mark.parametrize("address", [None, "auto", "local"])
def test_what_ray_finds_itself_is_left_to_it(address: str | None) -> None:
    on_ray.check_answers(address)


@pytest.mark.parametrize("what", ["Python", "NumPy", "sglang-dspark of code"])
def test_a_machine_that_would_compute_something_else_is_refused(what: str) -> None:
    theirs = on_ray.fingerprint()
    on_ray.check_same(theirs)
    with pytest.raises(InputError, match=f"has {what} .*, expected another one as where the search runs"):
        on_ray.check_same({**theirs, what: "another one"})
