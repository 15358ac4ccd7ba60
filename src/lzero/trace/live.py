"""Exits as they happen: rates per reason over the last interval, from a pipe or from a recording that is being
written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lzero.errors import LzeroError, UsageError
from lzero.trace.aggregates import Aggregates, add_rows
from lzero.trace.load import open_recording
from lzero.trace.names import reason_name
from lzero.trace.readers.events import Diagnosis
from lzero.trace.store import to_rows

__all__ = ["Follower", "Rate", "follow_pipe", "follow_recording", "rates"]

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Rate:
    """One reason in one interval: exits per second, exits since the start, mean duration in the interval in ns."""

    level: int
    name: str
    per_second: float
    count: int
    mean_ns: float


class Follower:
    """Totals that a thread fills from a source while another reads them.

    Parameters
    ----------
    source:
        Called in the thread with a function that says whether to stop; yields totals to add.
    """

    def __init__(self, source: Callable[[Callable[[], bool]], Iterator[Aggregates]]) -> None:
        self._lock = threading.Lock()
        self._totals = Aggregates()
        self._stop = threading.Event()
        self._source = source
        self.error: LzeroError | None = None
        self._thread = threading.Thread(target=self._run, name="lzero-top", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for part in self._source(self._stop.is_set):
                with self._lock:
                    self._totals.merge(part)
                if self._stop.is_set():
                    return
        except LzeroError as error:
            self.error = error

    def totals(self) -> Aggregates:
        """A copy of the totals so far."""
        copy = Aggregates()
        with self._lock:
            copy.merge(self._totals)
        return copy

    @property
    def ended(self) -> bool:
        """Whether the source has no more to come."""
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the source ends; returns whether it ended."""
        self._thread.join(seconds)
        return self.ended

    def stop(self) -> None:
        """Ask the thread to stop. It is a daemon: one that waits for a silent pipe does not hold up the exit."""
        self._stop.set()


def follow_pipe(name: str, diagnosis: list[Diagnosis]) -> Callable[[Callable[[], bool]], Iterator[Aggregates]]:
    """Source for :class:`Follower`: the text of perf, ftrace or trace-cmd as it comes, ``-`` being standard input."""

    def source(stopped: Callable[[], bool]) -> Iterator[Aggregates]:
        recording = open_recording(name)
        recording.input.live = True
        diagnosis.append(recording.diagnosis)
        for rows in recording.rows():
            part = Aggregates()
            add_rows(part, rows)
            yield part
            if stopped():
                return

    return source


def follow_recording(path: Path) -> Callable[[Callable[[], bool]], Iterator[Aggregates]]:
    """Source for :class:`Follower`: the parts of a recording under way, until it is finished.

    Raises
    ------
    UsageError
        Nothing is being recorded to `path`.
    """
    parts = path.with_name(path.name + ".parts")
    if not parts.is_dir():
        raise UsageError(f"{path}: nothing is being recorded there; start `lzero run --record {path} …` first")

    def source(stopped: Callable[[], bool]) -> Iterator[Aggregates]:
        import polars as pl

        done: set[str] = set()
        while not stopped():
            # Asked before listing: parts written before the folder vanished are then known to be read.
            running = parts.is_dir()
            for file in sorted(parts.glob("*.parquet")):
                if file.name in done:
                    continue
                try:
                    frame = pl.read_parquet(file)
                except (OSError, pl.exceptions.PolarsError):
                    break  # being merged into the finished file
                done.add(file.name)
                part = Aggregates()
                add_rows(part, to_rows(frame))
                yield part
            if not running:
                return
            time.sleep(_POLL_S)

    return source


def rates(before: Aggregates, after: Aggregates, seconds: float) -> list[Rate]:
    """Rates per reason between two moments, the most frequent first; reasons that no longer come are listed with 0."""
    found = []
    for (level, code), totals in after.exits.items():
        old = before.exits.get((level, code))
        count = totals.count - (old.count if old else 0)
        timed = totals.timed - (old.timed if old else 0)
        spent = totals.total_ns - (old.total_ns if old else 0)
        mean = spent / timed if timed else 0.0
        found.append(Rate(level, reason_name(code), count / seconds if seconds else 0.0, totals.count, mean))
    return sorted(found, key=lambda rate: (-rate.per_second, -rate.count, rate.level, rate.name))
