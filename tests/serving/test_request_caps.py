"""What a request may ask of the server about its drafts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_dspark.serving.base.request_caps import cap_of, caps_of


@pytest.mark.parametrize(("given", "cap"), [(None, None), ({}, None), ({"domain": "code"}, None)])
def test_no_cap(given: Any, cap: int | None) -> None:
    assert cap_of(given) is cap


@pytest.mark.parametrize("cap", [-1, 65, 1.5, "2", True, None, [1]])
def test_a_bad_cap_is_refused_in_a_sentence(cap: Any) -> None:
    with pytest.raises(ValueError, match=r"dspark_cap=.* is refused, expected an integer in 0\.\.64\."):
        cap_of({"dspark_cap": cap})


def test_caps_of_a_batch() -> None:
    def batch(*given: Any) -> list[Any]:
        return [SimpleNamespace(sampling_params=SimpleNamespace(custom_params=one)) for one in given]

    assert caps_of(batch(None, {}, {"dspark_cap": 7}), 7) is None
    caps = caps_of(batch({"dspark_cap": 0}, None, {"dspark_cap": 40}, {"dspark_cap": 2}), 7)
    assert caps is not None and caps.tolist() == [0, 7, 7, 2]
    assert caps_of(batch({"dspark_cap": "many"}), 7) is None, "an engine without the HTTP process takes it for none"
