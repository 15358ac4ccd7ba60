#!/usr/bin/env python3
"""What nesting costs: L2 → L1 → L2 round trips, EPT violations, L2's speed between exits, guest RAM.

Start-up is taken off by a second run with one iteration; ratios are taken within one run of this program.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable

from lzero import Machine
from lzero.result import RunResult
from lzero.trace.names import reason_name


def run(image: str, *options: str, memory: str = "64M", shadow_vmcs: str = "off") -> RunResult:
    """One run of a bundled guest that must end well."""
    console = io.BytesIO()
    machine = Machine(
        f"guest:{image}", options, memory=memory, quiet=True, console=console, nested=True, shadow_vmcs=shadow_vmcs
    )
    result = machine.run()
    if result.debug_exit != 0:
        raise SystemExit(f"{image} {' '.join(options)}: {result.ended} {result.message} {console.getvalue().decode()}")
    return result


def net_seconds(image: str, options: Iterable[str], count: int, rounds: int, **choices: str) -> float:
    """Host seconds of `count` iterations without start-up, the best of several rounds."""
    words = tuple(options)
    return min(
        run(image, *words, f"count={count}", **choices).host_seconds
        - run(image, *words, "count=1", **choices).host_seconds
        for _ in range(rounds)
    )


def cost_split(result: RunResult) -> str:
    """Mean microseconds of each kind of exit between its exit and the next entry."""
    rows = ["| level | exit | count | mean, µs |", "|---|---|---|---|"]
    for (level, reason), totals in sorted(result.aggregates.exits.items()):
        if totals.count > 10:
            rows.append(f"| L{level} | {reason_name(reason)} | {totals.count} | {totals.mean_ns / 1000:.1f} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=20_000, help="round trips")
    parser.add_argument("--large", default="4G", help="guest RAM to compare with 64M")
    options = parser.parse_args()
    write, rounds, count = sys.stdout.write, options.rounds, options.count

    write("| what | value | target |\n|---|---|---|\n")
    for shadow in ("off", "default"):
        rate = count / net_seconds("l1_roundtrip", (), count, rounds, shadow_vmcs=shadow)
        write(f"| round trips/s, shadow VMCS {shadow} | {rate:,.0f} | ≥ 10,000 |\n")
    small = count / net_seconds("l1_roundtrip", (), count, rounds)
    large = count / net_seconds("l1_roundtrip", (), count, rounds, memory=options.large)
    write(f"| round trips/s with {options.large} of RAM against 64M | {large / small:.2f} | ≥ 0.9 |\n")
    pages = count // 2
    rate = 2 * pages / net_seconds("l1", ("run=ept",), pages, rounds)
    write(f"| EPT violations/s | {rate:,.0f} | – |\n")
    for loop, iterations in (("integer", 100_000_000), ("stores", 10_000_000)):
        in_l1 = net_seconds("l1", (f"run={loop}", "where=l1"), iterations, rounds)
        in_l2 = net_seconds("l1", (f"run={loop}",), iterations, rounds)
        write(f"| {loop} loop, L2 against L1 | {in_l2 / in_l1:.2f} | ≤ 1.1 |\n")
    write("\n" + cost_split(run("l1_roundtrip", f"count={count}")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
