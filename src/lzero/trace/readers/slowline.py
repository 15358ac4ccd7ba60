"""One trace line at a time, by regular expressions: every format, and a name for what is wrong.

:mod:`lzero.trace.readers.fastlines` reads the ordinary lines of an ordinary recording; this module is the
definition of what a line may look like, and reads whatever the fast way left over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from lzero.trace.readers.events import Diagnosis, EventKind
from lzero.trace.readers.reasons import UNKNOWN_REASON, reason_number
from lzero.trace.schema import Isa

__all__ = ["EVENT_KINDS", "Event", "parse_line"]

EVENT_KINDS: Final = {
    "kvm_exit": EventKind.EXIT,
    "kvm_entry": EventKind.ENTRY,
    "kvm_nested_vmexit": EventKind.NESTED_VMEXIT,
    "kvm_nested_vmexit_inject": EventKind.NESTED_INJECT,
    "kvm_nested_vmenter": EventKind.NESTED_VMENTER,
    "kvm_nested_vmrun": EventKind.NESTED_VMENTER,
}
"""Tracepoints that make rows; all others are counted as other events."""

# comm may hold anything, also brackets, colons and what looks like a number; the first place where all the rest fits
# decides.
_PREFIX: Final = re.compile(
    r"""^\s*.*?[\s-](?:\d+/)?(?P<tid>\d+)\s*   # comm and thread: "comm 12", "comm 11/12", "comm-12"
    (?:\(\s*[-\d]*\)\s*)?                        # thread group, when ftrace was asked for it
    (?:\[(?P<cpu>\d+)\]\s+)?
    (?:\S{1,7}\s+)?                    # latency flags: irqs, resched, hardirq, preempt depth, migration
    (?P<time>\d+\.\d{3,9}):\s+
    (?:\d+\s+)?                                  # sample period, when perf script was asked for it
    (?:(?P<system>[A-Za-z_]\w*):)?(?P<event>[A-Za-z_]\w*):(?P<body>(?:\s.*)?)$""",
    re.VERBOSE,
)
_HEX: Final = r"(?:0x)?[0-9a-fA-F]{1,16}"
_EXIT: Final = re.compile(
    rf"""^\s*(?:vcpu\s(?P<vcpu>\d+),?\s)?reason\s(?P<reason>\S+(?:\sexcp)?)
    (?P<failed>\sFAILED_VMENTRY)?\s*\srip\s(?P<rip>{_HEX})
    (?:\sinfo1\s(?P<info1>0x[0-9a-fA-F]{{16}})\sinfo2\s(?P<info2>0x[0-9a-fA-F]{{16}})
       \sintr_info\s(?P<intr_info>0x[0-9a-fA-F]{{8}})\serror_code\s(?P<error_code>0x[0-9a-fA-F]{{8}})
       (?:\srequests\s0x[0-9a-fA-F]{{16}})?
     |\sinfo\s(?P<old1>{_HEX})\s(?P<old2>{_HEX}))\s*$""",
    re.VERBOSE,
)
_VCPU: Final = re.compile(r"^\s*vcpu:?\s(\d+)(?:[\s,]|$)")
_LOST: Final = re.compile(
    r"LOST\s+(?P<a>\d+)\s+EVENTS|\[\s*(?P<b>\d+)\s+EVENTS\s+DROPPED|\[EVENTS DROPPED\]"
    r"|PERF_RECORD_LOST\D*(?P<c>\d+)|lost\s+(?P<d>\d+)\s+events",
    re.IGNORECASE,
)
_HEADER: Final = re.compile(r"^\s*(?:#|cpus=\d|version = |CPU \d+ is empty|\s*$|=+$|-+$)")
_STACK: Final = re.compile(r"^\s+[0-9a-f]{8,16}\s\S")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a line, with the fields of :data:`lzero.trace.readers.events.EVENT_FIELDS`."""

    kind: EventKind
    isa: Isa
    cpu: int
    thread: int
    vcpu: int
    time_ns: int
    reason: int = 0
    rip: int = 0
    info1: int = 0
    info2: int = 0
    intr_info: int = 0
    error_code: int = 0

    def fields(self) -> tuple[int, ...]:
        """The values in the order of the dtype."""
        return (
            self.kind,
            self.isa,
            self.cpu,
            self.thread,
            self.vcpu,
            self.time_ns,
            self.reason,
            self.rip,
            self.info1,
            self.info2,
            self.intr_info,
            self.error_code,
        )


