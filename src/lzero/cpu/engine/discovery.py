"""Find the engine's CPU state in memory, without one constant of its layout.

libunicorn exports QEMU's internal functions but not its structures, and their offsets differ between builds. Each
offset is found by its behaviour: a sentinel written through the public API, an exported helper that changes one field,
or a real instruction. What cannot be found exactly once is an error that names the field, never a guess.
"""

from __future__ import annotations

import ctypes as C
import gc
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import unicorn
from unicorn import x86_const as X

from lzero.errors import EngineError

__all__ = ["Layout", "discover"]

_GPRS = "RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R10 R11 R12 R13 R14 R15".split()
_CODE = 0x40000


@dataclass(frozen=True)
class Layout:
    """Byte offsets of CPU fields: from ``env`` (the register file), except those listed in ``from_cpu``."""

    offsets: dict[str, int]
    env_from_cpu: int
    from_cpu: tuple[str, ...] = ("exception_index", "interrupt_request", "icount_decr")


@dataclass
class _Probe:
    """A throwaway instance of the engine, and what was found in it so far."""

    library: C.CDLL
    uc: unicorn.Uc
    handle: int
    cpu: int = 0
    env: int = 0
    size: int = 0
    found: dict[str, int] = field(default_factory=dict)
    next_code: int = _CODE

    def function(self, name: str, result: type | None, *arguments: type) -> Callable[..., int]:
        try:
            exported = getattr(self.library, name + "_x86_64")
        except AttributeError:
            raise EngineError(
                f"unicorn {unicorn.__version__}: this build of libunicorn does not export {name}_x86_64. lzero needs "
                "the Linux wheel from PyPI (the Windows wheel does not export the engine's internals)"
            ) from None
        exported.restype, exported.argtypes = result, list(arguments)
        return exported  # type: ignore[no-any-return]  # ctypes functions are untyped

    def state(self) -> bytes:
        return C.string_at(self.env, self.size)

    def cpu_state(self) -> bytes:
        return C.string_at(self.cpu, self.env - self.cpu)

    def settle(self, name: str, candidates: Iterable[int]) -> int:
        unique = sorted(set(candidates))
        if len(unique) != 1:
            what = "nowhere" if not unique else "at " + ", ".join(f"{c:#x}" for c in unique[:6])
            raise EngineError(
                f"unicorn {unicorn.__version__}: field {name!r} of the CPU state was found {what}; lzero supports "
                "unicorn 2.1.4 (pip install unicorn==2.1.4)"
            )
        self.found[name] = unique[0]
        return unique[0]


def _occurrences(data: bytes, needle: bytes) -> list[int]:
    hits, at = [], data.find(needle)
    while at >= 0:
        hits.append(at)
        at = data.find(needle, at + 1)
    return hits


def _changed(before: bytes, after: bytes) -> dict[int, tuple[int, int]]:
    """32-bit words that differ: offset → (before, after)."""
    return {
        at: (struct.unpack_from("<I", before, at)[0], struct.unpack_from("<I", after, at)[0])
        for at in range(0, len(before) - 3, 4)
        if before[at : at + 4] != after[at : at + 4]
    }


def _aligned(data: bytes, value: int, width: int) -> set[int]:
    needle = value.to_bytes(width, "little")
    return {at for at in range(0, len(data) - width + 1, 4) if data[at : at + width] == needle}


def _locate_cpu(probe: _Probe) -> None:
    values = [0x5A11_0000_0000_0000 | (i * 0x0101_0101) for i in range(1, 17)]
    for name, value in zip(_GPRS, values, strict=True):
        probe.uc.reg_write(getattr(X, "UC_X86_REG_" + name), value)
    get_cpu = probe.function("qemu_get_cpu", C.c_void_p, C.c_void_p, C.c_int)
    cpu = get_cpu(probe.handle, 0) or get_cpu(probe.handle, -1)
    if not cpu:
        raise EngineError(f"unicorn {unicorn.__version__}: the engine's CPU object was not found")
    pattern, seen = struct.pack("<16Q", *values), b""
    while pattern not in seen and len(seen) < 1 << 20:
        seen += C.string_at(cpu + len(seen), 256)
    probe.cpu, probe.env = cpu, cpu + seen.index(pattern)
    probe.size = int(probe.library.uc_context_size(C.c_void_p(probe.handle)))


