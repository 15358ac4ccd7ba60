"""The engine room: the only place that knows Unicorn exists.

:class:`Engine` executes guest code until something traps, calls back, and goes on. It knows registers, memory regions
and traps; what a trap means is the processor's business (:mod:`lzero.cpu`).
"""

from __future__ import annotations

import ctypes as C
import mmap
from collections.abc import Callable
from enum import IntEnum

from lzero.cpu.engine.library import TRAP_CALLBACK, load
from lzero.errors import EngineError

__all__ = ["AS_USER", "REPORT", "UNDER_SMAP", "Action", "Engine", "Trap"]

AS_USER = 8
"""Translate for an access at CPL 3."""
UNDER_SMAP = 16
"""Translate for a supervisor access that SMAP restricts."""
REPORT = 32
"""Keep the description of a failed translation, as for an access of the guest's own."""

_QWORD = memoryview


class Trap(IntEnum):
    """Why the engine called back. Up to 0x8f these are the numbers of the engine's own intercepts, by instruction."""

    CR_READ = 0x00
    CR_WRITE = 0x10
    DR_READ = 0x20
    DR_WRITE = 0x30
    EXCEPTION = 0x40
    IDTR_READ = 0x66
    GDTR_READ = 0x67
    LDTR_READ = 0x68
    TR_READ = 0x69
    IDTR_WRITE = 0x6A
    GDTR_WRITE = 0x6B
    LDTR_WRITE = 0x6C
    TR_WRITE = 0x6D
    RDTSC = 0x6E
    RDPMC = 0x6F
    CPUID = 0x72
    RSM = 0x73
    INVD = 0x76
    PAUSE = 0x77
    HLT = 0x78
    INVLPG = 0x79
    IO = 0x7B
    MSR = 0x7C
    SHUTDOWN = 0x7F
    WBINVD = 0x89
    MONITOR = 0x8A
    MWAIT = 0x8B
    EXPIRED = 0x200
    INTERRUPT_WINDOW = 0x201
    NMI_WINDOW = 0x202
    MTF = 0x203
    EPT_VIOLATION = 0x204
    EPT_MISCONFIG = 0x205
    APIC_ACCESS = 0x206
    PML_FULL = 0x207
    UNBACKED = 0x208
    RDRAND = 0x209
    XSETBV = 0x20A
    SOFTWARE_EXCEPTION = 0x20B
    KICK = 0x20C
    LOOK = 0x20D
    NON_CANONICAL = 0x20E


class Action(IntEnum):
    """What the trap handler wants next."""

    ENTER = 0
    STOP = 1