def parse_line(line: str, where: str, diagnosis: Diagnosis) -> Event | None:
    """The event of a line, or ``None`` for headers, other events and lines that cannot be read (counted at
    `where`).
    """
    prefix = _PREFIX.match(line)
    if prefix is None:
        _no_event(line, where, diagnosis)
        return None
    kind = EVENT_KINDS.get(prefix["event"]) if prefix["system"] in (None, "kvm") else None
    if prefix["event"] == "kvm" and prefix["system"] is None:
        diagnosis.problem("cut line", where, f"the event's name is cut: {line.strip()[-120:]!r}")
        return None
    if kind is None:
        lost = _LOST.search(line) if "LOST" in line else None
        if lost:
            diagnosis.lose(_lost_count(lost), where)
        else:
            diagnosis.others += 1
        return None
    cpu = int(prefix["cpu"] or -1)
    thread = int(prefix["tid"])
    seconds, fraction = prefix["time"].split(".")
    time_ns = int(seconds) * 10**9 + int(fraction.ljust(9, "0"))
    if cpu > 32767 or thread >= 2**31 or time_ns >= 2**64:
        diagnosis.problem("number out of range", where, f"CPU, thread or time out of range: {line.strip()[:120]!r}")
        return None
    body = prefix["body"]
    if kind is not EventKind.EXIT:
        vcpu = _VCPU.match(body)
        return Event(kind, Isa.VMX, cpu, thread, _vcpu(vcpu[1], where, diagnosis) if vcpu else -1, time_ns)
    return _parse_exit(body, where, diagnosis, cpu, thread, time_ns)


def _parse_exit(body: str, where: str, diagnosis: Diagnosis, cpu: int, thread: int, time_ns: int) -> Event | None:
    match = _EXIT.match(body)
    if match is None:
        diagnosis.problem("cut line", where, f"kvm_exit of no known format, perhaps cut: {body.strip()[:120]!r}")
        return None
    found = reason_number(match["reason"])
    if found is None:
        diagnosis.problem("unknown reason", where, f"unknown exit reason {match['reason']!r}, kept without a name")
        found = (Isa.VMX, UNKNOWN_REASON)
    isa, reason = found
    if isa is Isa.VMX and reason > 0xFFFF:
        reason &= 0x8000FFFF
    if match["failed"]:
        reason |= 1 << 31
    vcpu = _vcpu(match["vcpu"], where, diagnosis) if match["vcpu"] is not None else -1
    new = match["info1"] is not None
    return Event(
        EventKind.EXIT,
        isa,
        cpu,
        thread,
        vcpu,
        time_ns,
        reason,
        int(match["rip"], 16),
        int(match["info1" if new else "old1"], 16),
        int(match["info2"], 16) if new else 0,
        # Before intr_info had its own field, info2 was the interruption information on VMX.
        int(match["intr_info"], 16) if new else int(match["old2"], 16) & 0xFFFFFFFF,
        int(match["error_code"], 16) if new else 0,
    )


def _vcpu(text: str, where: str, diagnosis: Diagnosis) -> int:
    number = int(text)
    if number > 0xFFFF:
        diagnosis.problem("number out of range", where, f"VCPU {text} is out of range")
        return -1
    return number


def _lost_count(match: re.Match[str]) -> int:
    return max([1, *(int(group) for group in match.groups() if group)])


def _no_event(line: str, where: str, diagnosis: Diagnosis) -> None:
    """Say why a line holds no event, or that it need not."""
    if _HEADER.match(line) or _STACK.match(line):
        return
    lost = _LOST.search(line)
    if lost:
        diagnosis.lose(_lost_count(lost), where)
    else:
        diagnosis.problem("unreadable line", where, f"not a line of a trace: {line.strip()[:120]!r}")
