"""Events to rows: durations, levels, parents, whatever the batches and however VCPUs interleave."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lzero.trace.aggregates import Aggregates, add_rows
from lzero.trace.assemble import Assembler
from lzero.trace.readers.binary.native import native_totals
from lzero.trace.readers.events import Diagnosis, EventKind, event_dtype
from lzero.trace.readers.fastlines import parse_chunk
from lzero.trace.schema import numpy_dtype
from lzero.trace.table import causes_lines
from textwriter import Event, nested_events, render


def to_events(events: list[Event]) -> np.ndarray:
    result = parse_chunk(render(sorted(events, key=lambda event: event.time_ns), "perf-ns"))
    assert not result.leftovers
    return result.events


def assemble(events: np.ndarray, batch: int = 10**9) -> tuple[np.ndarray, Diagnosis]:
    diagnosis = Diagnosis("test")
    assembler = Assembler(diagnosis)
    parts = [assembler.feed(events[start : start + batch]) for start in range(0, len(events), batch)]
    rows = np.concatenate([np.zeros(0, numpy_dtype()), *parts, assembler.finish()])
    return rows[np.argsort(rows["seq"], kind="stable")], diagnosis


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 13, 1000])
def test_nested_levels_parents_and_durations(batch: int) -> None:
    rows, diagnosis = assemble(to_events(list(nested_events(20))), batch)
    assert rows["level"].tolist() == [2, 1, 1, 1, 1] * 20
    assert rows["handled_by"].tolist() == [2, 1, 1, 1, 1] * 20
    assert rows["parent"].tolist() == [seq for n in range(20) for seq in (-1, *[5 * n] * 4)]
    assert set(rows["parent_reason"].tolist()) == {-1, 10}
    assert set(rows["duration_ns"].tolist()) == {2000}
    assert not diagnosis.problems
    aggregates = Aggregates()
    add_rows(aggregates, rows)
    assert causes_lines(aggregates)[-1].split()[:4] == ["CPUID", "20", "2.00", "1.00"]


@pytest.mark.parametrize("batch", [1, 4, 9, 1000])
def test_interleaved_vcpus_and_machines_do_not_mix(batch: int) -> None:
    events = [
        *nested_events(10, 0, 10**9, 100),
        *nested_events(10, 1, 10**9 + 137, 101),
        *nested_events(10, 0, 10**9 + 501, 200),
    ]
    rows, _ = assemble(to_events(events), batch)
    for thread in (100, 101, 200):
        mine = rows[rows["thread"] == thread]
        assert mine["level"].tolist() == [2, 1, 1, 1, 1] * 10
        assert set(mine["duration_ns"].tolist()) == {2000}
        parents = mine[mine["level"] == 2]["seq"]
        assert mine[mine["level"] == 1]["parent"].tolist() == np.repeat(parents, 4).tolist()


def test_without_inject_events_the_next_exit_tells_reflection() -> None:
    events = [event for event in nested_events(5) if event.name in ("kvm_exit", "kvm_entry", "kvm_nested_vmexit")]
    rows, _ = assemble(to_events(events))
    assert rows["handled_by"].tolist() == [2, 1, 1, 1, 1] * 5


def test_fast_path_exit_of_l2_has_no_nested_event() -> None:
    events = [
        Event("kvm_nested_vmenter", 1000), Event("kvm_entry", 1100), Event("kvm_exit", 2000, reason="PREEMPTION_TIMER"),
        Event("kvm_entry", 2500), Event("kvm_exit", 3000, reason="VMREAD"), Event("kvm_entry", 3500),
    ]  # fmt: skip
    rows, _ = assemble(to_events(events))
    assert rows["level"].tolist() == [2, 1]


@pytest.mark.parametrize(("reason", "level"), [("VMREAD", 1), ("vmrun", 1), ("vmload", 1), ("npf", 2), ("HLT", 2)])
def test_only_l1_executes_vmx_and_svm_instructions_for_itself(reason: str, level: int) -> None:
    events = to_events([Event("kvm_nested_vmenter", 1000), Event("kvm_exit", 2000, reason=reason)])
    rows, _ = assemble(events)
    assert rows["level"].tolist() == [level]
    totals = native_totals(lambda: iter([events]), Diagnosis("test"))
    assert totals is None or totals.levels() == [level]


def test_exit_without_entry_has_no_duration_and_the_last_exit_is_kept() -> None:
    rows, _ = assemble(
        to_events([Event("kvm_exit", 1000), Event("kvm_exit", 2000), Event("kvm_entry", 2600), Event("kvm_exit", 3000)])
    )
    assert rows["duration_ns"].tolist() == [0, 600, 0]


def test_backward_clock_is_counted_and_gives_no_duration() -> None:
    events = np.concatenate([to_events([Event("kvm_exit", 5000)]), to_events([Event("kvm_entry", 4000)])])
    rows, diagnosis = assemble(events)
    assert rows["duration_ns"].tolist() == [0]
    assert diagnosis.problems == {"clock goes backwards": 1}


def test_recording_without_vcpu_numbers_uses_threads() -> None:
    text = b"".join(
        f"a {thread} [001] 1.{n:06d}: kvm:kvm_exit: reason HLT rip 0x1 info 0 0\n".encode()
        for n, thread in enumerate([50, 51, 50])
    )
    rows, _ = assemble(parse_chunk(text).events)
    assert rows["vcpu"].tolist() == [0, 1, 0]


def test_endless_entries_do_not_grow_memory() -> None:
    events = to_events([Event("kvm_exit", 1000)] + [Event("kvm_entry", 2000 + n) for n in range(5000)])
    assembler = Assembler(Diagnosis("test"))
    for start in range(0, len(events), 100):
        assembler.feed(events[start : start + 100])
    assert all(len(vcpu.waiting) < 20 for vcpu in assembler._vcpus.values())
    assert assembler.finish()["duration_ns"].tolist() == [1000]


def test_no_events_no_rows() -> None:
    rows, _ = assemble(np.zeros(0, event_dtype()))
    assert len(rows) == 0


REASONS = (10, 12, 23, 24, 25, 48)  # CPUID, HLT, VMREAD, VMRESUME, VMWRITE, EPT_VIOLATION
one_event = st.tuples(
    st.sampled_from(EventKind),
    st.sampled_from([1, 1, 1, 2]),  # isa
    st.sampled_from([-1, 7, 8]),  # thread
    st.sampled_from([-1, 0, 3]),  # vcpu
    st.integers(-3, 40),  # how far the clock moves
    st.sampled_from(REASONS),
)


def random_events(drawn: list[tuple[int, ...]]) -> np.ndarray:
    events = np.zeros(len(drawn), event_dtype())
    time = 1000
    for event, (kind, isa, thread, vcpu, step, reason) in zip(events, drawn, strict=True):
        time += step
        event["kind"], event["isa"], event["thread"], event["vcpu"], event["cpu"] = kind, isa, thread, vcpu, -1
        event["time_ns"] = time
        if kind == EventKind.EXIT:
            event["reason"] = reason
    return events


def cut(events: np.ndarray, places: list[int]) -> Iterator[np.ndarray]:
    borders = sorted({0, len(events), *(place % (len(events) + 1) for place in places)})
    for start, end in zip(borders, borders[1:], strict=False):
        yield events[start:end]


@settings(max_examples=400, deadline=None)
@given(st.lists(one_event, max_size=120), st.lists(st.integers(0, 10**6), max_size=60))
def test_batches_change_nothing(drawn: list[tuple[int, ...]], places: list[int]) -> None:
    events = random_events(drawn)
    whole, diagnosis = assemble(events)
    cut_diagnosis = Diagnosis("test")
    assembler = Assembler(cut_diagnosis)
    parts = [assembler.feed(part) for part in cut(events, places)]
    rows = np.concatenate([np.zeros(0, numpy_dtype()), *parts, assembler.finish()])
    assert rows[np.argsort(rows["seq"], kind="stable")].tolist() == whole.tolist()
    assert cut_diagnosis.problems == diagnosis.problems
    aggregates = Aggregates()
    add_rows(aggregates, whole)
    totals = native_totals(lambda: cut(events, places), Diagnosis("test"))
    assert totals is None or totals == aggregates


def test_a_late_nested_event_of_the_exit_after_next_does_not_make_a_reflection() -> None:
    # The batch ends between an exit of L2 and the event that says so: the exit before it was not reflected.
    events = to_events([
        Event("kvm_exit", 1000), Event("kvm_nested_vmexit", 1100), Event("kvm_entry", 1200),
        Event("kvm_exit", 2000), Event("kvm_nested_vmexit", 2100), Event("kvm_entry", 2200),
    ])  # fmt: skip
    for batch in (4, 6):
        assert assemble(events, batch)[0]["handled_by"].tolist() == [1, 1]
