"""The shadow plan: chosen where it pays, compared with KVM's set, emitted in both forms, checked on a machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lzero.cli.shadow_verify
from lzero.cli import main
from lzero.errors import PlanError, UsageError
from lzero.result import Ended, RunResult
from lzero.sdm.vmcs_fields import Field
from lzero.trace.aggregates import Aggregates
from lzero.trace.recorder import Recorder
from lzero.trace.shadow import Costs, Mode, ShadowSet, kernel_list, kvm_set, plan_shadow, plan_table, plan_toml

CPUID, VMREAD, VMWRITE, VMRESUME = 10, 23, 25, 24


def record(recorder: Recorder, rounds: int = 100, shadow: ShadowSet | None = None) -> Aggregates:
    """L2 CPUIDs; L1 reads EXIT_REASON and GUEST_RIP, writes GUEST_RIP, and once in fifty rounds reads TSC_OFFSET."""
    shadow = shadow or ShadowSet(frozenset(), frozenset())
    seq = 0
    for number in range(rounds):
        parent = seq
        recorder.record(seq, -1, 0, 2, CPUID, 0, 0, 2, 0, 0, 0, -1, 0, seq, 5, 2)
        accesses = [(VMREAD, Field.EXIT_REASON), (VMREAD, Field.GUEST_RIP), (VMWRITE, Field.GUEST_RIP)]
        if number % 50 == 0:
            accesses += [(VMREAD, Field.TSC_OFFSET), (VMREAD, Field.TSC_OFFSET + 1)]
        for reason, field in accesses:
            seq += 1
            mode = shadow.mode(int(field))
            served = mode is Mode.READ_WRITE or mode is Mode.READ_ONLY and reason == VMREAD
            recorder.record(seq, parent, 0, 1, reason, 0, 0, 3, 0, 0, 0, int(field), 0, seq, 5, 0 if served else 1)
        seq += 1
        recorder.record(seq, parent, 0, 1, VMRESUME, 0, 0, 3, 0, 0, 0, -1, 0, seq, 5, 1)
        seq += 1
    return recorder.aggregates


def test_fields_that_pay_are_chosen_and_rare_ones_are_not() -> None:
    plan = plan_shadow(record(Recorder()), Costs.load())
    assert plan.chosen.read_only == {Field.EXIT_REASON}
    assert plan.chosen.read_write == {Field.GUEST_RIP}
    assert (plan.accesses, plan.removed(plan.chosen), plan.syncs) == (304, 300, 100)
    assert plan.saved_cycles(plan.chosen) == 300 * 1900 - 2 * 100 * 1000
    use = next(use for use in plan.uses if use.encoding == Field.TSC_OFFSET)
    assert (use.reads, use.writes) == (4, 0)


def test_plan_is_the_best_of_all_sets() -> None:
    """Brute force over every mode of every field used."""
    plan = plan_shadow(record(Recorder()), Costs.load())
    fields = [use.encoding for use in plan.uses]
    best = 0.0
    for number in range(3 ** len(fields)):
        modes = [number // 3**place % 3 for place in range(len(fields))]
        shadow = ShadowSet(
            frozenset(field for field, mode in zip(fields, modes, strict=True) if mode == 1),
            frozenset(field for field, mode in zip(fields, modes, strict=True) if mode == 2),
        )
        best = max(best, plan.saved_cycles(shadow))
    assert plan.saved_cycles(plan.chosen) == best


def test_kvm_set_is_the_one_of_the_facts() -> None:
    shadow = kvm_set()
    assert Field.GUEST_RIP in shadow.read_write and Field.EXIT_REASON in shadow.read_only
    assert plan_shadow(record(Recorder()), Costs.load()).removed(shadow) == 300


def test_emitted_forms_read_back(tmp_path: Path) -> None:
    plan = plan_shadow(record(Recorder()), Costs.load())
    assert kernel_list(plan.chosen) == (
        "SHADOW_FIELD_RO(VM_EXIT_REASON, vm_exit_reason)\n\nSHADOW_FIELD_RW(GUEST_RIP, guest_rip)\n"
    )
    path = tmp_path / "plan.toml"
    path.write_text(plan_toml(plan))
    assert ShadowSet.load(path) == plan.chosen
    assert "planned set:   2 fields, 300 exits fewer (98.7 %)" in plan_table(plan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "no TOML"),
        ("[other]\n", "has no table"),
        ('[shadow]\nread_only = ["NOPE"]\n', "no VMCS field"),
        ('[shadow]\nread_only = ["GUEST_RIP"]\nread_write = ["GUEST_RIP"]\n', "listed twice: GUEST_RIP"),
    ],
)
def test_bad_field_lists_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "f.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        ShadowSet.load(path)


@pytest.mark.parametrize(
    "text", ["", "[exit]\ncycles = 1\n", "[exit]\ncycles = -1\n[sync]\ncycles = 1\n", "exit = 3\n"]
)
def test_bad_costs_say_what_is_wrong(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"c\.toml"):
        Costs.load(path)


def test_trace_without_fields_gives_no_plan() -> None:
    with pytest.raises(PlanError, match="lzero run --record"):
        plan_shadow(Aggregates(), Costs.load())


def test_command_plans_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.parquet"
    with Recorder(path) as recorder:
        record(recorder)
    assert main(["shadow", "plan", str(path)]) == 0
    assert "300 exits fewer" in capsys.readouterr().out
    assert main(["shadow", "plan", str(path), "--emit", "toml", "-o", str(tmp_path / "p.toml")]) == 0
    assert ShadowSet.load(tmp_path / "p.toml").read_write == {Field.GUEST_RIP}


def test_verify_compares_predicted_with_observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_shadow(record(Recorder()), Costs.load())
    path = tmp_path / "plan.toml"
    path.write_text(plan_toml(plan))

    def run(image: Path, arguments: list[str], shadow: str, choices: object) -> RunResult:
        chosen = None if shadow == "off" else ShadowSet.load(Path(shadow))
        return RunResult(Ended.POWER_OFF, aggregates=record(Recorder(), shadow=chosen))

    monkeypatch.setattr(lzero.cli.shadow_verify, "_run", run)
    text = lzero.cli.shadow_verify.verify_plan(Path("l1.elf"), [], path, None, "")
    assert "exits removed: predicted 300, observed 300 (+0.00 %)" in text


def test_plan_holds_on_the_machine(tmp_path: Path) -> None:
    """The closed loop: record the bundled L1, plan, run it again with the plan; nothing but chance may differ."""
    recording = tmp_path / "t.parquet"
    image = Path("guest:l1_roundtrip")
    assert main(["run", str(image), "count=200", "--quiet", "--record", str(recording)]) == 1
    assert main(["shadow", "plan", str(recording), "--emit", "toml", "-o", str(tmp_path / "plan.toml")]) == 0
    text = lzero.cli.shadow_verify.verify_plan(image, ["count=200"], tmp_path / "plan.toml", None, "")
    found = re.search(r"predicted (\d+), observed (\d+)", text)
    assert found is not None
    predicted, observed = int(found[1]), int(found[2])
    assert predicted > 400 and abs(observed - predicted) <= predicted // 100
