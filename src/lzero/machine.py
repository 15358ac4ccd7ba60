"""The machine: a processor, a board, L0 and a guest, put together from options and run.

>>> from lzero import Machine
>>> result = Machine("guest:hello", memory="64M", quiet=True, console=__import__("io").BytesIO()).run()
>>> result.ended.value
'debug-exit'
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, BinaryIO

from lzero.cpu.processor import Processor
from lzero.dispatch import load_strategy
from lzero.dispatch.compile_python import compile_python
from lzero.dispatch.tree import handlers_used
from lzero.errors import GuestFault, LzeroError
from lzero.hypervisor.description import describe_guest
from lzero.hypervisor.endings import HaltedForever, TripleFault, VmxAborted
from lzero.hypervisor.ept import ExtendedPageTables
from lzero.hypervisor.features import PROCESSOR
from lzero.hypervisor.handlers import HANDLERS, undefined, unexpected_exit
from lzero.hypervisor.nested.shadow_fields import load_shadow_fields
from lzero.hypervisor.vcpu import Vcpu
from lzero.options import MachineOptions
from lzero.platform.clock import VirtualClock
from lzero.platform.exits import ExitKind, ExitRequest
from lzero.platform.loaders.images import LoadOptions, Module
from lzero.platform.memory import GuestMemory
from lzero.platform.pc import Pc
from lzero.result import Ended, RunResult
from lzero.trace.recorder import Recorder

__all__ = ["Machine"]

_NS = 1_000_000_000


class Timeout:
    """The time allowed for the run is over."""


class Interrupted:
    """Ctrl-C."""


class Machine:
    """One machine with one guest, for one run.

    Parameters
    ----------
    image:
        Guest image, or ``guest:NAME`` for one that comes with lzero.
    args:
        The guest's arguments.
    choices:
        Any other option, as :meth:`lzero.options.MachineOptions.of` takes them.
    options:
        Instead of all these: options made before.

    Raises
    ------
    UsageError, ImageError
        An option or the image cannot be used; the message says which and why.
    EngineError
        The CPU engine cannot be used on this host.
    """

    def __init__(
        self,
        image: str | Path | None = None,
        args: tuple[str, ...] = (),
        *,
        options: MachineOptions | None = None,
        **choices: Any,
    ) -> None:
        if options is None:
            options = MachineOptions.of(image if image is not None else "", args, **choices)
        self.options = options
        strategy = load_strategy(options.dispatch)
        shadow_fields = load_shadow_fields(options.shadow_vmcs)
        self.cpu = Processor(PROCESSOR, tsc_hz=options.tsc_hz, host_clock=options.clock == "host")
        try:
            self.memory = GuestMemory(options.memory_bytes)
            for region in self.memory.regions:
                self.cpu.memory.map(region.gpa, self.memory.mapping, region.host_offset, region.size)
            self.clock = VirtualClock(self.cpu.clock.now_ns, options.tsc_hz)
            self.console = _Console(options.console)
            self.pc = Pc(self.memory, self.clock, self.console, physical_address_bits=PROCESSOR.physical_address_width)
            self.recorder = Recorder(options.record)
            ept = ExtendedPageTables(self.cpu.memory)
            for region in self.memory.regions:
                ept.map_ram(region.gpa, region.size)
            ept.mark_devices(self.pc.bus.mmio_pages())
            self.vcpu = Vcpu(
                self.cpu,
                self.pc,
                ept,
                self.recorder,
                ignore_msrs=options.ignore_msrs,
                warn=self._warn,
                offers_vmx=options.nested,
                shadow_fields=shadow_fields,
            )
            self.vcpu.reset_to(self.pc.load(options.image, _load_options(options)))
        except BaseException:
            self.cpu.close()
            raise
        self._dispatch = compile_python(
            strategy,
            {name: HANDLERS.get(name, undefined) for name in handlers_used(strategy.root)},
            unexpected=unexpected_exit,
            nested=options.nested,
        )
        self._input = _Input(options.stdin, self.pc.feed_console)
        self.vcpu.on_idle = self._idle
        self.vcpu.on_wait = self._input.wait
        self.cpu.poll = self._poll
        self.cpu.watch = self._watch
        self._host_deadline: int | None = None

    def run(self) -> RunResult:
        """Run to the end; every ending but an error of lzero's own input is a result, not an exception."""
        options = self.options
        if options.timeout_s is not None:
            nanoseconds = int(options.timeout_s * _NS)
            if options.timeout_kind == "guest":
                self.clock.call_at(nanoseconds, self._time_out)
            else:
                self._host_deadline = perf_counter_ns() + nanoseconds
                self.vcpu.host_deadline_ns, self.vcpu.host_timeout = self._host_deadline, Timeout()
        start = perf_counter()
        with _Interrupts(self._interrupt):
            ended, value, message = self._run_to_end()
        host_seconds = perf_counter() - start
        guest_seconds = self.clock.now_ns() / _NS
        self.console.flush()
        self.recorder.close()
        version = f"unicorn {self.cpu.engine.version}"
        self.close()
        return RunResult(
            ended,
            debug_exit=value,
            message=message,
            aggregates=self.recorder.aggregates,
            host_seconds=host_seconds,
            guest_seconds=guest_seconds,
            engine_version=version,
        )

    def _run_to_end(self) -> tuple[Ended, int | None, str]:
        try:
            self.vcpu.run(self._dispatch)
        except KeyboardInterrupt:
            return Ended.INTERRUPTED, None, describe_guest(self.vcpu, "interrupted")
        except GuestFault as fault:
            return Ended.FAULT, None, describe_guest(self.vcpu, str(fault))
        except LzeroError as error:
            return Ended.INTERNAL_ERROR, None, describe_guest(self.vcpu, str(error))
        return self._ending()

    def _ending(self) -> tuple[Ended, int | None, str]:
        match self.vcpu.stop_reason:
            case ExitRequest(kind=ExitKind.DEBUG_EXIT, value=value):
                return Ended.DEBUG_EXIT, value & 0xFF, ""
            case ExitRequest(kind=ExitKind.POWER_OFF):
                return Ended.POWER_OFF, None, ""
            case ExitRequest(kind=ExitKind.RESET, source=source):
                return Ended.RESET, None, f"the guest asked for a reset ({source})"
            case TripleFault():
                return Ended.TRIPLE_FAULT, None, describe_guest(self.vcpu, "triple fault")
            case HaltedForever(interrupts_enabled=enabled):
                why = "no timer armed and no input to come" if enabled else "interrupts off"
                return Ended.HALTED, None, describe_guest(self.vcpu, f"the guest halted with {why}")
            case VmxAborted(indicator=indicator):
                return Ended.FAULT, None, describe_guest(self.vcpu, f"VMX abort: {indicator}")
            case Interrupted():
                return Ended.INTERRUPTED, None, describe_guest(self.vcpu, "interrupted")
            case Timeout():
                seconds, kind = self.options.timeout_s, self.options.timeout_kind
                return Ended.TIMEOUT, None, describe_guest(self.vcpu, f"timeout after {seconds:g} s of {kind} time")
            case _:
                return Ended.INTERNAL_ERROR, None, describe_guest(self.vcpu, "the machine stopped without a reason")

    def close(self) -> None:
        """Release the engine; a machine that ran is closed already."""
        self.cpu.close()
        self._input.close()

    def _time_out(self) -> None:
        self.vcpu.stop(Timeout())

    def _interrupt(self) -> None:
        # In the middle of anything: the exit being handled is finished and recorded first.
        self.vcpu.stop(Interrupted())
        self._input.wake()

    def _warn(self, message: str) -> None:
        if not self.options.quiet:
            sys.stderr.write(f"lzero: {message}\n")

    def _poll(self) -> None:
        """Native code returns here after a fixed amount of guest time: console input comes at the same points."""
        self._watch()
        self._input.poll()

    def _watch(self) -> None:
        """Native code returns here every few milliseconds of the host's time: host timeout and Ctrl-C."""
        if self._host_deadline is not None and perf_counter_ns() > self._host_deadline:
            self.vcpu.stop(Timeout())
        if self.vcpu.stop_reason is not None:
            self.cpu.kick()

    def _idle(self, deadline: int) -> bool:
        self._input.poll()
        if self._host_deadline is not None and perf_counter_ns() > self._host_deadline:
            return self.vcpu.stop(Timeout())
        if self.cpu.clock.host:
            self._input.sleep((deadline - self.clock.now_ns()) / _NS)
        return self.vcpu.stop_reason is None


