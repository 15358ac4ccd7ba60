"""Checks on guest control registers, debug registers, MSRs, RIP and RFLAGS (SDM vol. 3, 27.3.1.1, .3 and .4)."""

from __future__ import annotations

from functools import partial

from lzero.sdm.controls import ProcBased2, VmEntry
from lzero.sdm.registers import RFLAGS_ALWAYS_ONE, RFLAGS_RESERVED, AccessRights, Cr0, Cr4, Efer, Rflags
from lzero.sdm.vmcs_fields import Field

from .host_state import fred_checks, pat_is_valid, s_cet_is_valid
from .model import Check, CheckContext, CheckGroup
from .terms import ENTRY, EVENT, EVENT_VALID, PROC, PROC2, canonical, fixed_bits, gate, physical, rule, value_of

__all__ = ["DESCRIPTOR_TABLE_CHECKS", "GUEST_REGISTER_CHECKS", "RIP_RFLAGS_CHECKS", "guest_rule"]

_REGISTERS = "27.3.1.1"
_TABLES = "27.3.1.3"
_FLAGS = "27.3.1.4"
_F = Field
_CR0, _CR4 = int(Field.GUEST_CR0), int(Field.GUEST_CR4)
_EFER, _RFLAGS = int(Field.GUEST_IA32_EFER), int(Field.GUEST_RFLAGS)
_RIP, _SSP, _CS_RIGHTS = int(Field.GUEST_RIP), int(Field.GUEST_SSP), int(Field.GUEST_CS_ACCESS_RIGHTS)
_PE, _PG, _WP = int(Cr0.PE), int(Cr0.PG), int(Cr0.WP)
_NW_CD = int(Cr0.NW | Cr0.CD)
_PAE, _PCIDE, _CET, _FRED = int(Cr4.PAE), int(Cr4.PCIDE), int(Cr4.CET), int(Cr4.FRED)
_LMA, _LME = int(Efer.LMA), int(Efer.LME)
_VM, _IF = int(Rflags.VM), int(Rflags.IF)
_IA32E = int(VmEntry.IA32E_MODE_GUEST)
_LONG = int(AccessRights.L)
_UNRESTRICTED_SET = gate(ProcBased2.UNRESTRICTED_GUEST).is_set


guest_rule = partial(rule, CheckGroup.GUEST_STATE)


def _cr0_fixed(c: CheckContext) -> bool:
    caps, cr0 = c.capabilities, c.read(_CR0)
    # NW and CD are never checked, PE and PG not in an unrestricted guest.
    ignored = _NW_CD | _PE | _PG if _UNRESTRICTED_SET(c) else _NW_CD
    return fixed_bits(cr0, caps.cr0_fixed0 & ~ignored, caps.cr0_fixed1 | ignored)


def _pg_needs_pe(c: CheckContext) -> bool:
    return c.read(_CR0) & (_PG | _PE) != _PG


def _cr4_fixed(c: CheckContext) -> bool:
    return fixed_bits(c.read(_CR4), c.capabilities.cr4_fixed0, c.capabilities.cr4_fixed1)


def _cet_needs_wp(c: CheckContext) -> bool:
    return not c.read(_CR4) & _CET or bool(c.read(_CR0) & _WP)


def _debugctl(c: CheckContext) -> bool:
    return not c.read(int(_F.GUEST_IA32_DEBUGCTL)) & ~c.capabilities.debugctl_valid


def _ia32e_paging(c: CheckContext) -> bool:
    return bool(c.read(_CR0) & _PG)


def _ia32e_pae(c: CheckContext) -> bool:
    return bool(c.read(_CR4) & _PAE)


def _pcide_needs_ia32e(c: CheckContext) -> bool:
    return bool(c.read(ENTRY) & _IA32E) or not c.read(_CR4) & _PCIDE


def _fred_needs_ia32e(c: CheckContext) -> bool:
    return bool(c.read(ENTRY) & _IA32E) or not c.read(_CR4) & _FRED


def _perf_global_ctrl(c: CheckContext) -> bool:
    return not c.read(int(_F.GUEST_IA32_PERF_GLOBAL_CTRL)) & ~c.capabilities.perf_global_ctrl_valid


def _efer_reserved(c: CheckContext) -> bool:
    return not c.read(_EFER) & ~c.capabilities.efer_valid


def _efer_lma(c: CheckContext) -> bool:
    return bool(c.read(_EFER) & _LMA) == bool(c.read(ENTRY) & _IA32E)


