"""The same table from a Dask cluster: a real scheduler and two workers on this machine."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lzero.cli import main
from lzero.errors import ToolError
from textwriter import nested_events, render

pytest.importorskip("distributed", reason="the cluster extra is not installed")


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """Address of a scheduler with two workers, all processes of their own."""
    log = (tmp_path / "scheduler.log").open("wb")
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--no-show"]
    processes = [subprocess.Popen([*command, "--host", "127.0.0.1"], stdout=log, stderr=log)]
    address = None
    deadline = time.monotonic() + 60
    while address is None and time.monotonic() < deadline:
        address = re.search(r"Scheduler at:\s+(tcp://\S+)", (tmp_path / "scheduler.log").read_text())
        time.sleep(0.1)
    assert address is not None, (tmp_path / "scheduler.log").read_text()
    for _ in range(2):
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address[1], "--nthreads", "1", "--no-dashboard"]
        processes.append(
            subprocess.Popen([*worker, "--no-nanny", "--local-directory", str(tmp_path)], stdout=log, stderr=log)
        )
    yield address[1]
    for process in processes:
        process.terminate()
        process.wait()
    log.close()


def test_table_of_a_folder_is_the_same_from_the_cluster(
    scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_bytes(render(nested_events(50 + number)))
    for options in ([], ["--by", "rip"], ["-f", "level=1,2", "-f", "reason!=VMREAD"]):
        assert main(["trace", "show", str(folder), *options]) == 0
        here = capsys.readouterr().out
        assert main(["trace", "show", str(folder), *options, "--scheduler", scheduler]) == 0
        assert capsys.readouterr().out == here
    assert "CPUID" in here


def test_unreachable_scheduler_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(render(nested_events(1)))
    assert main(["trace", "show", str(tmp_path / "a"), "--scheduler", "tcp://127.0.0.1:1"]) == ToolError.exit_status
    assert "no Dask scheduler at tcp://127.0.0.1:1" in capsys.readouterr().err