def _find_registers(probe: _Probe) -> None:
    uc = probe.uc
    sentinels = {"eip": X.UC_X86_REG_RIP, "cr2": X.UC_X86_REG_CR2, "cr3": X.UC_X86_REG_CR3}
    sentinels |= {"fs_base": X.UC_X86_REG_FS_BASE, "gs_base": X.UC_X86_REG_GS_BASE}
    sentinels |= {"dr0": X.UC_X86_REG_DR0, "dr1": X.UC_X86_REG_DR1}
    for number, (name, register) in enumerate(sentinels.items()):
        old, value = uc.reg_read(register), 0x5EED_0F00_0000 + (number << 16)
        uc.reg_write(register, value)
        hits = set(_occurrences(probe.state(), value.to_bytes(8, "little")))
        uc.reg_write(register, value ^ 0x1111_0000)
        now = probe.state()
        probe.settle(name, (at for at in hits if now[at : at + 8] == (value ^ 0x1111_0000).to_bytes(8, "little")))
        uc.reg_write(register, old)
    f = probe.found
    stride = f.pop("gs_base") - f["fs_base"]
    f["segment_stride"] = stride
    f["dr6"], f["dr7"] = f["dr0"] + 6 * (f["dr1"] - f["dr0"]), f["dr0"] + 7 * (f.pop("dr1") - f["dr0"])
    f["cr0"], f["cr4"] = f["cr2"] - 16, f["cr2"] + 16
    for name, register in (("cr0", X.UC_X86_REG_CR0), ("cr4", X.UC_X86_REG_CR4)):
        if struct.unpack_from("<Q", probe.state(), f[name])[0] != uc.reg_read(register):
            raise EngineError(f"unicorn {unicorn.__version__}: control registers are not adjacent ({name})")


def _find_tables(probe: _Probe) -> None:
    f, uc = probe.found, probe.uc
    tables = {"gdt": X.UC_X86_REG_GDTR, "idt": X.UC_X86_REG_IDTR, "ldt": X.UC_X86_REG_LDTR, "tr": X.UC_X86_REG_TR}
    selector_to_base = None
    for number, (name, register) in enumerate(tables.items()):
        base = 0x5EED_0AB0_0000 + (number << 16)
        uc.reg_write(register, (0x6B7A, base, 0x6E5D, 0x8B00))
        state = probe.state()
        at = state.index(struct.pack("<Q", base))
        if name in ("ldt", "tr"):
            selector = state.rindex(struct.pack("<I", 0x6B7A), 0, at)
            selector_to_base = at - selector
        f[name] = at
        uc.reg_write(register, (0, 0, 0, 0))
    if selector_to_base is None:
        raise EngineError(f"unicorn {unicorn.__version__}: segment caches were not found")
    for name in tables:
        f[name] -= selector_to_base
    f["segs"] = f.pop("fs_base") - selector_to_base - 4 * f["segment_stride"]


def _find_msrs(probe: _Probe) -> None:
    uc = probe.uc
    wanted = {
        "star": (0xC0000081, 0x05EE_D0E1_0000_0000),
        "lstar": (0xC0000082, 0x5EED_0E20_000),
        "cstar": (0xC0000083, 0x5EED_0E21_000),
        "fmask": (0xC0000084, 0x0000_0000_5EED_0E22),
        "kernel_gs_base": (0xC0000102, 0x5EED_0E30_000),
        "sysenter_cs": (0x174, 0x5EED),
        "sysenter_esp": (0x175, 0x5EED_0E40_000),
        "sysenter_eip": (0x176, 0x5EED_0E50_000),
        "pat": (0x277, 0x0007_0406_0007_0105),
        "efer": (0xC0000080, uc.msr_read(0xC0000080) ^ 1),
    }
    for name, (index, value) in wanted.items():
        before, old = probe.state(), uc.msr_read(index)
        uc.msr_write(index, value)
        after, width = probe.state(), 4 if name == "sysenter_cs" else 8
        needle = value.to_bytes(width, "little")
        probe.settle(
            name, (at for at in _occurrences(after, needle) if at % 4 == 0 and before[at : at + width] != needle)
        )
        uc.msr_write(index, old)