def _efer_lme(c: CheckContext) -> bool:
    efer = c.read(_EFER)
    return not c.read(_CR0) & _PG or bool(efer & _LMA) == bool(efer & _LME)


_BNDCFGS_CANONICAL = canonical(Field.GUEST_IA32_BNDCFGS)


def _rtit_ctl(c: CheckContext) -> bool:
    return not c.read(int(_F.GUEST_IA32_RTIT_CTL)) & ~c.capabilities.rtit_ctl_valid


def _spec_ctrl(c: CheckContext) -> bool:
    return not c.read(int(_F.GUEST_IA32_SPEC_CTRL)) & ~c.capabilities.spec_ctrl_valid


def _lbr_ctl(c: CheckContext) -> bool:
    return not c.read(int(_F.GUEST_IA32_LBR_CTL)) & ~c.capabilities.lbr_ctl_valid


_ENTRY_FIELD = Field(ENTRY)

GUEST_REGISTER_CHECKS: tuple[Check, ...] = (
    guest_rule(
        "guest.cr0.fixed",
        _REGISTERS,
        "CR0 has no bit that VMX does not allow (NW and CD aside; PE and PG in an unrestricted guest)",
        (_F.GUEST_CR0, Field(PROC), Field(PROC2)),
        _cr0_fixed,
    ),
    guest_rule("guest.cr0.pg", _REGISTERS, "CR0.PG needs CR0.PE", (_F.GUEST_CR0,), _pg_needs_pe),
    guest_rule("guest.cr4.fixed", _REGISTERS, "CR4 has no bit that VMX does not allow", (_F.GUEST_CR4,), _cr4_fixed),
    guest_rule("guest.cr4.cet", _REGISTERS, "CR4.CET needs CR0.WP", (_F.GUEST_CR4, _F.GUEST_CR0), _cet_needs_wp),
    guest_rule(
        "guest.debugctl",
        _REGISTERS,
        "reserved bits of IA32_DEBUGCTL are 0",
        (_F.GUEST_IA32_DEBUGCTL,),
        _debugctl,
        when=VmEntry.LOAD_DEBUG_CONTROLS,
    ),
    guest_rule(
        "guest.ia32e.paging",
        _REGISTERS,
        "an IA-32e mode guest has CR0.PG = 1",
        (_F.GUEST_CR0,),
        _ia32e_paging,
        when=VmEntry.IA32E_MODE_GUEST,
    ),
    guest_rule(
        "guest.ia32e.pae",
        _REGISTERS,
        "an IA-32e mode guest has CR4.PAE = 1",
        (_F.GUEST_CR4,),
        _ia32e_pae,
        when=VmEntry.IA32E_MODE_GUEST,
    ),
    guest_rule(
        "guest.cr4.pcide",
        _REGISTERS,
        "CR4.PCIDE needs an IA-32e mode guest",
        (_F.GUEST_CR4, _ENTRY_FIELD),
        _pcide_needs_ia32e,
    ),
    guest_rule(
        "guest.cr4.fred",
        _REGISTERS,
        "CR4.FRED needs an IA-32e mode guest",
        (_F.GUEST_CR4, _ENTRY_FIELD),
        _fred_needs_ia32e,
    ),
    guest_rule(
        "guest.cr3.width",
        _REGISTERS,
        "CR3 has no bit beyond the physical-address width",
        (_F.GUEST_CR3,),
        physical(_F.GUEST_CR3),
    ),
    guest_rule(
        "guest.dr7",
        _REGISTERS,
        "bits 63:32 of DR7 are 0",
        (_F.GUEST_DR7,),
        value_of(_F.GUEST_DR7, lambda dr7: not dr7 >> 32),
        when=VmEntry.LOAD_DEBUG_CONTROLS,
    ),
    guest_rule(
        "guest.sysenter_esp",
        _REGISTERS,
        "IA32_SYSENTER_ESP is canonical",
        (_F.GUEST_IA32_SYSENTER_ESP,),
        canonical(_F.GUEST_IA32_SYSENTER_ESP),
    ),
    guest_rule(
        "guest.sysenter_eip",
        _REGISTERS,
        "IA32_SYSENTER_EIP is canonical",
        (_F.GUEST_IA32_SYSENTER_EIP,),
        canonical(_F.GUEST_IA32_SYSENTER_EIP),
    ),
    guest_rule(
        "guest.s_cet.canonical",
        _REGISTERS,
        "IA32_S_CET is canonical",
        (_F.GUEST_IA32_S_CET,),
        canonical(_F.GUEST_IA32_S_CET),
        when=VmEntry.LOAD_CET_STATE,
    ),
    guest_rule(
        "guest.s_cet.reserved",
        _REGISTERS,
        "reserved bits of IA32_S_CET are 0, and SUPPRESS and TRACKER not both 1",
        (_F.GUEST_IA32_S_CET,),
        value_of(_F.GUEST_IA32_S_CET, s_cet_is_valid),
        when=VmEntry.LOAD_CET_STATE,
    ),
    guest_rule(
        "guest.interrupt_ssp_table",
        _REGISTERS,
        "IA32_INTERRUPT_SSP_TABLE_ADDR is canonical",
        (_F.GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR,),
        canonical(_F.GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR),
        when=VmEntry.LOAD_CET_STATE,
    ),
    guest_rule(
        "guest.perf_global_ctrl",
        _REGISTERS,
        "reserved bits of IA32_PERF_GLOBAL_CTRL are 0",
        (_F.GUEST_IA32_PERF_GLOBAL_CTRL,),
        _perf_global_ctrl,
        when=VmEntry.LOAD_IA32_PERF_GLOBAL_CTRL,
    ),
    guest_rule(
        "guest.pat",
        _REGISTERS,
        "each byte of IA32_PAT is a memory type",
        (_F.GUEST_IA32_PAT,),
        value_of(_F.GUEST_IA32_PAT, pat_is_valid),
        when=VmEntry.LOAD_IA32_PAT,
    ),
    guest_rule(
        "guest.efer.reserved",
        _REGISTERS,
        "reserved bits of IA32_EFER are 0",
        (_F.GUEST_IA32_EFER,),
        _efer_reserved,
        when=VmEntry.LOAD_IA32_EFER,
    ),
    guest_rule(
        "guest.efer.lma",
        _REGISTERS,
        "IA32_EFER.LMA is the IA-32e mode guest control",
        (_F.GUEST_IA32_EFER, _ENTRY_FIELD),
        _efer_lma,
        when=VmEntry.LOAD_IA32_EFER,
    ),
    guest_rule(
        "guest.efer.lme",
        _REGISTERS,
        "with CR0.PG, IA32_EFER.LME is IA32_EFER.LMA",
        (_F.GUEST_IA32_EFER, _F.GUEST_CR0),
        _efer_lme,
        when=VmEntry.LOAD_IA32_EFER,
    ),
    guest_rule(
        "guest.bndcfgs.reserved",
        _REGISTERS,
        "bits 11:2 of IA32_BNDCFGS are 0",
        (_F.GUEST_IA32_BNDCFGS,),
        value_of(_F.GUEST_IA32_BNDCFGS, lambda bndcfgs: not bndcfgs & 0xFFC),
        when=VmEntry.LOAD_IA32_BNDCFGS,
    ),
    guest_rule(
        "guest.bndcfgs.base",
        _REGISTERS,
        "the base in IA32_BNDCFGS is canonical",
        (_F.GUEST_IA32_BNDCFGS,),
        _BNDCFGS_CANONICAL,
        when=VmEntry.LOAD_IA32_BNDCFGS,
    ),
    guest_rule(
        "guest.rtit_ctl",
        _REGISTERS,
        "reserved bits of IA32_RTIT_CTL are 0",
        (_F.GUEST_IA32_RTIT_CTL,),
        _rtit_ctl,
        when=VmEntry.LOAD_IA32_RTIT_CTL,
    ),
    guest_rule(
        "guest.lbr_ctl",
        _REGISTERS,
        "reserved bits of IA32_LBR_CTL are 0",
        (_F.GUEST_IA32_LBR_CTL,),
        _lbr_ctl,
        when=VmEntry.LOAD_GUEST_IA32_LBR_CTL,
    ),
    guest_rule(
        "guest.pkrs",
        _REGISTERS,
        "bits 63:32 of IA32_PKRS are 0",
        (_F.GUEST_IA32_PKRS,),
        value_of(_F.GUEST_IA32_PKRS, lambda pkrs: not pkrs >> 32),
        when=VmEntry.LOAD_PKRS,
    ),
    guest_rule(
        "guest.uinv",
        _REGISTERS,
        "bits 15:8 of UINV are 0",
        (_F.GUEST_UINV,),
        value_of(_F.GUEST_UINV, lambda uinv: not uinv >> 8),
        when=VmEntry.LOAD_UINV,
    ),
    *fred_checks("guest", guest_rule, _REGISTERS, VmEntry.LOAD_FRED),
    guest_rule(
        "guest.spec_ctrl",
        _REGISTERS,
        "reserved bits of IA32_SPEC_CTRL are 0",
        (_F.GUEST_IA32_SPEC_CTRL,),
        _spec_ctrl,
        when=VmEntry.LOAD_IA32_SPEC_CTRL,
    ),
)
"""Rules of 27.3.1.1 in the manual's order."""


