"""The figures of docs/dispatch-measurement.md: `python benchmarks/bench_dispatch.py [--quick] [--out DIR]`.

Prints Markdown; with ``--out`` also leaves JSON and Parquet of every cell and a plot per profile.  Ten minutes on two
cores; ``--quick`` takes one.  Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from lzero.dispatch.measure.bench import REFERENCE, BenchOptions, BenchResult, Cell, Row, run_bench
from lzero.dispatch.measure.build import DIRECT, PGO_SWITCH
from lzero.dispatch.measure.mitigations import MITIGATIONS
from lzero.dispatch.measure.results import head_lines, write_json, write_parquet, write_plot
from lzero.dispatch.measure.run import Effort
from lzero.dispatch.profiles import load_profile
from lzero.dispatch.strategies import STRATEGIES
from lzero.dispatch.toolchain import Compiler, find_compiler

STRATEGY_NAMES = (
    "table",
    "chain",
    "small_switch",
    "switch",
    "const_table_two_parse",
    "switch_if_nested",
    "range",
)
PROFILES = ("skewed", "nested", "bursty", "nested-bursty", "periodic", "uniform", "kvm-nested", "linux-boot")
FULL = Effort(layouts=4, processes=3, rounds={"plain": 11, "serialised": 5, "polluted": 3})
BRIEF = Effort(layouts=3, processes=2, rounds={"plain": 9})
QUICK = Effort(layouts=2, processes=1, rounds={"plain": 5, "serialised": 3, "polluted": 3})
QUICK_BRIEF = Effort(layouts=2, processes=1, rounds={"plain": 5})


def compilers() -> list[Compiler]:
    """gcc, and the newest clang there is: only clang 16 and later know kCFI."""
    found = [find_compiler(name) for name in ("gcc",) if shutil.which(name)]
    clang = next((name for name in ("clang-19", "clang-16", "clang") if shutil.which(name)), None)
    return [*found, *([find_compiler(clang)] if clang else [])]


def rows_of(cell: Cell, mode: str) -> dict[str, Row]:
    """Rows of one mode by candidate."""
    return {row.candidate: row for row in cell.rows if row.mode == mode}


def wide_table(results: list[BenchResult], which: int, mode: str) -> Iterator[str]:
    """Ticks over a direct call: strategies down, profiles across."""
    tables = {result.profile.name: rows_of(result.cells[which], mode) for result in results}
    tables = {name: rows for name, rows in tables.items() if rows}
    yield f"| extra ticks over a direct call, {mode} | {' | '.join(tables)} |"
    yield "|---|" + "---|" * len(tables)
    names = [name for name in next(iter(tables.values())) if name != DIRECT]
    for name in names:
        cells = []
        for rows in tables.values():
            row = rows[name]
            best = min(r.ticks for n, r in rows.items() if n != DIRECT)
            text = f"{row.extra.value:.1f}"
            cells.append(f"**{text}**" if row.ticks == best else text)
        yield f"| {name} | {' | '.join(cells)} |"
    direct = " | ".join(f"{rows[DIRECT].ticks:.1f}" for rows in tables.values())
    yield f"| *(direct call and handler, ticks)* | {direct} |"


def goal_table(results: list[BenchResult], which: int) -> Iterator[str]:
    """The plans against S2 and the profile-guided switches."""
    plans = [row for row in rows_of(results[0].cells[which], "plain") if row.startswith("planned-")]
    rivals = [name for name in rows_of(results[0].cells[which], "plain") if name.startswith(PGO_SWITCH)]
    yield f"| profile | plan | × S2 | {' | '.join(f'× {rival}' for rival in rivals)} | model, ticks | lower bound |"
    yield "|---|---|---|" + "---|" * (len(rivals) + 2)
    for result in results:
        cell = result.cells[which]
        rows = rows_of(cell, "plain")
        for plan in plans:
            row = rows[plan]
            made = next(p for p in cell.plans if p.strategy.name == plan)
            ratios = [str(row.over_reference), *(str(row.ratios[rival]) for rival in rivals)]
            bound = "–" if made.bound is None else f"{made.bound:.1f}"
            model = f"{made.expected.ticks:.1f} (measured {row.extra.value:.1f})"
            yield f"| {result.profile.name} | {plan} | {' | '.join(ratios)} | {model} | {bound} |"


def mitigation_table(results: list[BenchResult]) -> Iterator[str]:
    """One line per mitigation and compiler: calibrated prices, and what table, S2 and the best plan cost."""
    yield "| profile | compiler | mitigation | M | table price | table | S2 | tree | tree-table | tree-table × S2 |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for result in results:
        for cell in result.cells:
            name = Path(cell.compiler.path).name
            if cell.absent or cell.model is None:
                yield f"| {result.profile.name} | {name} | {cell.mitigation.name} | absent: {cell.absent} |||||||"
                continue
            rows = rows_of(cell, "plain")
            extra = [f"{rows[n].extra.value:.1f}" for n in ("table", REFERENCE, "planned-tree", "planned-tree-table")]
            model = cell.model
            price = f"{model.indirect:.1f} + {model.indirect_misprediction:.1f}·miss"
            best = rows["planned-tree-table"].over_reference
            yield (
                f"| {result.profile.name} | {name} | {cell.mitigation.name} | {model.misprediction:.1f} | {price} | "
                f"{' | '.join(extra)} | {best} |"
            )


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the effort: to see that it works")
    parser.add_argument("--out", type=Path, help="directory for JSON, Parquet and plots")
    options = parser.parse_args()
    full, brief = (QUICK, QUICK_BRIEF) if options.quick else (FULL, BRIEF)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    strategies = [STRATEGIES[name] for name in STRATEGY_NAMES]
    every = compilers()
    pgo = tuple(every)

    def measure(profile: str, mitigations: list[str], effort: Effort, label: str) -> BenchResult:
        result = run_bench(
            load_profile(profile),
            strategies,
            every,
            [MITIGATIONS[name] for name in mitigations],
            BenchOptions(
                effort=effort,
                pgo=pgo if label == "retpoline" else (),
                cachegrind=label == "retpoline" and profile == "skewed",
            ),
            lambda text: print(f"{profile}: {text}", file=sys.stderr),
        )
        if options.out is not None:
            stem = options.out / f"{profile}-{label}"
            write_json(result, stem.with_suffix(".json"))
            write_parquet(result, stem.with_suffix(".parquet"))
            write_plot(result, stem.with_suffix(".html"))
        return result

    began = datetime.now(UTC)
    retpoline = [measure(profile, ["retpoline"], full, "retpoline") for profile in PROFILES]
    others = [name for name in MITIGATIONS if name != "retpoline"]
    rest = [measure(profile, others, brief, "mitigations") for profile in ("skewed", "nested")]
    print(
        f"Measured {began:%Y-%m-%d %H:%M} to {datetime.now(UTC):%H:%M} UTC by `python benchmarks/bench_dispatch.py`.\n"
    )
    print("```")
    for line in head_lines(retpoline[0]):
        print(line)
    print("```")
    for which, compiler in enumerate(every):
        model = retpoline[0].cells[which].model
        print(f"\n### {compiler.version}, retpoline\n")
        print(f"Prices: {model.describe() if model else '–'}\n")
        for mode in full.rounds:
            print("\n".join(wide_table(retpoline, which, mode)), "\n")
        print("\n".join(goal_table(retpoline, which)), "\n")
        cell = retpoline[0].cells[which]
        sizes = ", ".join(f"{name} {size}" for name, size in cell.text_bytes.items())
        print(f"Bytes of code, constants and tables (skewed): {sizes}.\n")
        if cell.counts:
            print("| cachegrind, skewed, per exit over direct | instructions | conditional branches | mispredicted |")
            print("|---|---|---|---|")
            for name, c in cell.counts.items():
                print(f"| {name} | {c.instructions:.2f} | {c.conditional:.2f} | {c.conditional_missed:.3f} |")
        for result in retpoline:
            for kind in (result.cells[which].missing, result.cells[which].order_faults):
                for name, why in kind.items():
                    print(f"\n{result.profile.name}, {name}: {why}")
    print("\n### Other mitigations, plain mode, extra ticks over a direct call\n")
    print("\n".join(mitigation_table(rest)))


if __name__ == "__main__":
    main()
