"""Events in the pages of ftrace's ring buffer, all pages of a block in step.

A page begins with a time stamp and the number of bytes in use; then events follow, each with a word that holds its
length (5 bits) and the time since the one before (27 bits). Pages are independent of each other, so one event of
every page is decoded at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lzero.trace.readers.binary.fields import Buffer, Indices
from lzero.trace.readers.binary.formats import Field

__all__ = ["PageEvents", "PageLayout", "read_pages"]

_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_DELTA_BITS: Final = 27
_STAMP_BITS: Final = 59
_MISSED: Final = 1 << 31
_MISSED_STORED: Final = 1 << 30
_COMMIT_MASK: Final = (1 << 27) - 1


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Where the parts of a page are, from the recording's own ``header_page``."""

    timestamp: int
    commit: int
    commit_size: int
    data: int

    @classmethod
    def of(cls, fields: Mapping[str, Field]) -> PageLayout:
        """The layout; what the header does not say is as on every 64-bit kernel."""
        timestamp, commit, data = fields.get("timestamp"), fields.get("commit"), fields.get("data")
        return cls(
            timestamp=timestamp.offset if timestamp else 0,
            commit=commit.offset if commit else 8,
            commit_size=commit.size if commit and commit.size in (4, 8) else 8,
            data=data.offset if data else 16,
        )


@dataclass(frozen=True, slots=True)
class PageEvents:
    """The events of a block of pages, page by page and in order within each."""

    at: Indices
    """Byte offset of each event's data in the block."""
    room: Indices
    """Bytes of its data."""
    time: NDArray[np.uint64]
    """Time stamp in units of the trace clock."""
    missed: tuple[tuple[int, int], ...]
    """Pages before which events were lost, and how many (0: the kernel did not say)."""
    damaged: tuple[int, ...]
    """Pages whose bytes do not make sense, from some event on."""


def read_pages(buffer: Buffer, page_size: int, layout: PageLayout) -> PageEvents:
    """Decode a block of whole pages."""
    walk = _PageWalk(buffer, page_size, layout)
    while walk.alive.size:
        walk.step()
    return walk.result()


class _PageWalk:
    def __init__(self, buffer: Buffer, page_size: int, layout: PageLayout) -> None:
        self.buffer = buffer
        pages = buffer.bytes.size // page_size
        starts = np.arange(pages, dtype=np.int64) * page_size
        commit = buffer.low(starts + layout.commit, 4).astype(np.int64)
        used = commit & _COMMIT_MASK
        self.data = starts + layout.data
        fits = (layout.data + used <= page_size) & (used % 4 == 0)
        self.damaged = set(np.flatnonzero(~fits).tolist())
        self.end = np.where(fits, self.data + used, self.data)
        self.time = buffer.gather(starts + layout.timestamp, 8)
        self.missed = self._missed(commit, fits, starts + page_size)
        self.position = self.data.copy()
        self.alive = np.flatnonzero(self.position < self.end)
        self.found: list[tuple[Indices, Indices, Indices, NDArray[np.uint64]]] = []

    def _missed(self, commit: Indices, fits: NDArray[np.bool_], page_ends: Indices) -> tuple[tuple[int, int], ...]:
        found = []
        for page in np.flatnonzero(((commit & _MISSED) != 0) & fits).tolist():
            place = int(self.end[page])
            stored = bool(commit[page] & _MISSED_STORED) and place + 8 <= page_ends[page]
            count = int(self.buffer.gather(np.array([place]), 8)[0]) if stored else 0
            found.append((page, count))
        return tuple(found)

    def step(self) -> None:
        """Decode one event of each page that has one left."""
        page, place = self.alive, self.position[self.alive]
        end = self.end[page]
        header = self.buffer.words32.take(place >> 2)
        kind = (header & np.uint32(31)).astype(np.int64)
        delta = (header >> np.uint32(5)).astype(np.uint64)
        # Only pages whose last event has no second word could be read beyond; their second word is not used then.
        second = self.buffer.words32.take(np.minimum((place >> 2) + 1, self.buffer.words32.size - 1))
        long_form = kind == 0
        stamped = kind >= _TIME_EXTEND
        data = place + np.where(long_form, 8, 4)
        size = np.where(long_form, second.astype(np.int64) - 4, kind * 4)
        padding = kind == _PADDING
        if padding.any():
            # A padding without a time ends the page; one with a time is an event that was discarded.
            rest = np.where(delta == 0, end - place - 4, second.astype(np.int64))
            size = np.where(padding, rest, size)
        if stamped.any():
            size = np.where(stamped, 4, size)
            delta = delta + np.where(
                kind == _TIME_EXTEND, second.astype(np.uint64) << np.uint64(_DELTA_BITS), np.uint64(0)
            )
        following = data + ((size + 3) & -4)
        bad = (size < 0) | (following > end)
        if bad.any():
            self.damaged.update(page[bad].tolist())
        time = self.time[page] + delta
        if stamped.any():
            time = np.where(kind == _TIME_STAMP, self._stamp(page, header, second), time)
        self.time[page] = time
        event = ~(padding | stamped | bad)
        if event.all():
            self.found.append((page, data, size, time))
        else:
            self.found.append((page[event], data[event], size[event], time[event]))
        self.position[page] = following
        self.alive = page[(following < end) & ~bad]

    def _stamp(self, page: Indices, header: NDArray[np.uint32], second: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """An absolute time stamp of 59 bits; the bits above are those of the time so far."""
        low = (header >> np.uint32(5)).astype(np.uint64) | (second.astype(np.uint64) << np.uint64(_DELTA_BITS))
        high = self.time[page] >> np.uint64(_STAMP_BITS) << np.uint64(_STAMP_BITS)
        stamp: NDArray[np.uint64] = low | high
        return stamp

    def result(self) -> PageEvents:
        """All events in order of their place."""
        empty = np.empty(0, np.int64)
        at = np.concatenate([data for _, data, _, _ in self.found]) if self.found else empty
        order = np.argsort(at)
        return PageEvents(
            at=at[order],
            room=(np.concatenate([size for _, _, size, _ in self.found]) if self.found else empty)[order],
            time=(np.concatenate([time for _, _, _, time in self.found]) if self.found else empty.astype("<u8"))[order],
            missed=self.missed,
            damaged=tuple(sorted(self.damaged)),
        )
