"""SGLang read without importing it: how names are found, what counts as a difference, and the releases we serve."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from sglang_dspark.serving.base import contract
from sglang_dspark.serving.base.signatures import Parameter, difference
from tests.sglang_versions import check
from tests.sglang_versions.source import Source

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    package = tmp_path / "sglang"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from sglang.inner.deep import Base as Exported\n")
    (package / "inner" / "__init__.py").write_text("from .deep import helper\n")
    (package / "inner" / "deep.py").write_text(
        "LAG: int = 2\nTABLE = {1: [2]}\n"
        "def helper(a, b=1, *rest, key, other=None, **more): ...\n"
        "class Base:\n    field: int\n    def __init__(self, x):\n        self.kept, self.second = x, 1\n"
        "    @classmethod\n    def made(cls, y): ...\n"
        "class Child(Base):\n    def own(self): ...\n"
        "Base = remade('Base', Base)\n"
        "try:\n    from other import thing\nexcept ImportError:\n    thing = None\n"
    )
    return Source(tmp_path)


def test_names_are_found_where_python_would_find_them(source: Source) -> None:
    deep = "sglang.inner.deep"
    there = [f"{deep}.LAG", f"{deep}.Child.own", f"{deep}.Child.kept", f"{deep}.Child.second", f"{deep}.Base.field"]
    for name in (*there, "sglang.inner.helper", "sglang.Exported.made", f"{deep}.thing", deep, "sglang.inner.deep"):
        assert source.has(name), name
    for name in (
        f"{deep}.gone",
        f"{deep}.Child.gone",
        "sglang.nowhere.LAG",
        "sglang.inner.helper2",
        "sglang.Exported.own",
    ):
        assert not source.has(name), name
    assert source.value(f"{deep}.LAG") == 2 and source.value(f"{deep}.TABLE") == {1: [2]}
    with pytest.raises(ValueError, match="no literal"):
        source.value(f"{deep}.helper")


def test_parameters_are_those_that_a_caller_sees(source: Source) -> None:
    assert source.parameters("sglang.inner.helper") == [
        Parameter("a"),
        Parameter("b", default=True),
        Parameter("rest", rest=True),
        Parameter("key", keyword=True),
        Parameter("other", keyword=True, default=True),
        Parameter("more", rest=True),
    ]
    assert source.parameters("sglang.Exported.made") == [Parameter("y")]
    assert source.parameters("sglang.inner.deep.LAG") is None


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ("a, b, *key, *other", None),
        ("a, *key, =", None),  # b and other have defaults
        ("a, b, *key, **", None),
        ("a, *key, **", None),
        ("a, b, *key", "takes other as well"),
        ("a, b, *other, =", "takes key as well"),
        ("a, c, *key, **", "does not take c"),
        ("b, a, *key, *other", r"takes (a, b) by position, expected (b, a)"),
        ("a, *b, *key, **", None),  # a positional one can be passed by name
    ],
)
def test_what_is_passed_must_be_there(source: Source, expected: str, said: str | None) -> None:
    found = difference(expected, source.parameters("sglang.inner.helper") or [])
    assert (found is None) if said is None else re.search(re.escape(said), str(found)), found


def test_the_range_is_what_the_extra_installs() -> None:
    assert [contract.in_range(one) for one in ("0.5.21", "0.5.22", "0.5.22.post1", "0.5.23", "0.5.24", "1.0", "x")] == [
        *(False, True, True, True, False, False, False),
    ]
    text = (ROOT / "pyproject.toml").read_text()
    low, high = re.search(r'serve = \["sglang>=([\d.]+),<([\d.]+)"\]', text).groups()
    assert low == contract.TESTED[0] and not contract.in_range(high)
    assert set(re.findall(r"sglang (0\.5\.\d+)", (ROOT / "README.md").read_text())) <= set(contract.TESTED)


def test_our_imports_are_read_off_our_code() -> None:
    names = check.imported()
    assert "sglang.srt.speculative.dspark_components.dspark_worker_v2.DSparkWorkerV2" in names and len(names) > 40


@pytest.mark.skipif(find_spec("sglang") is None, reason="needs the extra `serve`")
def test_the_installed_sglang_has_all_of_it() -> None:
    folder = Path(find_spec("sglang").origin).parents[1]
    assert list(check.differences(Source(folder))) == []


@pytest.mark.skipif(find_spec("sglang") is None, reason="needs the extra `serve`")
def test_source_and_import_agree() -> None:
    """What `inspect` sees of the installed release is what its source says."""
    source = Source(Path(find_spec("sglang").origin).parents[1])
    assert list(check.moved(source, contract.WORKER_CALLS)) == contract.moved(contract.WORKER_CALLS)
