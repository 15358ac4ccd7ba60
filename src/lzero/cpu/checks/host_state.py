"""Checks on the host-state area (SDM vol. 3, 27.2.2 to 27.2.4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lzero.sdm.controls import ControlFlag, VmEntry, VmExit, VmExit2
from lzero.sdm.registers import Cr0, Cr4, Efer
from lzero.sdm.vmcs_fields import Field

from .model import Check, CheckContext, CheckGroup, Outside, Predicate
from .terms import ENTRY, EXIT, canonical, fixed_bits, physical, rule, value_of

__all__ = ["HOST_STATE_CHECKS", "fred_checks", "pat_is_valid", "s_cet_is_valid"]

_REGISTERS = "27.2.2"
_SEGMENTS = "27.2.3"
_SIZE = "27.2.4"
_F = Field
_CR0, _CR4 = int(Field.HOST_CR0), int(Field.HOST_CR4)
_WP, _CET, _PAE, _PCIDE, _FRED = int(Cr0.WP), int(Cr4.CET), int(Cr4.PAE), int(Cr4.PCIDE), int(Cr4.FRED)
_HOST_64 = int(VmExit.HOST_ADDRESS_SPACE_SIZE)
_IA32E_GUEST = int(VmEntry.IA32E_MODE_GUEST)
_LMA_LME = int(Efer.LMA | Efer.LME)
_PAT_TYPES = frozenset({0, 1, 4, 5, 6, 7})


def pat_is_valid(pat: int) -> bool:
    """Each byte is a memory type that WRMSR accepts in IA32_PAT."""
    return _PAT_TYPES.issuperset(pat.to_bytes(8, "little"))


def s_cet_is_valid(s_cet: int) -> bool:
    """Bits 9:6 are 0, and SUPPRESS (10) and TRACKER (11) are not both 1."""
    return not s_cet & 0x3C0 and s_cet & 0xC00 != 0xC00


_rule = partial(rule, CheckGroup.HOST_STATE)
_FRED_CONFIG_RESERVED = 0x834


def fred_checks(side: str, make: Callable[..., Check], section: str, when: ControlFlag) -> tuple[Check, ...]:
    """Rules on the FRED MSRs, the same in both state areas; ``side`` is ``host`` or ``guest``."""

    def one(name: str, text: str, reserved: int) -> Check:
        field = Field[f"{side.upper()}_IA32_FRED_{name}"]
        is_canonical = canonical(field)

        def predicate(c: CheckContext) -> bool:
            return not c.read(int(field)) & reserved and is_canonical(c)

        text = f"{text} of the {side}'s IA32_FRED_{name} are 0, and it is canonical"
        return make(f"{side}.fred.{name.lower()}", section, text, (field,), predicate, when=when)

    return (
        one("CONFIG", "bits 11, 5:4 and 2", _FRED_CONFIG_RESERVED),
        *(one(f"RSP{n}", "bits 5:0", 0x3F) for n in (1, 2, 3)),
        *(one(f"SSP{n}", "bits 2:0", 0x7) for n in (1, 2, 3)),
    )


def _cr0_fixed(c: CheckContext) -> bool:
    return fixed_bits(c.read(_CR0), c.capabilities.cr0_fixed0, c.capabilities.cr0_fixed1)


def _cr4_fixed(c: CheckContext) -> bool:
    return fixed_bits(c.read(_CR4), c.capabilities.cr4_fixed0, c.capabilities.cr4_fixed1)


def _cet_needs_wp(c: CheckContext) -> bool:
    return not c.read(_CR4) & _CET or bool(c.read(_CR0) & _WP)


def _perf_global_ctrl(c: CheckContext) -> bool:
    return not c.read(int(_F.HOST_IA32_PERF_GLOBAL_CTRL)) & ~c.capabilities.perf_global_ctrl_valid


def _efer_reserved(c: CheckContext) -> bool:
    return not c.read(int(_F.HOST_IA32_EFER)) & ~c.capabilities.efer_valid


def _efer_mode(c: CheckContext) -> bool:
    wanted = _LMA_LME if c.read(EXIT) & _HOST_64 else 0
    return c.read(int(_F.HOST_IA32_EFER)) & _LMA_LME == wanted


def _selector(name: str) -> Check:
    field = Field[f"HOST_{name}_SELECTOR"]
    text = f"RPL and TI of the host's {name} selector are 0"
    return _rule(f"host.{name.lower()}.selector", _SEGMENTS, text, (field,), value_of(field, lambda v: not v & 7))


def _base(name: str) -> Check:
    field = Field[f"HOST_{name}_BASE"]
    text = f"the host's {name} base is canonical"
    return _rule(f"host.{name.lower()}.base", _SEGMENTS, text, (field,), canonical(field))


def _nonzero(name: str) -> Check:
    field = Field[f"HOST_{name}_SELECTOR"]
    text = f"the host's {name} selector is not 0"
    return _rule(f"host.{name.lower()}.null", _SEGMENTS, text, (field,), value_of(field, lambda v: v != 0))


def _ss_null(c: CheckContext) -> bool:
    return bool(c.read(EXIT) & _HOST_64 or c.read(int(_F.HOST_SS_SELECTOR)))


def _outside_ia32e_guest(c: CheckContext) -> bool:
    return c.ia32e_mode or not c.read(ENTRY) & _IA32E_GUEST


def _size_is_mode(c: CheckContext) -> bool:
    return bool(c.read(EXIT) & _HOST_64) == c.ia32e_mode


def _when_32(test: Predicate) -> Predicate:
    """``test`` for a host that is not 64-bit."""

    def predicate(c: CheckContext) -> bool:
        return bool(c.read(EXIT) & _HOST_64) or test(c)

    return predicate


def _when_64(test: Predicate) -> Predicate:
    """``test`` for a 64-bit host."""

    def predicate(c: CheckContext) -> bool:
        return not c.read(EXIT) & _HOST_64 or test(c)

    return predicate


def _spec_ctrl(c: CheckContext) -> bool:
    return not c.read(int(_F.HOST_IA32_SPEC_CTRL)) & ~c.capabilities.spec_ctrl_valid


_EXIT_FIELD, _ENTRY_FIELD = Field(EXIT), Field(ENTRY)


def _fits_32(value: int) -> bool:
    return not value >> 32


def _size32(
    suffix: str, text: str, field: Field, test: Callable[[int], bool], *, when: ControlFlag | None = None
) -> Check:
    predicate = _when_32(value_of(field, test))
    text = f"a host that is not 64-bit {text}"
    return _rule(f"host.size32.{suffix}", _SIZE, text, (_EXIT_FIELD, field), predicate, when=when)


def _size64(suffix: str, text: str, field: Field, test: Predicate, *, when: ControlFlag | None = None) -> Check:
    text = f"a 64-bit host {text}"
    return _rule(f"host.size64.{suffix}", _SIZE, text, (_EXIT_FIELD, field), _when_64(test), when=when)


HOST_STATE_CHECKS: tuple[Check, ...] = (
    _rule("host.cr0.fixed", _REGISTERS, "the host's CR0 has only bits that VMX allows", (_F.HOST_CR0,), _cr0_fixed),
    _rule("host.cr4.fixed", _REGISTERS, "the host's CR4 has only bits that VMX allows", (_F.HOST_CR4,), _cr4_fixed),
    _rule("host.cr4.cet", _REGISTERS, "the host's CR4.CET needs CR0.WP", (_F.HOST_CR4, _F.HOST_CR0), _cet_needs_wp),
    _rule(
        "host.cr3.width",
        _REGISTERS,
        "the host's CR3 has no bit beyond the physical-address width",
        (_F.HOST_CR3,),
        physical(_F.HOST_CR3),
    ),
    _rule(
        "host.sysenter_esp",
        _REGISTERS,
        "the host's IA32_SYSENTER_ESP is canonical",
        (_F.HOST_IA32_SYSENTER_ESP,),
        canonical(_F.HOST_IA32_SYSENTER_ESP),
    ),
    _rule(
        "host.sysenter_eip",
        _REGISTERS,
        "the host's IA32_SYSENTER_EIP is canonical",
        (_F.HOST_IA32_SYSENTER_EIP,),
        canonical(_F.HOST_IA32_SYSENTER_EIP),
    ),
    _rule(
        "host.s_cet.reserved",
        _REGISTERS,
        "reserved bits of the host's IA32_S_CET are 0, and SUPPRESS and TRACKER not both 1",
        (_F.HOST_IA32_S_CET,),
        value_of(_F.HOST_IA32_S_CET, s_cet_is_valid),
        when=VmExit.LOAD_CET_STATE,
    ),
    _rule(
        "host.ssp.alignment",
        _REGISTERS,
        "bits 1:0 of the host's SSP are 0",
        (_F.HOST_SSP,),
        value_of(_F.HOST_SSP, lambda ssp: not ssp & 3),
        when=VmExit.LOAD_CET_STATE,
    ),
    _rule(
        "host.perf_global_ctrl",
        _REGISTERS,
        "reserved bits of the host's IA32_PERF_GLOBAL_CTRL are 0",
        (_F.HOST_IA32_PERF_GLOBAL_CTRL,),
        _perf_global_ctrl,
        when=VmExit.LOAD_IA32_PERF_GLOBAL_CTRL,
    ),
    _rule(
        "host.pat",
        _REGISTERS,
        "each byte of the host's IA32_PAT is a memory type",
        (_F.HOST_IA32_PAT,),
        value_of(_F.HOST_IA32_PAT, pat_is_valid),
        when=VmExit.LOAD_IA32_PAT,
    ),
    _rule(
        "host.efer.reserved",
        _REGISTERS,
        "reserved bits of the host's IA32_EFER are 0",
        (_F.HOST_IA32_EFER,),
        _efer_reserved,
        when=VmExit.LOAD_IA32_EFER,
    ),
    _rule(
        "host.efer.mode",
        _REGISTERS,
        "LMA and LME of the host's IA32_EFER are both the host address-space size",
        (_F.HOST_IA32_EFER,),
        _efer_mode,
        when=VmExit.LOAD_IA32_EFER,
    ),
    _rule(
        "host.pkrs",
        _REGISTERS,
        "bits 63:32 of the host's IA32_PKRS are 0",
        (_F.HOST_IA32_PKRS,),
        value_of(_F.HOST_IA32_PKRS, lambda pkrs: not pkrs >> 32),
        when=VmExit.LOAD_PKRS,
    ),
    *fred_checks("host", _rule, _REGISTERS, VmExit2.LOAD_FRED),
    _rule(
        "host.spec_ctrl",
        _REGISTERS,
        "reserved bits of the host's IA32_SPEC_CTRL are 0",
        (_F.HOST_IA32_SPEC_CTRL,),
        _spec_ctrl,
        when=VmExit2.LOAD_IA32_SPEC_CTRL,
    ),
    *(_selector(name) for name in ("CS", "SS", "DS", "ES", "FS", "GS", "TR")),
    _nonzero("CS"),
    _nonzero("TR"),
    _rule(
        "host.ss.null",
        _SEGMENTS,
        "the host's SS selector is not 0 unless the host is 64-bit",
        (_F.HOST_SS_SELECTOR, _EXIT_FIELD),
        _ss_null,
    ),
    *(_base(name) for name in ("FS", "GS", "GDTR", "IDTR", "TR")),
    _rule(
        "host.mode.ia32e_guest",
        _SIZE,
        "outside IA-32e mode, the IA-32e mode guest control is 0",
        (_ENTRY_FIELD,),
        _outside_ia32e_guest,
        outside=Outside.PROCESSOR,
    ),
    _rule(
        "host.mode.address_space_size",
        _SIZE,
        "the host address-space size is 1 exactly in IA-32e mode",
        (_EXIT_FIELD,),
        _size_is_mode,
        outside=Outside.PROCESSOR,
    ),
    _size32("ia32e_guest", "has no IA-32e mode guest", Field(ENTRY), lambda value: not value & _IA32E_GUEST),
    _size32("pcide", "has CR4.PCIDE = 0", _F.HOST_CR4, lambda cr4: not cr4 & _PCIDE),
    _size32("fred", "has CR4.FRED = 0", _F.HOST_CR4, lambda cr4: not cr4 & _FRED),
    _size32("rip", "has bits 63:32 of RIP 0", _F.HOST_RIP, _fits_32),
    _size32("s_cet", "has bits 63:32 of IA32_S_CET 0", _F.HOST_IA32_S_CET, _fits_32, when=VmExit.LOAD_CET_STATE),
    _size32("ssp", "has bits 63:32 of SSP 0", _F.HOST_SSP, _fits_32, when=VmExit.LOAD_CET_STATE),
    _size64("pae", "has CR4.PAE = 1", _F.HOST_CR4, value_of(_F.HOST_CR4, lambda cr4: bool(cr4 & _PAE))),
    _size64("rip", "has a canonical RIP", _F.HOST_RIP, canonical(_F.HOST_RIP)),
    _size64(
        "s_cet",
        "has a canonical IA32_S_CET",
        _F.HOST_IA32_S_CET,
        canonical(_F.HOST_IA32_S_CET),
        when=VmExit.LOAD_CET_STATE,
    ),
    _size64("ssp", "has a canonical SSP", _F.HOST_SSP, canonical(_F.HOST_SSP), when=VmExit.LOAD_CET_STATE),
    _rule(
        "host.interrupt_ssp_table",
        _SIZE,
        "the host's IA32_INTERRUPT_SSP_TABLE_ADDR is canonical",
        (_F.HOST_IA32_INTERRUPT_SSP_TABLE_ADDR,),
        canonical(_F.HOST_IA32_INTERRUPT_SSP_TABLE_ADDR),
        when=VmExit.LOAD_CET_STATE,
    ),
)
"""Rules on the host-state area in the manual's order."""