def _table(name: str) -> tuple[Check, Check]:
    base, limit = Field[f"GUEST_{name}_BASE"], Field[f"GUEST_{name}_LIMIT"]
    low = name.lower()
    return (
        guest_rule(f"guest.{low}.base", _TABLES, f"the {name} base is canonical", (base,), canonical(base)),
        guest_rule(
            f"guest.{low}.limit",
            _TABLES,
            f"bits 31:16 of the {name} limit are 0",
            (limit,),
            value_of(limit, lambda value: not value >> 16),
        ),
    )


DESCRIPTOR_TABLE_CHECKS: tuple[Check, ...] = (*_table("GDTR"), *_table("IDTR"))
"""Rules of 27.3.1.3."""


def _is_64_bit(c: CheckContext) -> bool:
    return bool(c.read(ENTRY) & _IA32E and c.read(_CS_RIGHTS) & _LONG)


def _fits(c: CheckContext, address: int) -> bool:
    """Bits 63:N of a pointer are equal in 64-bit mode, bits 63:32 are 0 elsewhere.

    N is the linear-address width itself: the address just past the lower canonical half is accepted, since a VM exit
    may have saved it after the last instruction there.
    """
    if not _is_64_bit(c):
        return not address >> 32
    width = c.capabilities.linear_address_width
    top = address >> width
    return not top or top == (1 << (64 - width)) - 1


