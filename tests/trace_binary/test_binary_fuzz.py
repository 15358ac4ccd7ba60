"""Damaged recordings: whatever the bytes, a reader ends with rows and a diagnosis, or with one TraceFormatError.

The number of inputs per run is kept small; ``LZERO_FUZZ=100000`` sets another. Damage goes anywhere or, half of the
time, to the bytes that matter most: headers, sizes and counts.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from test_trace_dat import zlib_version_7

import tracewriter as tw
from lzero.errors import TraceFormatError
from lzero.trace.readers.binary.fields import Rows
from lzero.trace.readers.binary.walk import walk_records
from lzero.trace.readers.events import Diagnosis
from lzero.trace.readers.perf_data import read_perf_data
from lzero.trace.readers.trace_dat import read_trace_dat

Events = Callable[..., list[tw.Event]]
Reader = Callable[[io.BytesIO, Diagnosis], Iterator[Rows]]
INPUTS = int(os.environ.get("LZERO_FUZZ", "1500"))
INTERESTING = (0, 1, 2, 7, 8, 9, 29, 30, 31, 64, 66, 68, 71, 80, 81, 83, 127, 128, 254, 255)


@pytest.fixture(scope="module")
def recordings(make_events: Events) -> list[tuple[bytes, Reader]]:
    """Small recordings of each form."""
    events = make_events(24)
    plain = tw.PerfFile([*events, tw.FINISHED_ROUND, tw.lost_record(3), *events[:3]])
    many = tw.PerfFile(events, sample_type=tw.DEFAULT_SAMPLE | tw.CALLCHAIN | tw.READ, read_format=1 | 4 | 8)
    packed = tw.PerfFile(tw.compressed_records(plain.data(), 700))
    dat = tw.TraceDat(events, cpus=3, missed={(0, 0): 2})
    return [
        (plain.to_file(), read_perf_data),
        (plain.to_pipe(), read_perf_data),
        (many.to_pipe(), read_perf_data),
        (packed.to_file(), read_perf_data),
        (dat.to_file(), read_trace_dat),
        (zlib_version_7(dat), read_trace_dat),
    ]


def _damage(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4, 12))):
        place = generator.randrange(len(changed))
        if generator.random() < 0.5:
            place = place // 8 * 8 + generator.choice((0, 0, 4, 6, 6))
        choice = generator.random()
        if choice < 0.5:
            changed[min(place, len(changed) - 1)] = generator.choice(INTERESTING)
        elif choice < 0.8:
            changed[min(place, len(changed) - 1)] ^= 1 << generator.randrange(8)
        elif choice < 0.9:
            del changed[place : place + generator.randrange(1, 40)]
        else:
            changed[place:place] = generator.randbytes(generator.randrange(1, 24))
        if not changed:
            return b""
    if generator.random() < 0.15:
        del changed[generator.randrange(len(changed)) :]
    return bytes(changed)


def test_damaged_recordings(recordings: list[tuple[bytes, Reader]]) -> None:
    generator = random.Random(20)
    refused = 0
    for number in range(INPUTS):
        data, reader = recordings[number % len(recordings)]
        damaged = _damage(data, generator)
        diagnosis = Diagnosis("damaged")
        try:
            for rows in reader(io.BytesIO(damaged), diagnosis):
                assert rows.size
        except TraceFormatError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused < INPUTS


def test_walk_is_exactly_the_plain_loop() -> None:
    """Whatever the words, the lanes find the records that following the sizes one by one finds."""
    generator = np.random.default_rng(3)
    for _ in range(200):
        count = int(generator.integers(1, 4000))
        sizes = generator.integers(1, 40, count).astype(np.uint64)
        words = (sizes << np.uint64(51)) | np.uint64(9)
        words[generator.random(count) < 0.002] = generator.integers(0, 1 << 63)
        walk = walk_records(words, frozenset({71}))
        starts, place, stopped = [], 0, False
        while place < count:
            size, odd = divmod(int(words[place]) >> 48, 8)
            if size == 0 or odd or int(words[place]) & 0xFFFF_FFFF == 71:
                stopped = True
                break
            if place + size > count:
                break
            starts.append(place)
            place += size
        assert walk.starts.tolist() == starts
        assert (walk.end, walk.stopped) == (place, stopped)
