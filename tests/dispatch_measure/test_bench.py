"""The benchmark end to end, small: built, run, reduced, written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars
import pytest

from lzero.cli import main
from lzero.dispatch.measure.bench import BenchOptions, BenchResult, run_bench
from lzero.dispatch.measure.build import (
    DIRECT,
    GCC_PROFILE_USE,
    PGO_SWITCH,
    build_program,
    candidate_symbol,
    write_order,
)
from lzero.dispatch.measure.cachegrind import count_branches, valgrind_available
from lzero.dispatch.measure.calibrate import calibrate
from lzero.dispatch.measure.host import describe_host
from lzero.dispatch.measure.mitigations import MITIGATIONS
from lzero.dispatch.measure.results import (
    cell_tables,
    head_lines,
    summary_lines,
    to_json,
    write_json,
    write_parquet,
    write_plot,
)
from lzero.dispatch.measure.run import Effort, measure_programs
from lzero.dispatch.object_code import ObjectCode
from lzero.dispatch.profiles import SYNTHETIC
from lzero.dispatch.strategies import STRATEGIES
from lzero.dispatch.toolchain import Compiler, find_compiler, installed_compilers
from lzero.errors import PlanError, ToolError, UsageError

pytestmark = pytest.mark.skipif(not installed_compilers(), reason="no C compiler installed")

SHORT = BenchOptions(length=32768, effort=Effort(2, 1, {"plain": 3, "serialised": 2, "polluted": 2}))
SOME = [STRATEGIES[name] for name in ("table", "chain", "const_table_two_parse", "range")]


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Prices measured under test must not become the user's."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def _compiler() -> Compiler:
    return installed_compilers()[0]


def test_bench_measures_and_writes(tmp_path: Path) -> None:
    options = replace(SHORT, pgo=installed_compilers())
    result = run_bench(SYNTHETIC["skewed"].make(), SOME, [_compiler()], [MITIGATIONS["retpoline"]], options)
    (cell,) = result.cells
    plain = {row.candidate: row for row in cell.rows if row.mode == "plain"}
    assert {DIRECT, "table", "chain", "planned-tree", "planned-tree-table", "planned-chain"} <= plain.keys()
    # Only what no noise can hide: a retpoline per exit costs more than a direct call.
    assert plain["table"].extra.value > 3
    assert plain["table"].over_direct.low > 1
    assert plain["chain"].over_reference.value == 1.0
    assert cell.order_faults == {}
    assert cell.missing == {}
    for compiler in installed_compilers():
        assert f"{PGO_SWITCH}-{Path(compiler.path).name}" in plain
    assert [table.row_count for table in cell_tables(cell)] == [len(plain)] * 3
    assert any("planned-tree, time as a multiple of S2" in line for line in summary_lines(cell))
    write_json(result, tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(to_json(result)))
    write_parquet(result, tmp_path / "bench.parquet")
    passes = polars.read_parquet(tmp_path / "bench.parquet")
    assert passes.filter(mode="plain", candidate="table").height == 2 * 3
    write_plot(result, tmp_path / "bench.html")
    assert "planned-tree" in (tmp_path / "bench.html").read_text()


@pytest.mark.parametrize("mitigation", sorted(MITIGATIONS))
@pytest.mark.parametrize("name", ["gcc", "clang", "clang-16"])
def test_every_mitigation_is_built_for_real(name: str, mitigation: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    compiler, chosen = find_compiler(name), MITIGATIONS[mitigation]
    try:
        build = build_program(compiler, chosen, SOME, tmp_path)
    except ToolError as error:
        assert mitigation == "kcfi"
        assert "lacks -fsanitize=kcfi" in str(error)
        pytest.skip(str(error))
    order = write_order(SYNTHETIC["nested"].make().sequence(32768), tmp_path / "order.bin")
    measured = measure_programs(build.programs, order, Effort(1, 1, {"plain": 1}), exits=32768)
    assert measured.samples["plain", "table"].shape == (1, 1)
    text = ObjectCode(tmp_path / f"{candidate_symbol('table')}.o").disassembly(candidate_symbol("table"))
    calls_thunk = "__x86_indirect_thunk" in text
    assert calls_thunk == (mitigation in ("retpoline", "lfence", "its"))
    if mitigation in ("none", "patched"):
        assert any(f"jmp {register}" in text for register in ("rax", "rcx", "rdx", "r11")) or "jmp qword ptr" in text


def test_unexpected_exits_do_not_pass_silently(tmp_path: Path) -> None:
    build = build_program(_compiler(), MITIGATIONS["none"], SOME, tmp_path)
    order = SYNTHETIC["skewed"].make().sequence(32768).copy()
    order[20000] = 17
    path = write_order(order, tmp_path / "order.bin")
    with pytest.raises(ToolError, match="unexpected exit 17"):
        measure_programs(build.programs, path, Effort(1, 1, {"plain": 1}), exits=len(order))


def test_short_sequences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too few"):
        measure_programs([], tmp_path, Effort(1, 1, {"plain": 1}), exits=1000)


def test_two_candidates_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two candidates are named chain"):
        run_bench(SYNTHETIC["skewed"].make(), [SOME[1], SOME[1]], [], [], SHORT)


def test_absent_mitigation_is_a_result_not_an_error(tmp_path: Path) -> None:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    profile = SYNTHETIC["skewed"].make()
    result = run_bench(profile, SOME, [find_compiler("gcc")], [MITIGATIONS["kcfi"]], SHORT)
    assert "lacks -fsanitize=kcfi" in result.cells[0].absent
    with pytest.raises(ToolError, match="nothing could be measured"):
        write_parquet(result, tmp_path / "bench.parquet")
    assert not list(tmp_path.iterdir())


def test_calibration_finds_a_retpoline_dear_and_a_comparison_cheap() -> None:
    model = calibrate(_compiler(), MITIGATIONS["retpoline"])
    assert model.comparison < 5 < model.indirect
    assert model.misprediction > 2 * model.comparison
    assert "calibrated on" in model.source


@pytest.mark.skipif(not valgrind_available(), reason="valgrind is not installed")
def test_cachegrind_counts_repeat_exactly(tmp_path: Path) -> None:
    build = build_program(_compiler(), MITIGATIONS["retpoline"], SOME[:2], tmp_path)
    order = write_order(SYNTHETIC["periodic"].make().sequence(4096), tmp_path / "order.bin")
    first = count_branches(build.programs[0], order, 4096, tmp_path)
    assert first == count_branches(build.programs[0], order, 4096, tmp_path)
    # Five of sixteen exits of the period fall through all six tests of S2's; most stop at the first.
    assert 1 < first["chain"].conditional < 8


def test_command_line_reports_bad_names_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in (
        (["--profile", "skewd"], UsageError.exit_status),
        (["--mitigation", "retpolin"], UsageError.exit_status),
        (["--cc", "tcc-of-nowhere"], ToolError.exit_status),
        (["--mode", "hot"], UsageError.exit_status),
        (["--length", "100"], UsageError.exit_status),
        (["chian"], UsageError.exit_status),
        (["--json", "/nowhere/at/all.json"], UsageError.exit_status),
    ):
        assert main(["dispatch", "bench", *arguments]) == status
        message = capsys.readouterr().err
        assert message.startswith("lzero: error: ")
        assert "Traceback" not in message


def test_command_line_plans_and_measures_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    assert main(["dispatch", "plan", "skewed", "nested", "--prices=reference", "-o", str(plan)]) == 0
    shown = capsys.readouterr().out
    assert "lower bound, any two-way tests" in shown
    assert "Under other profiles" in shown
    results = tmp_path / "bench.json"
    arguments = ["chain", str(plan), "--no-plans", "--no-pgo", "--mode=plain", "--rounds=2", "--length=32768"]
    arguments += ["--layouts=1", "--processes=1", "--json", str(results)]
    assert main(["dispatch", "bench", *arguments]) == 0
    rows = json.loads(results.read_text())["cells"][0]["rows"]
    assert [row["candidate"] for row in rows] == [DIRECT, "chain", "planned"]


def test_plan_from_bad_input_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = tmp_path / "counts.csv"
    plan = tmp_path / "plan.json"
    for text in ("", "17,5\n", "70000,1\n"):
        counts.write_text(text)
        assert main(["dispatch", "plan", str(counts), "--prices=reference", "-o", str(plan)]) == PlanError.exit_status
        assert "counts" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == [counts]
    prices = tmp_path / "prices.json"
    prices.write_text("[]")
    assert main(["dispatch", "plan", "skewed", f"--prices={prices}"]) == PlanError.exit_status
    assert main(["dispatch", "plan", "skewed", "--prices=nowhere"]) == UsageError.exit_status


@pytest.mark.parametrize(
    ("skip_own_check", "complaint"), [(False, "left no"), (True, "profile count data file not found")]
)
def test_gcc_profile_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip_own_check: bool, complaint: str
) -> None:
    """Left to itself gcc compiles without the profile, and the baseline is a plain switch under a grander name."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    monkeypatch.setattr("lzero.dispatch.measure.build._train", lambda _command, _environment: None)
    if skip_own_check:
        monkeypatch.setattr("lzero.dispatch.measure.build._GccProfile.use", lambda _self: list(GCC_PROFILE_USE))
    compiler = find_compiler("gcc")
    order = SYNTHETIC["skewed"].make().sequence(32768)
    build = build_program(compiler, MITIGATIONS["retpoline"], [], tmp_path, training=order, pgo=[compiler])
    assert complaint in build.absent[f"{PGO_SWITCH}-gcc"]


def test_short_recording_is_measured_with_a_caution(tmp_path: Path) -> None:
    counted = BenchResult(describe_host(), SYNTHETIC["bursty"].make(1000), SHORT, ())
    assert any(line.startswith("CAUTION: the recording has only 1000 exits") for line in head_lines(counted))
    assert not any("CAUTION" in line for line in head_lines(replace(counted, profile=SYNTHETIC["bursty"].make())))
