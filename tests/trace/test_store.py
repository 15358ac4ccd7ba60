"""The streaming writer: a file appears whole or not at all, and a failure to write is told to the one who writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lzero.errors import UsageError
from lzero.trace.schema import numpy_dtype
from lzero.trace.store import StreamWriter, open_trace, to_rows


def rows(count: int, start: int = 0) -> np.ndarray:
    made = np.zeros(count, numpy_dtype())
    made["seq"] = np.arange(start, start + count)
    return made


@pytest.mark.parametrize("sizes", [[], [0], [1], [3, 0, 500, 2], [1000] * 40])
def test_rows_come_back_in_order(sizes: list[int], tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with StreamWriter(path) as writer:
        for number, size in enumerate(sizes):
            writer.write(rows(size, sum(sizes[:number])))
    assert to_rows(open_trace(path).collect()).tolist() == rows(sum(sizes)).tolist()
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), StreamWriter(path) as writer:
        writer.write(rows(10))
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    (tmp_path / "t.parquet.tmp").symlink_to("/dev/full")

    def write() -> None:
        with StreamWriter(path) as writer:
            for number in range(100):
                writer.write(rows(100_000, number))

    with pytest.raises(UsageError, match=r"cannot write .*t\.parquet"):
        write()
    assert not path.exists()


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        StreamWriter(tmp_path / "absent" / "t.parquet")
