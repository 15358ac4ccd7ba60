"""Samples of perf's tracepoint events to rows, a block of records at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lzero.trace.readers.binary.fields import Buffer, EventPlan, Indices, RowMatrix, Rows, take_rows
from lzero.trace.readers.binary.perf_header import (
    READ_ENABLED,
    READ_GROUP,
    READ_ID,
    READ_LOST,
    READ_RUNNING,
    SAMPLE_CALLCHAIN,
    SAMPLE_READ,
    TYPE_TRACEPOINT,
    Attribute,
    SampleLayout,
)
from lzero.trace.readers.events import Diagnosis, event_dtype

__all__ = ["SampleReader"]

Where = Callable[[int], str]

_LOW: Final = np.uint64(0xFFFF_FFFF)


class SampleReader:
    """Decodes samples by the attributes and formats that the recording carries."""

    def __init__(self, attributes: Sequence[Attribute], plans: dict[int, EventPlan], diagnosis: Diagnosis) -> None:
        self._plans = plans
        self._diagnosis = diagnosis
        self._layouts: list[tuple[SampleLayout, bool]] = []
        ids: list[int] = []
        layout_of_id: list[int] = []
        for attribute in attributes:
            key = (attribute.layout, attribute.type == TYPE_TRACEPOINT)
            if key not in self._layouts:
                self._layouts.append(key)
            ids.extend(attribute.ids)
            layout_of_id.extend([self._layouts.index(key)] * len(attribute.ids))
        order = np.argsort(np.array(ids, np.uint64), kind="stable")
        self._ids = np.array(ids, np.uint64)[order]
        self._layout_of_id = np.array(layout_of_id, np.int64)[order]
        # perf gives all events of a recording the same place for the id, or their samples could not be told apart.
        self._id_word = next((layout.id for layout, _ in self._layouts if layout.id is not None), None)

    def read(self, buffer: Buffer, starts: Indices, sizes: Indices, where: Where) -> tuple[Rows, Indices]:
        """Rows for the samples that start at word ``starts`` and have ``sizes`` words, and which samples they are.

        Parameters
        ----------
        where:
            Names the place of a byte of the buffer, for messages.
        """
        nothing = np.zeros(0, event_dtype()), np.empty(0, np.int64)
        if len(self._layouts) == 1:
            return self._decode(buffer, starts, sizes, where, self._layouts[0])
        if not self._layouts or self._id_word is None:
            self._refuse(starts, where, "sample of an event without a description")
            return nothing
        order = np.arange(starts.size)
        fits = sizes > self._id_word
        if not fits.all():
            self._refuse(starts[~fits], where, "sample too short for its id")
            starts, sizes, order = starts[fits], sizes[fits], order[fits]
        ids = buffer.words64[starts + self._id_word]
        slot = np.minimum(np.searchsorted(self._ids, ids), max(self._ids.size - 1, 0))
        known = self._ids[slot] == ids if self._ids.size else np.zeros(ids.size, bool)
        if not known.all():
            self._refuse(starts[~known], where, "sample with an unknown id")
        layout = np.where(known, self._layout_of_id[slot] if self._ids.size else 0, -1)
        parts: list[Rows] = []
        places: list[Indices] = []
        for number, described in enumerate(self._layouts):
            mine = np.flatnonzero(layout == number)
            if mine.size:
                rows, kept = self._decode(buffer, starts[mine], sizes[mine], where, described)
                parts.append(rows)
                places.append(order[mine[kept]])
        if not parts:
            return nothing
        came = np.concatenate(places)
        sort = np.argsort(came, kind="stable")
        return take_rows(np.concatenate(parts), sort), came[sort]

    def _decode(
        self, buffer: Buffer, starts: Indices, sizes: Indices, where: Where, described: tuple[SampleLayout, bool]
    ) -> tuple[Rows, Indices]:
        """Rows, and which of the samples they come from."""
        layout, is_tracepoint = described
        if not (is_tracepoint and layout.has_raw):
            self._diagnosis.others += starts.size
            return np.zeros(0, event_dtype()), np.empty(0, np.int64)
        at, room, fits = self._raw_data(buffer, starts, sizes, layout)
        kept = np.arange(starts.size)
        if not fits.all():
            self._refuse(starts[~fits], where, "sample too short for its parts")
            at, room, kept = at[fits], room[fits], kept[fits]
        number = buffer.low(at, 2)
        chosen: list[tuple[EventPlan, Indices]] = []
        wanted = np.zeros(at.size, bool)
        for event, plan in self._plans.items():
            match = number == np.uint32(event)
            if not match.any():
                continue
            short = match & (room < plan.size)
            if short.any():
                self._refuse(starts[kept[short]], where, "event shorter than its format")
                match &= ~short
            wanted |= match
            chosen.append((plan, np.flatnonzero(match)))
        if wanted.all():
            places = selected = np.arange(at.size)
        else:
            self._diagnosis.others += int(at.size - np.count_nonzero(wanted))
            selected = np.flatnonzero(wanted)
            places = np.full(at.size, -1, np.int64)
            places[selected] = np.arange(selected.size)
            kept = kept[selected]
        matrix = RowMatrix(selected.size)
        self._common(buffer, starts[kept], layout, matrix)
        for plan, mine in chosen:
            if mine.size:
                plan.fill(buffer, at[mine], matrix, places[mine])
        return matrix.rows(), kept

    def _raw_data(
        self, buffer: Buffer, starts: Indices, sizes: Indices, layout: SampleLayout
    ) -> tuple[Indices, Indices, NDArray[np.bool_]]:
        """Byte offset of each sample's raw data, its size, and whether it lies in its record.

        A count that reaches over the record is set to what fits before it is used, so no index leaves the buffer.
        """
        words = buffer.words64
        ends = starts + sizes
        place = starts + layout.variable
        fits = place < ends
        if layout.sample_type & SAMPLE_READ:
            place, fits = self._after_read(words, place, ends, fits, layout.read_format)
        if layout.sample_type & SAMPLE_CALLCHAIN:
            count = np.where(fits, words[np.where(fits, place, starts)], np.uint64(0))
            fits &= count < np.uint64(1 << 16)
            place = place + 1 + np.where(fits, count, np.uint64(0)).astype(np.int64)
            fits &= place < ends
        size = (words[np.where(fits, place, starts)] & _LOW).astype(np.int64)
        at = np.where(fits, place, starts) * 8 + 4
        fits &= (size >= 2) & (at + size <= ends * 8)
        return at, size, fits

    def _after_read(
        self, words: NDArray[np.uint64], place: Indices, ends: Indices, fits: NDArray[np.bool_], read_format: int
    ) -> tuple[Indices, NDArray[np.bool_]]:
        times = bool(read_format & READ_ENABLED) + bool(read_format & READ_RUNNING)
        each = 1 + bool(read_format & READ_ID) + bool(read_format & READ_LOST)
        if not read_format & READ_GROUP:
            place = place + times + each
            return place, fits & (place < ends)
        members = np.where(fits, words[np.where(fits, place, 0)], np.uint64(0))
        fits = fits & (members < np.uint64(1 << 13))
        place = place + 1 + times + each * np.where(fits, members, np.uint64(0)).astype(np.int64)
        return place, fits & (place < ends)

    def _common(self, buffer: Buffer, starts: Indices, layout: SampleLayout, matrix: RowMatrix) -> None:
        every = slice(None)
        at = starts * 2
        words = buffer.words32
        if layout.time is not None:
            place = at + 2 * layout.time
            matrix.set64("time_ns", every, words.take(place), words.take(place + 1))
        thread = 0xFFFF_FFFF if layout.tid is None else words.take(at + (2 * layout.tid + 1))
        matrix.set32("thread", every, thread)
        matrix.set_cpu(0xFFFF if layout.cpu is None else words.take(at + 2 * layout.cpu))

    def _refuse(self, starts: Indices, where: Where, what: str) -> None:
        if starts.size:
            self._diagnosis.problem(what, where(8 * int(starts[0])), count=int(starts.size))