def _load_options(options: MachineOptions) -> LoadOptions:
    modules = []
    for text in options.modules:
        path, _, arguments = text.partition(" ")
        modules.append(Module(Path(path), arguments))
    from lzero.platform.loaders.entry import EntryMode

    return LoadOptions(
        args=options.args,
        append=options.append,
        initrd=options.initrd,
        modules=tuple(modules),
        kernel_entry=options.kernel_entry,
        load_address=options.load_address,
        entry_mode=EntryMode(options.entry_mode),
    )


class _Interrupts:
    """While it is entered, Ctrl-C calls a function instead of raising; a second one raises KeyboardInterrupt."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._before: Any = None

    def __enter__(self) -> None:
        # Only the main thread may, and only it is interrupted. A program that ignores Ctrl-C goes on doing so.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) not in (
            None,
            signal.SIG_IGN,
        ):
            self._before = signal.signal(signal.SIGINT, self._on_signal)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._interrupt()


class _Console:
    """The guest's console output, written as it comes."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self._stream = stream if stream is not None else sys.stdout.buffer
        self._immediate = stream is None
        self.tail = bytearray()

    def write(self, data: bytes, /) -> None:
        self._stream.write(data)
        if self._immediate and b"\n" in data:
            self._stream.flush()

    def flush(self) -> None:
        self._stream.flush()


