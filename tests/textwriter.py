"""Synthesised text recordings: small typed records rendered the way perf, trace-cmd and ftrace print them.

A bad-input test is one record or one rendered line with one thing wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

EVENT_FORMATS = ("oldest", "vcpu", "current", "requests")
LINE_FORMATS = ("perf", "perf-ns", "perf-plain", "trace-cmd", "ftrace", "ftrace-old")
EVENTS = (
    *("kvm_exit", "kvm_exit", "kvm_exit", "kvm_entry", "kvm_nested_vmexit"),
    *("kvm_nested_vmexit_inject", "kvm_nested_vmenter", "kvm_pio"),
)
REASONS = (
    *("CPUID", "EXTERNAL_INTERRUPT", "HLT", "MSR_WRITE", "npf", "PENDING_INTERRUPT", "0x4b", "VMON"),
    *("EPT_MISCONFIG", "PREEMPTION_TIMER", "UD excp", "INTERRUPT_WINDOW", "hypercall"),
)


@dataclass(frozen=True)
class Event:
    """One tracepoint hit."""

    name: str
    time_ns: int
    vcpu: int = 0
    cpu: int = 1
    thread: int = 4242
    comm: str = "CPU 0/KVM"
    reason: str = "CPUID"
    failed: bool = False
    rip: int = 0xFFFFFFFF81000000
    info1: int = 0
    info2: int = 0
    intr_info: int = 0
    error_code: int = 0

    def body(self, style: str = "current") -> str:
        """The event's own text in one of `EVENT_FORMATS`."""
        if self.name == "kvm_entry":
            return f"vcpu {self.vcpu}, rip 0x{self.rip:x}"
        if self.name != "kvm_exit":
            return f"rip: 0x{self.rip:016x}"
        reason = self.reason + (" FAILED_VMENTRY" if self.failed else "")
        vcpu = "" if style == "oldest" else f"vcpu {self.vcpu} "
        if style in ("oldest", "vcpu"):
            return f"{vcpu}reason {reason} rip 0x{self.rip:x} info {self.info1:x} {self.intr_info:x}"
        text = (
            f"{vcpu}reason {reason} rip 0x{self.rip:x} info1 0x{self.info1:016x} info2 0x{self.info2:016x} "
            f"intr_info 0x{self.intr_info:08x} error_code 0x{self.error_code:08x}"
        )
        return text + (" requests 0x0000000000000000" if style == "requests" else "")

    def line(self, form: str = "perf", style: str = "current") -> str:
        """The whole line, without its newline, in one of `LINE_FORMATS`."""
        seconds, ns = divmod(self.time_ns, 10**9)
        clock = f"{seconds:5d}.{ns:09d}" if form == "perf-ns" else f"{seconds:5d}.{ns // 1000:06d}"
        body = self.body(style)
        if form.startswith("perf"):
            pad = " " * 9 if form == "perf-plain" else ""
            return f"{self.comm:>16} {self.thread:5d} [{self.cpu:03d}] {clock}: {pad}kvm:{self.name}: {body}"
        flags = {"trace-cmd": "", "ftrace": "d..1. ", "ftrace-old": "d... "}[form]
        gap = " " * 13 if form == "trace-cmd" else " "
        return f"{self.comm:>16}-{self.thread:<5d} [{self.cpu:03d}] {flags}{clock}: {self.name}:{gap}{body}"


def render(events: Iterable[Event], form: str = "perf", style: str = "current") -> bytes:
    """A whole text recording."""
    return b"".join(event.line(form, style).encode() + b"\n" for event in events)


def nested_events(rounds: int, vcpu: int = 0, start_ns: int = 1_000_000_000, thread: int = 4242) -> Iterator[Event]:
    """L2 CPUID exits reflected to L1, which does two VMREADs, a VMWRITE and a VMRESUME; every exit takes 2 µs of
    10.
    """
    base = Event("kvm_exit", start_ns, vcpu=vcpu, cpu=vcpu, thread=thread, rip=0x1000)
    time = start_ns
    for _ in range(rounds):
        yield replace(base, time_ns=time, reason="CPUID", rip=0x2000)
        yield replace(base, time_ns=time, name="kvm_nested_vmexit", rip=0x2000)
        yield replace(base, time_ns=time, name="kvm_nested_vmexit_inject", rip=0x2000)
        time += 2_000
        yield replace(base, time_ns=time, name="kvm_entry")
        for reason in ("VMREAD", "VMREAD", "VMWRITE", "VMRESUME"):
            time += 8_000
            yield replace(base, time_ns=time, reason=reason)
            if reason == "VMRESUME":
                yield replace(base, time_ns=time, name="kvm_nested_vmenter")
            time += 2_000
            yield replace(base, time_ns=time, name="kvm_entry")
        time += 8_000


def random_event(source: random.Random, time_ns: int) -> Event:
    """An event with fields from all over their ranges."""
    return Event(
        source.choice(EVENTS),
        time_ns,
        vcpu=source.choice([0, 1, 9, 10, 255, 4095]),
        cpu=source.choice([0, 7, 63, 255, 1023]),
        thread=source.choice([1, 99, 4242, 4194303]),
        comm=source.choice(["CPU 0/KVM", "qemu-system-x86", "fc_vcpu 0", "a:b [1] 3.000000: x", "[k]", "x-1"]),
        reason=source.choice(REASONS),
        failed=source.random() < 0.05,
        rip=source.getrandbits(source.choice([4, 12, 32, 33, 64])),
        info1=source.getrandbits(64),
        info2=source.getrandbits(64),
        intr_info=source.getrandbits(32),
        error_code=source.getrandbits(32),
    )
