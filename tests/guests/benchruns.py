"""Short runs of the benchmark guests: name, options, and the iterations that the guest reports."""

from __future__ import annotations

BENCH_RUNS = (
    ("bench_cpuid", ("count=1000",), 1000),
    ("bench_integer", ("count=1000",), 1000),
    ("bench_memory", ("count=3", "kib=64"), 3 * 64 * 128),
    ("bench_stores", ("count=1000",), 1000),
    ("bench_syscall", ("count=1000",), 1000),
)