class _Input:
    """The guest's console input, from a stream that has a file descriptor."""

    def __init__(self, stream: BinaryIO | None, feed: Any) -> None:
        self._feed = feed
        self._descriptor: int | None = None
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._descriptor = (stream if stream is not None else sys.stdin.buffer).fileno()
        except (OSError, ValueError, AttributeError):
            self._descriptor = None
            if stream is not None:
                feed(stream.read())

    def wake(self) -> None:
        """End :meth:`sleep` and :meth:`wait` now; may be called from a signal handler."""
        os.write(self._waker, b"!")

    def close(self) -> None:
        """Release the descriptors that :meth:`wake` needs; calling it again does nothing."""
        if self._woken >= 0:
            os.close(self._woken)
            os.close(self._waker)
            self._woken = self._waker = -1

    def sleep(self, seconds: float) -> None:
        """Wait for input, but not longer than this."""
        self._select(max(0.0, seconds))
        self.poll()

    def _select(self, seconds: float | None) -> None:
        sources = [self._woken] if self._descriptor is None else [self._woken, self._descriptor]
        select.select(sources, [], [], seconds)

    def poll(self) -> None:
        """Feed what has come."""
        while self._descriptor is not None and select.select([self._descriptor], [], [], 0)[0]:
            data = os.read(self._descriptor, 4096)
            if not data:
                self._descriptor = None
                return
            self._feed(data)

    def wait(self) -> bool:
        """Wait until there is input; false if none can come."""
        if self._descriptor is None or not os.isatty(self._descriptor):
            before = self._descriptor
            self.poll()
            return before is not None and self._descriptor is not None
        self._select(None)
        self.poll()
        return True