def _find_flags(probe: _Probe) -> None:
    uc, update = probe.uc, probe.function("x86_update_hflags", None, C.c_void_p)
    uc.reg_write(X.UC_X86_REG_EFLAGS, 2)
    before = probe.state()
    uc.reg_write(X.UC_X86_REG_EFLAGS, 0x3002)
    after = probe.state()
    iopl = [at for at, (old, new) in _changed(before, after).items() if new & 0x3000 == 0x3000 and not old & 0x3000]
    efer = uc.msr_read(0xC0000080)
    uc.msr_write(0xC0000080, efer | 0x1000)
    svme = [at for at, (old, new) in _changed(after, probe.state()).items() if old ^ new == 1 << 20]
    uc.msr_write(0xC0000080, efer)
    hflags = probe.settle("hflags", svme)
    probe.settle("eflags", (at for at in iopl if at != hflags))
    uc.reg_write(X.UC_X86_REG_EFLAGS, 2)
    update(probe.env)
    clear, put = (probe.function(name, None, C.c_void_p) for name in ("helper_clgi", "helper_stgi"))
    clear(probe.env)
    before = probe.state()
    put(probe.env)
    probe.settle("hflags2", (at for at, (old, new) in _changed(before, probe.state()).items() if old ^ new == 1))
    uc.reg_write(X.UC_X86_REG_EFLAGS, 2)
    before = probe.state()
    uc.reg_write(X.UC_X86_REG_EFLAGS, 0x402)
    direction = _changed(before, probe.state()).items()
    probe.settle("df", (at for at, change in direction if change == (1, 0xFFFF_FFFF)))
    uc.reg_write(X.UC_X86_REG_EFLAGS, 2)
    before = probe.state()
    uc.reg_write(X.UC_X86_REG_EFLAGS, 0x8D7)
    after = probe.state()
    probe.settle("cc_src", (at for at in _changed(before, after) if struct.unpack_from("<I", after, at)[0] == 0x8D5))
    uc.reg_write(X.UC_X86_REG_EFLAGS, 2)


def _execute(probe: _Probe, code: str, *, at: int | None = None) -> tuple[int, bytes, bytes, int]:
    """Run instructions until an interrupt or exception: its number, both states at that moment, the code's address."""
    caught: list[tuple[int, bytes, bytes]] = []

    def on_interrupt(uc: unicorn.Uc, number: int, _: object) -> None:
        caught.append((number, probe.state(), probe.cpu_state()))
        uc.emu_stop()

    if at is None:
        probe.next_code += 0x100
        at = probe.next_code
    hook = probe.uc.hook_add(unicorn.UC_HOOK_INTR, on_interrupt)
    probe.uc.mem_write(at, bytes.fromhex(code) + b"\x90" * 8)
    try:
        probe.uc.emu_start(at, at + 0x80)
    finally:
        probe.uc.hook_del(hook)
    if not caught:
        raise EngineError(f"unicorn {unicorn.__version__}: code {code} raised no interrupt in the self-test")
    return (*caught[0], at)