class Engine:
    """One logical processor of the engine.

    Parameters
    ----------
    on_trap:
        Called with the trap code (see :class:`Trap`; control-register, debug-register and exception traps add their
        number). The guest's state is in the current VMCS when it is called and is loaded from it when it returns
        :attr:`Action.ENTER`. It must not raise.

    Attributes
    ----------
    slots:
        Variables shared with the native side, as 64-bit words; positions by name in :attr:`slot`.
    gpr:
        RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15. RSP is only current while no trap is being handled.

    Raises
    ------
    EngineError
        The engine is missing, of another version, or its internals were not found.
    """

    def __init__(self, on_trap: Callable[[int], int]) -> None:
        self._native = load()
        import unicorn
        from unicorn import x86_const

        self.version = self._native.engine_version
        with self._native.code_space.given_up() as self._has_code_space:
            self._uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
            self._uc.ctl_set_cpu_model(x86_const.UC_CPU_X86_SKYLAKE_CLIENT)
            self._uc.reg_write(x86_const.UC_X86_REG_RAX, 0)  # makes the engine build its CPU
        self._uc.ctl_exits_enabled(True)
        self._handle = self._uc._uch.value if hasattr(self._uc._uch, "value") else int(self._uc._uch)
        self._callback = TRAP_CALLBACK(on_trap)
        self._cpu = self._find_cpu()
        self._env = self._cpu + self._native.layout.env_from_cpu
        functions = self._native.functions
        self._machine = functions.lz_create(self._handle, self._cpu, self._env, self._callback)
        if not self._machine:
            raise EngineError("too many machines in one process (256); close some with Machine.close()")
        self._hook_interrupts()
        self.slot = self._native.slots
        self.slots: _QWORD = self._words(self._machine, len(self.slot))
        self._state: _QWORD = self._words(self._env, 0x1600 // 8)
        self.gpr: _QWORD = self._state[:16]
        self._memory: list[object] = []
        self._vmcs_buffer: object = None

    @staticmethod
    def _words(address: int, count: int) -> _QWORD:
        return memoryview((C.c_uint64 * count).from_address(address)).cast("B").cast("Q")

    def _find_cpu(self) -> int:
        import unicorn.unicorn_py3.unicorn as binding

        get_cpu = binding.uclib.qemu_get_cpu_x86_64
        get_cpu.restype, get_cpu.argtypes = C.c_void_p, [C.c_void_p, C.c_int]
        return int(get_cpu(self._handle, 0) or get_cpu(self._handle, -1))

    def _hook_interrupts(self) -> None:
        import unicorn
        import unicorn.unicorn_py3.unicorn as binding

        hook = C.c_size_t()
        function = C.cast(self._native.functions.lz_on_interrupt, C.c_void_p)
        add = binding.uclib.uc_hook_add
        add.restype = C.c_int
        status = add(
            C.c_void_p(self._handle),
            C.byref(hook),
            C.c_int(unicorn.UC_HOOK_INTR),
            function,
            C.c_void_p(self._machine),
            C.c_uint64(1),
            C.c_uint64(0),
        )
        if status:
            raise EngineError(f"unicorn {self.version} refused the interrupt hook (error {status})")

    def word(self, name: str) -> int:
        """Position in :attr:`state` of a 64-bit field of the CPU state, by its name in ``native/layout.def``."""
        return self._native.layout.offsets[name] // 8

    @property
    def state(self) -> _QWORD:
        """The engine's CPU state as 64-bit words; see :meth:`word`."""
        return self._state

    def map_memory(self, base: int, buffer: mmap.mmap, offset: int, size: int) -> None:
        """Make part of a buffer physical memory.

        Parameters
        ----------
        base:
            Physical address, 4 KiB aligned.
        buffer, offset, size:
            The memory, where in it, and how much, in bytes.
        """
        import unicorn

        host = C.addressof(C.c_char.from_buffer(buffer)) + offset
        self._uc.mem_map_ptr(base, size, unicorn.UC_PROT_ALL, host)
        if self._native.functions.lz_add_region(self._machine, base, size, host):
            raise EngineError("too many memory regions (8)")
        self._memory.append(buffer)

    def set_vmcs(self, words: C.Array[C.c_uint64]) -> None:
        """Choose the VMCS that guest state is loaded from and saved to."""
        self._vmcs_buffer = words
        self._native.functions.lz_set_vmcs(self._machine, C.addressof(words))

    def code_changed(self, base: int, size: int) -> None:
        """Forget what was translated from physical memory (of one region) that was written from outside the guest."""
        if self._machine:  # guest memory outlives the engine
            self._native.functions.lz_code_changed(self._machine, base, size)

    def flush_tlb(self) -> None:
        """Drop all cached translations of addresses."""
        import unicorn.unicorn_py3.unicorn as binding

        binding.uclib.tlb_flush_x86_64(C.c_void_p(self._cpu))

    def translate(self, linear: int, *, write: bool, how: int = 0) -> int | None:
        """Physical address of a linear one for a supervisor access; None where it would fault.

        Parameters
        ----------
        how:
            :data:`AS_USER`, :data:`UNDER_SMAP`, :data:`REPORT`.
        """
        physical = self._native.functions.lz_translate(self._machine, linear, (2 if write else 1) | how)
        return None if physical == 2**64 - 1 else int(physical)

    def walk_guest(self, linear: int, *, write: bool) -> int | None:
        """Guest-physical address of a linear one for a supervisor access; None where it would fault."""
        physical = self._native.functions.lz_walk_guest(self._machine, linear, 2 if write else 1)
        return None if physical == 2**64 - 1 else int(physical)

    def translate_physical(self, guest_physical: int) -> int | None:
        """Physical address of a guest-physical one for a read; None where EPT does not allow it."""
        physical = self._native.functions.lz_translate_physical(self._machine, guest_physical)
        return None if physical == 2**64 - 1 else int(physical)

    def run(self) -> None:
        """Enter the guest; returns after a trap handler asked to stop.

        Raises
        ------
        EngineError
            The engine stopped for a reason of its own.
        """
        status = self._native.functions.lz_run(self._machine)
        if status:
            raise EngineError(
                f"unicorn {self.version} stopped with error {status} at RIP {self._state[self.word('eip')]:#x}"
            )

    def close(self) -> None:
        """Release the engine and its memory mappings."""
        if self._machine:
            self.slots = self.gpr = self._state = memoryview(bytes(8)).cast("Q")
            self._native.functions.lz_destroy(self._machine)
            self._machine = 0
            del self._uc
            self._memory.clear()
            if self._has_code_space:
                self._native.code_space.take_back()
