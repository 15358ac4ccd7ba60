"""Host trace events to rows: each exit with the time to its next entry, its level, and the L2 exit it was caused by.

Per VCPU (told apart by host thread, or by number where the recording has no threads) the events after an exit say
what it was:

* ``kvm_nested_vmexit``: the exit was of L2. Without it, an exit between ``kvm_nested_vmenter`` and a reflection is of
  L2 too (KVM's fast path handles some exits before it would trace them), unless its reason is a VMX or SVM
  instruction, which only L1 executes there.
* ``kvm_nested_vmexit_inject``, or simply that the next exit is L1's: the exit was reflected.
* ``kvm_entry``: the time to it is the exit's duration.

From a reflected L2 exit until L2's next one, L1's exits are its children. The machine's own recording uses the same
rule. How a recording is cut into batches changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lzero.trace.readers.events import Diagnosis, EventKind, event_dtype
from lzero.trace.schema import HandledBy, numpy_dtype

__all__ = ["Assembler"]

Array = np.ndarray[Any, Any]

# By basic reason, whether it is an instruction of the extension.
_VMX_INSTRUCTION: Final = np.zeros(1 << 16, dtype=bool)
_VMX_INSTRUCTION[[19, 20, 21, 22, 23, 24, 25, 26, 27, 50, 53]] = True  # VMCLEAR to VMON, INVEPT, INVVPID
_SVM_INSTRUCTION: Final = np.zeros(1 << 16, dtype=bool)
_SVM_INSTRUCTION[[0x80, 0x82, 0x83, 0x84, 0x85]] = True  # VMRUN, VMLOAD, VMSAVE, STGI, CLGI
_NPF: Final = 0x400
_EPT_VIOLATION: Final = 48
_EPT_MISCONFIG: Final = 49
_STATE_UNKNOWN, _STATE_L1, _STATE_L2 = -1, 1, 2
# An exit's level is settled when the next exit comes, and whether it was reflected when the next one's level is.
_HELD_BACK: Final = 2
_WAITING: Final = 16  # events of held-back exits above which those that tell nothing new are dropped


@dataclass(slots=True)
class _Vcpu:
    """What is known of one VCPU between batches: at the first event of `waiting`."""

    number: int
    waiting: Array  # its last exits and what followed, until further exits tell the rest
    waiting_seqs: Array
    state: int = _STATE_UNKNOWN
    parent_seq: int = -1
    parent_reason: int = -1
    last_time: int = 0


class Assembler:
    """Turns batches of events into batches of rows; holds back two exits per VCPU until their successors are seen."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        self._diagnosis = diagnosis
        self._vcpus: dict[int, _Vcpu] = {}
        self._next_seq = 0
        self._dtype = numpy_dtype()
        self._missing = event_dtype()

    def feed(self, events: Array) -> Array:
        """Rows of the exits that are complete now, in the order of their seq."""
        if not len(events):
            return np.zeros(0, dtype=self._dtype)
        exits = events["kind"] == EventKind.EXIT
        seqs = np.where(exits, self._next_seq + np.cumsum(exits) - 1, -1)
        self._next_seq += int(np.count_nonzero(exits))
        keys = np.where(events["thread"] >= 0, events["thread"].astype(np.int64), -1 - events["vcpu"].astype(np.int64))
        if (keys == keys[0]).all():  # one VCPU: nothing to take apart and to put in order
            return self._rows(self._vcpu(int(keys[0])), events, seqs, last=False)
        groups = _groups(keys)
        for key, _ in sorted(groups, key=lambda group: int(group[1][0])):  # numbered as they come
            self._vcpu(key)
        return self._in_order(
            [self._rows(self._vcpu(key), events[part], seqs[part], last=False) for key, part in groups]
        )

    def finish(self) -> Array:
        """Rows of the exits that were still held back."""
        parts = [
            self._rows(vcpu, np.zeros(0, self._missing), np.zeros(0, np.int64), last=True)
            for vcpu in self._vcpus.values()
        ]
        return self._in_order(parts)

    def _in_order(self, parts: list[Array]) -> Array:
        if len(parts) == 1:
            return parts[0]
        rows = np.concatenate([np.zeros(0, dtype=self._dtype), *parts])
        ordered: Array = rows[np.argsort(rows["seq"], kind="stable")]
        return ordered

    def _vcpu(self, key: int) -> _Vcpu:
        vcpu = self._vcpus.get(key)
        if vcpu is None:
            nothing = np.zeros(0, dtype=self._missing), np.zeros(0, dtype=np.int64)
            vcpu = self._vcpus[key] = _Vcpu(len(self._vcpus), *nothing)
        return vcpu

    def _rows(self, vcpu: _Vcpu, events: Array, seqs: Array, *, last: bool) -> Array:
        """Rows of one VCPU's events, after those that waited; the newest exits wait unless `last`."""
        self._check_clock(vcpu, events)
        if len(vcpu.waiting):
            events = np.concatenate((vcpu.waiting, events))
            seqs = np.concatenate((vcpu.waiting_seqs, seqs))
        if not len(events):
            return np.zeros(0, dtype=self._dtype)
        kinds = np.ascontiguousarray(events["kind"])
        exits = np.flatnonzero(kinds == EventKind.EXIT)
        complete = len(exits) if last else max(0, len(exits) - _HELD_BACK)
        rest = int(exits[complete]) if complete < len(exits) else len(events)
        rows = self._fill(vcpu, events, kinds, exits, seqs, complete)
        if rest:
            vcpu.state = int(_states(kinds[:rest], vcpu.state)[-1])
            vcpu.number = int(_numbers(events["vcpu"][:rest], vcpu.number)[-1])
        vcpu.waiting, vcpu.waiting_seqs = _thinned(events[rest:], seqs[rest:])
        return rows

    def _check_clock(self, vcpu: _Vcpu, events: Array) -> None:
        if not len(events):
            return
        times = events["time_ns"]
        before = np.concatenate((np.array([vcpu.last_time], dtype=np.uint64), times[:-1]))
        backwards = np.flatnonzero(times < before)
        if len(backwards):
            where = f"time {int(times[backwards[0]]) / 1e9:.6f}"
            text = f"the clock of VCPU {vcpu.number} goes backwards; the duration of the exit is unknown"
            self._diagnosis.problem("clock goes backwards", where, text, len(backwards))
        vcpu.last_time = int(times[-1])

    def _levels(self, vcpu: _Vcpu, events: Array, kinds: Array, exits: Array) -> Array:
        """1 or 2 for each exit."""
        states = np.concatenate(([vcpu.state], _states(kinds, vcpu.state)))[exits]
        nested = np.add.reduceat(kinds == EventKind.NESTED_VMEXIT, exits) > 0
        reason, vmx = events["reason"][exits] & 0xFFFF, events["isa"][exits] == 1
        instruction = np.where(vmx, _VMX_INSTRUCTION[reason], _SVM_INSTRUCTION[reason])
        levels: Array = np.where(nested | (states == _STATE_L2) & ~instruction, 2, 1).astype(np.uint8)
        return levels

    def _fill(self, vcpu: _Vcpu, events: Array, kinds: Array, exits: Array, seqs: Array, complete: int) -> Array:
        """Rows of the first `complete` exits; the others are only looked at for what they tell of those."""
        rows = np.zeros(complete, dtype=self._dtype)
        if not complete:
            return rows
        chosen = exits[:complete]
        source = events[chosen]
        levels = self._levels(vcpu, events, kinds, exits)
        level = levels[:complete]
        injected = np.add.reduceat(kinds == EventKind.NESTED_INJECT, exits)[:complete] > 0
        followed = np.append(levels[1:] == 1, False)[:complete]
        reflected = (level == 2) & (injected | followed)
        rows["seq"] = seqs[chosen]
        ends = np.append(exits[1:], len(events))[:complete]
        rows["vcpu"] = _numbers(events["vcpu"], vcpu.number)[ends - 1]
        rows["level"] = level
        rows["reason"] = source["reason"] & 0xFFFF
        rows["failed_entry"] = source["reason"] >> 31
        rows["qualification"] = source["info1"]
        rows["rip"] = source["rip"]
        rows["interruption_info"] = source["intr_info"]
        rows["error_code"] = source["error_code"]
        rows["idt_vectoring"] = np.where(source["isa"] == 1, source["info2"] & 0xFFFFFFFF, 0)
        npf = (source["isa"] == 2) & (rows["reason"] == _NPF)
        rows["guest_physical_address"] = np.where(npf, source["info2"], 0)
        rows["vmcs_field"] = -1
        rows["host_ns"] = source["time_ns"]
        rows["duration_ns"] = _durations(events, kinds, exits)[:complete]
        rows["handled_by"] = np.where(reflected, HandledBy.L1, HandledBy.L0)
        rows["isa"] = source["isa"]
        rows["cpu"] = source["cpu"]
        rows["thread"] = source["thread"]
        self._fill_parents(vcpu, rows, reflected)
        return rows

    def _fill_parents(self, vcpu: _Vcpu, rows: Array, reflected: Array) -> None:
        """Give each exit of L1 the last L2 exit before it, which was reflected by definition."""
        place = np.where(rows["level"] == 2, np.arange(len(rows)), -1)
        place = np.maximum.accumulate(place)
        known = place >= 0
        parent = np.where(known, rows["seq"][place].astype(np.int64), vcpu.parent_seq)
        reason = np.where(known, rows["reason"][place].astype(np.int64), vcpu.parent_reason)
        if len(place) and place[-1] >= 0:
            vcpu.parent_seq, vcpu.parent_reason = int(parent[-1]), int(reason[-1])
        child = rows["level"] == 1
        rows["parent"] = np.where(child, parent, -1)
        rows["parent_reason"] = np.where(child, reason, -1)


