"""Profiles recorded with this project's own machine: orders of exit reasons, and where each comes from.

One gzip file of little-endian 16-bit basic exit reasons per profile, made by ``scripts/record-profiles``; only exits
that reached L0's handler table are in it (see `lzero.dispatch.profiles.load`).
"""

from __future__ import annotations

import gzip
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from lzero.dispatch.profiles.profile import Profile

__all__ = ["RecordedProfile", "recorded_profiles"]


@dataclass(frozen=True)
class RecordedProfile:
    """A shipped recording; ``command`` repeats it."""

    name: str
    origin: str
    command: str
    recorded: str

    def make(self) -> Profile:
        """Read the order of exits."""
        packed = resources.files(__package__).joinpath(f"{self.name}.u16.gz").read_bytes()
        order = np.frombuffer(gzip.decompress(packed), dtype="<u2").astype(np.uint16)
        origin = f"recorded on lzero's machine, {len(order)} exits: {self.origin}"
        return Profile.from_order(self.name, origin, order, recorded=self.recorded)


@cache
def recorded_profiles() -> Mapping[str, RecordedProfile]:
    """The shipped recordings by name."""
    text = resources.files(__package__).joinpath("recorded.toml").read_text(encoding="utf-8")
    return {row["name"]: RecordedProfile(**row) for row in tomllib.loads(text)["profile"]}
