"""VMCS states that pass every VM-entry check, and small edits of them, for the tests of the checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from lzero.cpu.checks import CheckContext
from lzero.sdm.capabilities import EptVpidCap, VmxCapabilities, VmxMisc
from lzero.sdm.controls import (
    ControlFlag,
    PinBased,
    ProcBased,
    ProcBased2,
    ProcBased3,
    VmEntry,
    VmExit,
    VmExit2,
)
from lzero.sdm.registers import Cr0, Cr4, DebugCtl
from lzero.sdm.vmcs_fields import Field

REVISION = 0x0123_4567
PHYSICAL_WIDTH = 46
BEYOND = 1 << PHYSICAL_WIDTH
NON_CANONICAL = 1 << 47


def all_bits(word: type[ControlFlag]) -> int:
    """Every known bit of a control word."""
    return sum(int(flag) for flag in word)


EVERYTHING = VmxCapabilities.offering(
    pin=all_bits(PinBased),
    proc=all_bits(ProcBased),
    proc2=all_bits(ProcBased2),
    proc3=all_bits(ProcBased3),
    exit=all_bits(VmExit),
    exit2=all_bits(VmExit2),
    entry=all_bits(VmEntry),
    vmfunc=1,
    ept_vpid=all_bits(EptVpidCap),
    misc=all_bits(VmxMisc),
    vmcs_revision_id=REVISION,
    cr4_fixed1=all_bits(Cr4),
    physical_address_width=PHYSICAL_WIDTH,
    debugctl_valid=all_bits(DebugCtl),
    perf_global_ctrl_valid=0x7_0000_000F,
    rtit_ctl_valid=0xF,
    lbr_ctl_valid=0xF,
    spec_ctrl_valid=0x7,
    sgx_supported=True,
    rtm_supported=True,
    smm_supported=True,
)
"""An offer of every feature the tables know."""


@dataclass
class State:
    """A VMCS, memory and processor state, open to edits."""

    values: dict[int, int]
    memory: dict[int, int] = field(default_factory=dict)
    capabilities: VmxCapabilities = EVERYTHING
    processor: dict[str, Any] = field(default_factory=dict)

    def read_memory(self, address: int, length: int) -> bytes:
        """Bytes that were put there, 0xff elsewhere."""
        return bytes(self.memory.get(address + n, 0xFF) for n in range(length))

    def context(self) -> CheckContext:
        """The state as the checks see it."""
        return CheckContext(self.values.__getitem__, self.capabilities, self.read_memory, **self.processor)


Edit = Callable[[State], None]

FLAT_CODE_64, FLAT_CODE_32, FLAT_DATA = 0xA09B, 0xC09B, 0xC093
UNUSABLE = 0x1_0000
BUSY_TSS = 0x8B


def long_mode() -> State:
    """A 64-bit guest of a 64-bit host, plainest controls."""
    values = {int(f): 0 for f in Field}
    caps = EVERYTHING
    values |= {
        Field.PIN_BASED_VM_EXECUTION_CONTROLS: caps.pin.allowed0,
        Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: caps.proc.allowed0,
        Field.VM_EXIT_CONTROLS: caps.exit.allowed0 | VmExit.HOST_ADDRESS_SPACE_SIZE,
        Field.VM_ENTRY_CONTROLS: caps.entry.allowed0 | VmEntry.IA32E_MODE_GUEST,
        Field.HOST_CR0: Cr0.PE | Cr0.PG | Cr0.NE | Cr0.WP,
        Field.HOST_CR4: Cr4.PAE | Cr4.VMXE,
        Field.HOST_CS_SELECTOR: 0x08,
        Field.HOST_TR_SELECTOR: 0x18,
        Field.GUEST_CR0: Cr0.PE | Cr0.PG | Cr0.NE | Cr0.WP,
        Field.GUEST_CR4: Cr4.PAE | Cr4.VMXE,
        Field.GUEST_RFLAGS: 2,
        Field.GUEST_CS_ACCESS_RIGHTS: FLAT_CODE_64,
        Field.GUEST_CS_LIMIT: 0xFFFF_FFFF,
        Field.GUEST_TR_ACCESS_RIGHTS: BUSY_TSS,
        Field.GUEST_TR_LIMIT: 0x67,
        Field.GUEST_LDTR_ACCESS_RIGHTS: 0x82,
        Field.GUEST_LDTR_LIMIT: 0xFFF,
        Field.VMCS_LINK_POINTER: (1 << 64) - 1,
        Field.TSC_MULTIPLIER: 1 << 48,
    }
    for name in ("SS", "DS", "ES", "FS", "GS"):
        values[Field[f"GUEST_{name}_ACCESS_RIGHTS"]] = FLAT_DATA
        values[Field[f"GUEST_{name}_LIMIT"]] = 0xFFFF_FFFF
    return State({int(f): int(v) for f, v in values.items()})


def protected_mode() -> State:
    """A 32-bit guest with paging but without PAE, of a 64-bit host."""
    state = long_mode()
    off(VmEntry.IA32E_MODE_GUEST)(state)
    put(GUEST_CR4=Cr4.VMXE, GUEST_CS_ACCESS_RIGHTS=FLAT_CODE_32)(state)
    return state


def pae_paging() -> State:
    """A 32-bit guest with PAE paging whose page-directory pointers are all not present."""
    state = protected_mode()
    put(GUEST_CR4=Cr4.VMXE | Cr4.PAE, GUEST_CR3=0x2000)(state)
    for n in range(32):
        state.memory[0x2000 + n] = 0
    return state


def virtual_8086() -> State:
    """A guest in virtual-8086 mode."""
    state = protected_mode()
    put(GUEST_RFLAGS=0x20202)(state)
    for name in ("CS", "SS", "DS", "ES", "FS", "GS"):
        names = {"SELECTOR": 0x1000, "BASE": 0x10000, "LIMIT": 0xFFFF, "ACCESS_RIGHTS": 0xF3}
        put(**{f"GUEST_{name}_{part}": value for part, value in names.items()})(state)
    return state


def real_mode() -> State:
    """An unrestricted guest in real mode."""
    state = protected_mode()
    on(ProcBased2.ENABLE_EPT, ProcBased2.UNRESTRICTED_GUEST)(state)
    put(EPT_POINTER=0x101E, GUEST_CR0=Cr0.NE, GUEST_CS_ACCESS_RIGHTS=0x9B)(state)
    for name in ("CS", "SS", "DS", "ES", "FS", "GS"):
        put(**{f"GUEST_{name}_LIMIT": 0xFFFF, f"GUEST_{name}_ACCESS_RIGHTS": 0x93})(state)
    return state


def protected_host() -> State:
    """A 32-bit guest of a processor outside IA-32e mode."""
    state = protected_mode()
    off(VmExit.HOST_ADDRESS_SPACE_SIZE)(state)
    put(HOST_SS_SELECTOR=0x10)(state)
    state.processor["ia32e_mode"] = False
    return state


STATES = (long_mode, protected_mode, pae_paging, virtual_8086, real_mode, protected_host)
"""All of these pass."""


def put(**values: int) -> Edit:
    """Set fields by name."""
    pairs = {int(Field[name]): int(value) for name, value in values.items()}

    def edit(state: State) -> None:
        state.values |= pairs

    return edit


def flip(**masks: int) -> Edit:
    """Invert bits of fields by name."""

    def edit(state: State) -> None:
        for name, mask in masks.items():
            state.values[int(Field[name])] ^= int(mask)

    return edit


_WORDS: dict[type, tuple[Field, ControlFlag | None]] = {
    PinBased: (Field.PIN_BASED_VM_EXECUTION_CONTROLS, None),
    ProcBased: (Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, None),
    ProcBased2: (Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, ProcBased.ACTIVATE_SECONDARY_CONTROLS),
    ProcBased3: (Field.TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, ProcBased.ACTIVATE_TERTIARY_CONTROLS),
    VmExit: (Field.VM_EXIT_CONTROLS, None),
    VmExit2: (Field.SECONDARY_VM_EXIT_CONTROLS, VmExit.ACTIVATE_SECONDARY_CONTROLS),
    VmEntry: (Field.VM_ENTRY_CONTROLS, None),
}


def on(*flags: ControlFlag) -> Edit:
    """Turn controls on, and with them the control that activates their word."""

    def edit(state: State) -> None:
        for flag in flags:
            word, activator = _WORDS[type(flag)]
            state.values[int(word)] |= int(flag)
            if activator is not None:
                on(activator)(state)

    return edit


def off(*flags: ControlFlag) -> Edit:
    """Turn controls off."""

    def edit(state: State) -> None:
        for flag in flags:
            state.values[int(_WORDS[type(flag)][0])] &= ~int(flag)

    return edit


def offer(**fields: Any) -> Edit:
    """Change what the processor offers."""

    def edit(state: State) -> None:
        state.capabilities = replace(state.capabilities, **fields)

    return edit


def processor(**attributes: Any) -> Edit:
    """Change the processor's state."""

    def edit(state: State) -> None:
        state.processor |= attributes

    return edit


def store(address: int, value: int, length: int) -> Edit:
    """Put a little-endian number into memory."""

    def edit(state: State) -> None:
        for n, byte in enumerate(value.to_bytes(length, "little")):
            state.memory[address + n] = byte

    return edit
