"""Recordings of every kind, made from one random sequence of events."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tracewriter import (
    FINISHED_ROUND,
    KVM_ENTRY,
    KVM_EXIT,
    KVM_MSR,
    KVM_NESTED_INJECT,
    KVM_NESTED_VMENTER,
    KVM_NESTED_VMEXIT,
    Event,
)

TYPES = (KVM_EXIT, KVM_ENTRY, KVM_MSR, KVM_NESTED_VMEXIT, KVM_NESTED_INJECT, KVM_NESTED_VMENTER)


@pytest.fixture(scope="session")
def make_events() -> Callable[..., list[Event]]:
    """``make_events(count, cpus)``: events at rising times, the CPUs in turn, with a long pause now and then."""

    def make(count: int, cpus: int = 3, seed: int = 1) -> list[Event]:
        generator = random.Random(seed)
        time = 1_000_000
        events = []
        for number in range(count):
            time += generator.randrange(100, 900) if number % 500 else 1 << 30
            cpu = number % cpus
            values = {
                "exit_reason": generator.choice([0, 12, 10, 32, 48, 0x8000_0021]),
                "exit_code": 24,
                "guest_rip": generator.getrandbits(64),
                "rip": generator.getrandbits(64),
                "isa": 1,
                "info1": generator.getrandbits(64),
                "info2": generator.getrandbits(64),
                "exit_info1": generator.getrandbits(64),
                "intr_info": generator.getrandbits(32),
                "error_code": generator.getrandbits(32),
                "vcpu_id": cpu,
                "write": 1,
                "ecx": 0x830,
            }
            events.append(Event(generator.choice(TYPES), time, cpu, 1000 + cpu, values))
        return events

    return make


@pytest.fixture(scope="session")
def in_rounds() -> Callable[..., list[Event | bytes]]:
    """``in_rounds(events, size)``: in the order in which perf writes them: a round at a time, CPU by CPU."""

    def order(events: list[Event], size: int = 100) -> list[Event | bytes]:
        records: list[Event | bytes] = []
        for start in range(0, len(events), size):
            part = events[start : start + size]
            records += sorted(part, key=lambda event: event.cpu)
            records.append(FINISHED_ROUND)
        return records

    return order
