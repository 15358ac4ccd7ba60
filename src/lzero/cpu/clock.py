"""The processor's clock: what drives the TSC, the preemption timer and, through L0, every timer of the platform.

By default guest time is counted in blocks of guest code executed, plus a fixed time for each VM exit and the time that
L0 skips while the guest is idle: the same guest sees the same time in every run. With the host's clock it follows the
wall instead.
"""

from __future__ import annotations

from lzero.cpu.engine import Engine

__all__ = ["BLOCK_NS", "ProcessorClock"]

BLOCK_NS = 5
"""Guest nanoseconds that one block of guest code takes: near what the engine takes for one on the machines measured."""
_NS = 1_000_000_000


class ProcessorClock:
    """Guest time.

    Parameters
    ----------
    engine:
        Counts the blocks.
    tsc_hz:
        TSC ticks a second.
    host:
        Follow the host's monotonic clock.
    poll_ns:
        How often, at least, native code returns to Python, so that Ctrl-C and host timeouts are seen.
    """

    def __init__(self, engine: Engine, tsc_hz: int, *, host: bool = False, poll_ns: int = 10_000_000) -> None:
        self.tsc_hz = tsc_hz
        self.host = host
        self._slots = engine.slots
        slot = engine.slot
        self._budget, self._armed, self._blocks = slot["budget"], slot["armed"], slot["blocks"]
        self._base, self._per_block = slot["tsc_base"], slot["tsc_per_block"]
        self._skew_ns = 0
        self._poll_blocks = max(1, poll_ns // BLOCK_NS)
        if host:
            # The native side polls the host's clock every few microseconds' worth of blocks.
            self._poll_blocks = max(1, 20_000 // BLOCK_NS)
        self._slots[slot["tsc_multiplier"]] = 1 << 48
        self._slots[slot["tsc_per_block"]] = (BLOCK_NS * tsc_hz << 16) // _NS
        self._slots[slot["host_tsc_per_ns"]] = (tsc_hz << 32) // _NS
        if host:
            import time

            self._slots[slot["host_start_ns"]] = time.monotonic_ns()
            self._slots[slot["host_clock"]] = 1
            self._host_start = time.monotonic_ns()
        self.arm(None)

    def now_ns(self) -> int:
        """Guest nanoseconds since start."""
        if self.host:
            import time

            return time.monotonic_ns() - self._host_start
        s = self._slots
        blocks = (s[self._blocks] + s[self._armed] - s[self._budget]) & 0xFFFF_FFFF_FFFF_FFFF
        return int(blocks * BLOCK_NS + self._skew_ns)

    def tsc(self) -> int:
        """The time-stamp counter before offset and scaling, as RDTSC in VMX root operation reads it."""
        if self.host:
            return self.now_ns() * self.tsc_hz // _NS
        s = self._slots
        blocks = (s[self._blocks] + s[self._armed] - s[self._budget]) & 0xFFFF_FFFF_FFFF_FFFF
        return int(s[self._base] + (blocks * s[self._per_block] >> 16))

    def skip(self, nanoseconds: int) -> None:
        """Let guest time pass without executing anything (idle time, the cost of an exit). No effect on host time."""
        if not self.host:
            self._skew_ns += nanoseconds
            self._slots[self._base] = self._skew_ns * self.tsc_hz // _NS

    def arm(self, nanoseconds: int | None) -> None:
        """Come back to Python after this much guest time at the latest (None: at the next poll)."""
        s = self._slots
        blocks = self._poll_blocks
        if nanoseconds is not None:
            blocks = min(blocks, max(0, nanoseconds // BLOCK_NS))
        executed = s[self._blocks] + s[self._armed] - s[self._budget]
        s[self._blocks] = executed & 0xFFFF_FFFF_FFFF_FFFF
        s[self._armed] = s[self._budget] = blocks
