"""The same guest twice gives the same recording, in every column but those that measure the host."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from lzero.machine import Machine

HOST = ("host_ns", "duration_ns")


def _record(path: Path) -> pl.DataFrame:
    Machine("guest:hello", memory="64M", record=path, quiet=True).run()
    return pl.read_parquet(path)


def test_two_runs_record_the_same_exits(tmp_path: Path) -> None:
    """Design: time is the machine's own; same image, same options, same exits."""
    first, second = (_record(tmp_path / f"{n}.parquet").drop(HOST) for n in range(2))
    assert first.height > 100
    assert first.equals(second)
