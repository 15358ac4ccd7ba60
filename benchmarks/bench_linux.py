#!/usr/bin/env python3
"""Debian's kernel to /init, its tasks, and power-off: lzero against QEMU's TCG, in one run.

Same kernel, same initramfs, same command line; lines of the console are timed on the host as they
come. Needs `qemu-system-x86_64` for the comparison and a fetched kernel (scripts/fetch-debian-kernel).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from guestkit import debian, initramfs  # noqa: E402  (the scripts' package is found through the line above)

TASKS = ("fork200", "syscalls", "md5", "shloop", "gzip")
TARGETS = {"to init": 1.5, "power off": 1.5, "syscalls": 4.0}


def console_times(command: list[str], seconds: float) -> dict[str, float]:
    """Host seconds: from the start to /init's first line, of each task, and until the process ended."""
    started = perf_counter()
    times: dict[str, float] = {}
    begun: dict[str, float] = {}
    lines: list[str] = []
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace", **quiet) as process:
        assert process.stdout is not None
        for line in process.stdout:
            now = perf_counter() - started
            lines.append(line)
            words = line.split()
            if now > seconds:
                process.kill()
            if line.startswith("lzero: init on"):
                times["to init"] = now
            elif len(words) >= 3 and words[0] == "lzero:" and words[2] == "begin":
                begun[words[1]] = now
            elif len(words) >= 4 and words[0] == "lzero:" and words[2] == "end" and words[3] == "0":
                times[words[1]] = now - begun[words[1]]
    times["power off"] = perf_counter() - started
    if "to init" not in times:
        raise SystemExit(f"{command[0]} did not reach /init: {''.join(lines[-5:])}")
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated, or nothing (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300, help="stop a machine after this time")
    options = parser.parse_args()
    try:
        files = debian.fetch()
    except debian.FetchError as error:
        raise SystemExit(f"no Debian kernel: {error}") from None
    append = "console=ttyS0 quiet" + (f" lz.task={options.tasks}" if options.tasks else "")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "initramfs.cpio"
        archive.write_bytes(initramfs.make(files))
        commands = {
            "lzero": [sys.executable, "-m", "lzero", "run", str(files.kernel), "--initrd", str(archive)]
            + ["--append", append, "--memory", "256M", "--quiet"],
            "qemu": ["qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-display", "none", "-serial", "stdio"]
            + ["-monitor", "none", "-no-reboot", "-kernel", str(files.kernel), "-initrd", str(archive)]
            + ["-append", append],
        }
        if shutil.which("qemu-system-x86_64") is None:
            sys.stderr.write("qemu-system-x86_64 is not installed: lzero alone\n")
            del commands["qemu"]
        best: dict[str, dict[str, float]] = {name: {} for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                for what, seconds in console_times(command, options.seconds).items():
                    best[name][what] = min(seconds, best[name].get(what, seconds))
    sys.stdout.write("| what | lzero, s | QEMU TCG, s | ratio | target |\n|---|---|---|---|---|\n")
    for what, seconds in best["lzero"].items():
        other = best.get("qemu", {}).get(what)
        shown = f"{other:.2f} | {seconds / other:.2f}" if other else "– | –"
        sys.stdout.write(f"| {what} | {seconds:.2f} | {shown} | ≤ {TARGETS.get(what, 2.0)} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
