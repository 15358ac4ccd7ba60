"""Find where the records of a perf.data stream start, many at a time.

Each record's start follows from the size of the one before, which a loop in Python follows far too slowly. So a block
is cut into lanes; in each the first place that looks like a record is guessed, and all lanes are walked in step. A
lane's guess is right if it is where the lane before ended; lanes for which it is not are walked again from there. The
result is exactly that of the plain loop, whatever the bytes: guessing only decides how fast it is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Walk", "next_plausible", "walk_records"]

_LANE_WORDS: Final = 256
_GUESS_WORDS: Final = 32
_SAMPLE: Final = 9
_LARGEST_GUESS: Final = 4096

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Walk:
    """Where the records of a block start, in 8-byte words."""

    starts: NDArray[np.int64]
    """Starts of the records that lie in the block as a whole."""
    end: int
    """Where the walk ended: at the first record that does not fit any more, or at :attr:`stop`."""
    stopped: bool
    """The record at :attr:`end` is not an ordinary one: its size is impossible, or its type asks for other
    treatment.
    """


def walk_records(words: Words, special: frozenset[int]) -> Walk:
    """Walk the records of ``words`` from its start to its end.

    Parameters
    ----------
    words:
        The block, as 64-bit words; a record begins at its first word.
    special:
        Record types at which the walk stops.
    """
    count = words.size
    if count == 0:
        return Walk(np.empty(0, np.int64), 0, False)
    lanes = -(-count // _LANE_WORDS)
    borders = np.minimum(np.arange(1, lanes + 1, dtype=np.int64) * _LANE_WORDS, count)
    starts = _guesses(words, lanes)
    starts[0] = 0
    walker = _Lanes(words, special, borders)
    walker.walk(np.flatnonzero(starts >= 0), starts[starts >= 0])
    _agree(walker, starts)
    return walker.result(starts)


def next_plausible(words: Words, start: int) -> int:
    """First word from ``start`` on that looks like a sample's header; the end of the block if none does."""
    found = np.flatnonzero(_plausible(words[start:]))
    return start + int(found[0]) if found.size else words.size


def _plausible(words: Words) -> NDArray[np.bool_]:
    size = (words >> np.uint64(48)).astype(np.int64)
    is_sample = (words & np.uint64(0xFFFF_FFFF)) == _SAMPLE
    plausible: NDArray[np.bool_] = is_sample & (size >= 16) & (size <= _LARGEST_GUESS) & (size % 8 == 0)
    return plausible


def _guesses(words: Words, lanes: int) -> NDArray[np.int64]:
    """First plausible header of each lane, or -1."""
    starts = np.full(lanes, -1, np.int64)
    whole = words.size // _LANE_WORDS
    if whole:
        heads = words[: whole * _LANE_WORDS].reshape(whole, _LANE_WORDS)[:, :_GUESS_WORDS]
        plausible = _plausible(heads)
        first = plausible.argmax(axis=1)
        found = plausible[np.arange(whole), first]
        starts[:whole][found] = (np.arange(whole) * _LANE_WORDS + first)[found]
    return starts


def _agree(walker: _Lanes, starts: NDArray[np.int64]) -> None:
    """Walk lanes again until each starts where the one before ended. Each round settles at least one more lane."""
    while True:
        wanted = np.empty_like(starts)
        wanted[0] = 0
        wanted[1:] = walker.ends[:-1]
        # A lane whose predecessor is not known yet waits for it.
        again = np.flatnonzero((wanted != starts) & (wanted >= 0))
        if again.size == 0:
            return
        starts[again] = wanted[again]
        walker.walk(again, wanted[again])


_STOPPED: Final = 1 << 60


class _Lanes:
    """The state of all lanes. ``ends`` holds where a lane's walk left it, -1 if unknown, ``_STOPPED + place`` if it
    stopped.
    """

    def __init__(self, words: Words, special: frozenset[int], borders: NDArray[np.int64]) -> None:
        self.words = words
        self.special = np.array(sorted(special), np.uint64)
        self.borders = borders
        self.ends = np.full(borders.size, -1, np.int64)
        self._found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        self._version = np.zeros(borders.size, np.int64)

    def walk(self, lanes: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        """Walk the given lanes from the given places to their borders."""
        self._version[lanes] += 1
        alive, place = lanes, starts
        while alive.size:
            border = self.borders[alive]
            # A stopped predecessor, or a record that reaches over the whole lane, leaves nothing to walk.
            inside = place < border
            if not inside.all():
                self.ends[alive[~inside]] = place[~inside]
                alive, place = alive[inside], place[inside]
                continue
            header = self.words[place]
            size = (header >> np.uint64(51)).astype(np.int64)
            bad = (size == 0) | (((header >> np.uint64(48)) & np.uint64(7)) != 0)
            kind = header & np.uint64(0xFFFF_FFFF)
            for special in self.special:
                bad |= kind == special
            if bad.any():
                self.ends[alive[bad]] = place[bad] + _STOPPED
                good = ~bad
                alive, place, size = alive[good], place[good], size[good]
            self._found.append((alive, self._version[alive], place))
            place = place + size

    def result(self, starts: NDArray[np.int64]) -> Walk:
        """The starts that the lanes' last walks found."""
        count = self.words.size
        stops = np.flatnonzero(self.ends >= _STOPPED)
        stop = int(self.ends[stops[0]]) - _STOPPED if stops.size else None
        found = [place[version == self._version[lanes]] for lanes, version, place in self._found]
        every = np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)
        limit = count if stop is None else stop
        every = every[every < limit]
        if every.size:
            last = int(every[-1])
            after = last + int(self.words[last] >> np.uint64(51))
            if after > count:
                return Walk(every[:-1], last, False)
            if stop is None:
                return Walk(every, after, False)
        return Walk(every, limit if stop is not None else int(starts[0]), stop is not None)