def _find_exceptions(probe: _Probe) -> None:
    probe.uc.reg_write(X.UC_X86_REG_RSP, 0x80000)
    gp, gp_state, gp_cpu, _ = _execute(probe, "66b8c8ab8ed8")  # mov ds, 0xabc8: #GP(0xabc8)
    first, first_state, first_cpu, first_at = _execute(probe, "cd21")
    second, second_state, second_cpu, second_at = _execute(probe, "cd35")
    probe.settle("error_code", _aligned(gp_state, 0xABC8, 4) - {0})
    indexes = _aligned(gp_cpu, gp, 4) & _aligned(first_cpu, first, 4) & _aligned(second_cpu, second, 4)
    probe.settle("exception_index", indexes)
    next_eip = _aligned(first_state, first_at + 2, 8) & _aligned(second_state, second_at + 2, 8)
    at = probe.settle("exception_next_eip", next_eip - {probe.found["eip"]})
    flagged = _aligned(first_state, 1, 4) & _aligned(second_state, 1, 4) & _aligned(gp_state, 0, 4)
    probe.settle("exception_is_int", (word for word in flagged if abs(word - at) < 64))
    held = []
    for word in _aligned(gp_state, 13, 4):
        C.c_int32.from_address(probe.env + word).value = -1
        try:
            number, state, _, _ = _execute(probe, "31c9f7f1")  # div by zero: #DE
        except EngineError:  # not this word: the engine saw two faults, then a third
            continue
        if number == 0 and struct.unpack_from("<I", state, word)[0] == 0:
            held.append(word)
    old = probe.settle("old_exception", held)
    C.c_int32.from_address(probe.env + old).value = -1


def _find_arithmetic(probe: _Probe) -> None:
    uc = probe.uc
    uc.reg_write(X.UC_X86_REG_RAX, 0x5EED_0000_0000_0000)
    uc.reg_write(X.UC_X86_REG_RBX, 0x1122_3344)
    _, state, _, _ = _execute(probe, "4801d8cd21")  # add rax, rbx; int 0x21
    probe.settle("cc_dst", _aligned(state, 0x5EED_0000_1122_3344, 8) - {0})
    # cc_op sits between the operands of the last operation and the direction flag.
    low, high = probe.found["cc_src"], probe.found["df"]
    uc.reg_write(X.UC_X86_REG_EFLAGS, 2)
    after = probe.state()
    probe.settle(
        "cc_op", (at for at, (old, new) in _changed(state, after).items() if low < at < high and new == 1 and old > 1)
    )


def _find_exit_request(probe: _Probe) -> None:
    before = probe.cpu_state()
    probe.library.cpu_exit(C.c_void_p(probe.cpu))
    changed = _changed(before, probe.cpu_state())
    probe.settle("icount_decr", (at for at, (old, new) in changed.items() if old ^ new == 0xFFFF_0000))


def _find_interrupt_request(probe: _Probe) -> None:
    """The exported function that clears bits in it touches nothing else: set all bits everywhere and see where."""
    saved, mask = probe.cpu_state(), 0x0102_0408
    try:
        C.memset(probe.cpu, 0xFF, len(saved))
        probe.library.cpu_reset_interrupt(C.c_void_p(probe.cpu), C.c_int(mask))
        changed = _changed(b"\xff" * len(saved), probe.cpu_state())
    finally:
        C.memmove(probe.cpu, saved, len(saved))
    probe.settle("interrupt_request", (at for at, (_, new) in changed.items() if new == 0xFFFF_FFFF ^ mask))


def discover(library: C.CDLL) -> Layout:
    """Find every offset of the table in ``native/layout.def``.

    Parameters
    ----------
    library:
        libunicorn as the Python binding loaded it.

    Raises
    ------
    EngineError
        A field was found nowhere or more than once; the message names it and the engine's version.
    """
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.ctl_set_cpu_model(X.UC_CPU_X86_EPYC)
    uc.mem_map(0, 0x400000)
    handle = uc._uch.value if hasattr(uc._uch, "value") else int(uc._uch)
    library.uc_context_size.restype = C.c_size_t
    probe = _Probe(library, uc, handle)
    _locate_cpu(probe)
    start = uc.context_save()
    for find in (_find_registers, _find_tables, _find_msrs, _find_flags):
        find(probe)
    uc.context_restore(start)
    for find in (_find_exceptions, _find_arithmetic, _find_interrupt_request, _find_exit_request):
        find(probe)
    layout = Layout(probe.found, probe.env - probe.cpu)
    # Free the engine's 1 GiB code buffer now: the machine's own must lie within 2 GiB of the library, else every call
    # from translated code is an indirect one, and small loops take twice as long.
    del probe, uc, start
    gc.collect()
    return layout