def _rip(c: CheckContext) -> bool:
    return _fits(c, c.read(_RIP))


def _ssp_width(c: CheckContext) -> bool:
    return _fits(c, c.read(_SSP))


def _rflags_reserved(c: CheckContext) -> bool:
    return c.read(_RFLAGS) & (RFLAGS_RESERVED | RFLAGS_ALWAYS_ONE) == RFLAGS_ALWAYS_ONE


def _rflags_vm(c: CheckContext) -> bool:
    return not c.read(_RFLAGS) & _VM or bool(not c.read(ENTRY) & _IA32E and c.read(_CR0) & _PE)


def _rflags_if(c: CheckContext) -> bool:
    # An external interrupt has type 0, so a valid one shows only the valid bit.
    return c.read(EVENT) & (EVENT_VALID | 0x700) != EVENT_VALID or bool(c.read(_RFLAGS) & _IF)


RIP_RFLAGS_CHECKS: tuple[Check, ...] = (
    guest_rule(
        "guest.rip",
        _FLAGS,
        "bits 63:32 of RIP are 0 outside 64-bit mode; in it, those from the linear-address width up are equal",
        (_F.GUEST_RIP, _ENTRY_FIELD, _F.GUEST_CS_ACCESS_RIGHTS),
        _rip,
    ),
    guest_rule(
        "guest.rflags.reserved",
        _FLAGS,
        "bits 63:22, 15, 5 and 3 of RFLAGS are 0 and bit 1 is 1",
        (_F.GUEST_RFLAGS,),
        _rflags_reserved,
    ),
    guest_rule(
        "guest.rflags.vm",
        _FLAGS,
        "RFLAGS.VM needs CR0.PE and a guest outside IA-32e mode",
        (_F.GUEST_RFLAGS, _ENTRY_FIELD, _F.GUEST_CR0),
        _rflags_vm,
    ),
    guest_rule(
        "guest.rflags.if",
        _FLAGS,
        "injecting an external interrupt needs RFLAGS.IF",
        (_F.GUEST_RFLAGS, Field(EVENT)),
        _rflags_if,
    ),
    guest_rule(
        "guest.ssp.alignment",
        _FLAGS,
        "bits 1:0 of SSP are 0",
        (_F.GUEST_SSP,),
        value_of(_F.GUEST_SSP, lambda ssp: not ssp & 3),
        when=VmEntry.LOAD_CET_STATE,
    ),
    guest_rule(
        "guest.ssp.width",
        _FLAGS,
        "bits 63:32 of SSP are 0 outside 64-bit mode; in it, those from the linear-address width up are equal",
        (_F.GUEST_SSP, _ENTRY_FIELD, _F.GUEST_CS_ACCESS_RIGHTS),
        _ssp_width,
        when=VmEntry.LOAD_CET_STATE,
    ),
)
"""Rules of 27.3.1.4 in the manual's order."""
