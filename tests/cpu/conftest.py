"""One processor for all tests of a module; each guest starts afresh."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Bench, Exit


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """A processor with memory."""
    made = Bench()
    yield made
    made.close()


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """A VM exit that differs is told in two lines."""
    if isinstance(left, Exit) and isinstance(right, Exit) and op == "==":
        return ["VM exit", f"     was {left!r}", f"expected {right!r}"]
    return None
