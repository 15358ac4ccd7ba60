"""A small coverage-guided fuzzer for readers written in Python.

Inputs that reach a new edge (a pair of lines executed one after the other in the watched files) join the corpus from
which further inputs are made by damaging bytes, as AFL does it.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

INTERESTING = (0, 1, 2, 7, 8, 9, 29, 30, 31, 64, 66, 68, 71, 80, 81, 83, 127, 128, 254, 255)
LARGEST = 40_000


@dataclass
class CoverageFuzzer:
    """``run`` feeds inputs to ``target``; any exception that it lets out is the fuzzer's finding."""

    target: Callable[[bytes], None]
    watched: str
    """Part of the path of the files whose edges count."""
    seed: int = 1
    corpus: list[bytes] = field(default_factory=list)
    edges: set[tuple[int, int, int]] = field(default_factory=set)
    _new: bool = False

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if self.watched not in frame.f_code.co_filename:
            return None
        code = id(frame.f_code)
        last = frame.f_lineno

        def line(inner: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            edge = (code, last, inner.f_lineno)
            if edge not in self.edges:
                self.edges.add(edge)
                self._new = True
            last = inner.f_lineno
            return line

        return line

    def one(self, data: bytes) -> bool:
        """Run one input; whether it reached an edge for the first time."""
        self._new = False
        before = sys.gettrace()
        sys.settrace(self._trace)
        threading.settrace(self._trace)
        try:
            self.target(data)
        finally:
            sys.settrace(before)
            threading.settrace(before)  # type: ignore[arg-type]  # None is how tracing is turned off
        return self._new

    def run(self, inputs: int) -> None:
        """Run the corpus, then so many inputs made from it."""
        generator = random.Random(self.seed)
        for data in list(self.corpus):
            self.one(data)
        for _ in range(inputs):
            # Newer entries lie deeper: they are taken more often.
            data = self.corpus[max(generator.randrange(len(self.corpus)), generator.randrange(len(self.corpus)))]
            changed = self.damage(data, generator)
            if self.one(changed) and len(changed) < LARGEST:
                self.corpus.append(changed)

    def damage(self, data: bytes, generator: random.Random) -> bytes:
        """The input with a few bytes changed, removed, added, or taken from another."""
        changed = bytearray(data) or bytearray(1)
        for _ in range(generator.choice((1, 1, 2, 4, 12))):
            place = generator.randrange(len(changed))
            if generator.random() < 0.5:
                place = min(place // 8 * 8 + generator.choice((0, 0, 4, 6, 6)), len(changed) - 1)
            choice = generator.random()
            if choice < 0.45:
                changed[place] = generator.choice(INTERESTING)
            elif choice < 0.75:
                changed[place] ^= 1 << generator.randrange(8)
            elif choice < 0.85:
                del changed[place : place + generator.randrange(1, 40)]
            elif choice < 0.95:
                changed[place:place] = generator.randbytes(generator.randrange(1, 24))
            else:
                other = generator.choice(self.corpus)
                start = generator.randrange(len(other) or 1)
                changed[place : place + 64] = other[start : start + 64]
            changed = changed or bytearray(1)
        if generator.random() < 0.1:
            del changed[generator.randrange(len(changed)) + 1 :]
        return bytes(changed)
