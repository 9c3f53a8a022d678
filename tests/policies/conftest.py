"""The contract compares compiled code with NumPy: here there is some."""

import pytest

from sglang_dspark import jit


@pytest.fixture(scope="session", autouse=True)
def compiled_code() -> None:
    assert jit.prepare() is None