def _thinned(events: Array, seqs: Array) -> tuple[Array, Array]:
    """Exits that wait, and after each the first and the last event of each kind, with and without a VCPU number:
    enough to describe the exit, however long its VCPU then only enters.
    """
    if len(events) > _WAITING:
        exit_number = np.cumsum(events["kind"] == EventKind.EXIT)
        kinds = (exit_number * (max(EventKind) + 1) + events["kind"]) * 2 + (events["vcpu"] >= 0)
        _, first = np.unique(kinds, return_index=True)
        _, last = np.unique(kinds[::-1], return_index=True)
        kept = np.union1d(first, len(events) - 1 - last)
        events, seqs = events[kept], seqs[kept]
    return events.copy(), seqs.copy()


def _groups(keys: Array) -> list[tuple[int, Array]]:
    """Indices of the elements of each key, in order."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return list(zip(ordered[starts].tolist(), np.split(order, starts[1:]), strict=True))


def _states(kinds: Array, initial: int) -> Array:
    """Whether L1 or L2 runs after each event."""
    change = np.where(
        kinds == EventKind.NESTED_VMENTER, _STATE_L2, np.where(kinds == EventKind.NESTED_INJECT, _STATE_L1, 0)
    )
    place = np.maximum.accumulate(np.where(change != 0, np.arange(len(change)), -1))
    states: Array = np.where(place >= 0, change[place], initial)
    return states


def _numbers(numbers: Array, initial: int) -> Array:
    """The newest known VCPU number at each event."""
    place = np.maximum.accumulate(np.where(numbers >= 0, np.arange(len(numbers)), -1))
    known: Array = np.where(place >= 0, numbers[place], initial)
    return known


def _durations(events: Array, kinds: Array, exits: Array) -> Array:
    """ns from each exit to the first entry before the next exit; 0 without one or when the clock went backwards."""
    entries = np.flatnonzero(kinds == EventKind.ENTRY)
    if not len(entries):
        return np.zeros(len(exits), dtype=np.uint64)
    place = np.searchsorted(entries, exits)
    entry = entries[np.minimum(place, len(entries) - 1)]
    ends = np.append(exits[1:], len(events))
    begin, end = events["time_ns"][exits], events["time_ns"][entry]
    paired = (place < len(entries)) & (entry < ends) & (end > begin)
    durations: Array = np.where(paired, end - begin, 0).astype(np.uint64)
    return durations
