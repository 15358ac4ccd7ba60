"""What several of these tests need."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from guestkit import debian  # noqa: E402  (the scripts' package is found through the line above)


@pytest.fixture(scope="session")
def files() -> debian.DebianFiles:
    try:
        return debian.fetch()
    except debian.FetchError as error:
        pytest.skip(f"no Debian kernel: {error}")
