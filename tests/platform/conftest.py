"""Fixtures of the platform's tests."""

from __future__ import annotations

import pytest

from pcboard import Board


@pytest.fixture
def board() -> Board:
    """A PC at guest time 0."""
    return Board()
