"""Checks on guest segment registers (SDM vol. 3, 27.3.1.2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lzero.sdm.controls import ProcBased2, VmEntry
from lzero.sdm.formats import InterruptibilityState
from lzero.sdm.registers import BUSY_TSS, BUSY_TSS_16, LDT, AccessRights, Cr0, Cr4, Rflags
from lzero.sdm.vmcs_fields import Field

from .model import Check, CheckContext, CheckGroup, Predicate
from .terms import ENTRY, canonical, gate, rule, value_of

__all__ = ["SEGMENT_CHECKS"]

_SECTION = "27.3.1.2"
_F = Field
_RFLAGS, _CR0 = int(Field.GUEST_RFLAGS), int(Field.GUEST_CR0)
_CS_RIGHTS, _SS_RIGHTS = int(Field.GUEST_CS_ACCESS_RIGHTS), int(Field.GUEST_SS_ACCESS_RIGHTS)
_CS_SELECTOR, _SS_SELECTOR = int(Field.GUEST_CS_SELECTOR), int(Field.GUEST_SS_SELECTOR)
_CR4, _BLOCKING = int(Field.GUEST_CR4), int(Field.GUEST_INTERRUPTIBILITY_STATE)
_VM, _IOPL, _PE, _FRED = int(Rflags.VM), int(Rflags.IOPL), int(Cr0.PE), int(Cr4.FRED)
_STI = int(InterruptibilityState.BLOCKING_BY_STI)
_IA32E = int(VmEntry.IA32E_MODE_GUEST)
_UNUSABLE, _S, _P = int(AccessRights.UNUSABLE), int(AccessRights.S), int(AccessRights.P)
_L, _DB, _G = int(AccessRights.L), int(AccessRights.DB), int(AccessRights.G)
_UNRESTRICTED = gate(ProcBased2.UNRESTRICTED_GUEST)
_UNRESTRICTED_SET = _UNRESTRICTED.is_set
_V86_RIGHTS = 0xF3
_CODE = 8

_rule = partial(rule, CheckGroup.GUEST_STATE)
RightsTest = Callable[[CheckContext, int], bool]


def _field(name: str, part: str) -> Field:
    return Field[f"GUEST_{name}_{part}"]


def _usable(name: str, test: RightsTest) -> Predicate:
    """``test`` on the access rights, outside virtual-8086 mode, of CS or of a register that is usable."""
    rights_of = int(_field(name, "ACCESS_RIGHTS"))
    skip = 0 if name == "CS" else _UNUSABLE

    def predicate(c: CheckContext) -> bool:
        rights = c.read(rights_of)
        return bool(rights & skip or c.read(_RFLAGS) & _VM) or test(c, rights)

    return predicate


def _system(name: str, test: RightsTest) -> Predicate:
    """``test`` on the access rights of TR, or of LDTR if it is usable."""
    rights_of = int(_field(name, "ACCESS_RIGHTS"))
    skip = _UNUSABLE if name == "LDTR" else 0

    def predicate(c: CheckContext) -> bool:
        rights = c.read(rights_of)
        return bool(rights & skip) or test(c, rights)

    return predicate


# Selectors


def _ti_clear(name: str) -> Check:
    selector = int(_field(name, "SELECTOR"))
    fields = (_field(name, "SELECTOR"), _field(name, "ACCESS_RIGHTS"))
    predicate = _system(name, lambda c, _: not c.read(selector) & 4)
    return _rule(f"guest.{name.lower()}.selector", _SECTION, f"TI of the {name} selector is 0", fields, predicate)


def _ss_rpl(c: CheckContext) -> bool:
    if c.read(_RFLAGS) & _VM or _UNRESTRICTED_SET(c):
        return True
    return not (c.read(_SS_SELECTOR) ^ c.read(_CS_SELECTOR)) & 3


_SELECTORS = (
    _ti_clear("TR"),
    _ti_clear("LDTR"),
    _rule(
        "guest.ss.rpl",
        _SECTION,
        "RPL of SS is that of CS, outside virtual-8086 mode and unless unrestricted",
        (_F.GUEST_SS_SELECTOR, _F.GUEST_CS_SELECTOR, _F.GUEST_RFLAGS, *_UNRESTRICTED.fields),
        _ss_rpl,
    ),
)

# Base addresses and limits

_V86_SEGMENTS = ("CS", "SS", "DS", "ES", "FS", "GS")


def _v86(name: str) -> tuple[Check, Check, Check]:
    """In virtual-8086 mode base, limit and access rights are those of a real-mode segment."""
    selector, base = int(_field(name, "SELECTOR")), int(_field(name, "BASE"))
    limit, rights = int(_field(name, "LIMIT")), int(_field(name, "ACCESS_RIGHTS"))

    def base_rule(c: CheckContext) -> bool:
        return not c.read(_RFLAGS) & _VM or c.read(base) == c.read(selector) << 4

    def limit_rule(c: CheckContext) -> bool:
        return not c.read(_RFLAGS) & _VM or c.read(limit) == 0xFFFF

    def rights_rule(c: CheckContext) -> bool:
        return not c.read(_RFLAGS) & _VM or c.read(rights) == _V86_RIGHTS

    def make(suffix: str, text: str, predicate: Predicate, *fields: int) -> Check:
        inputs = (_F.GUEST_RFLAGS, *(Field(field) for field in fields))
        return _rule(f"guest.{name.lower()}.v86.{suffix}", _SECTION, f"in virtual-8086 mode, {text}", inputs, predicate)

    return (
        make("base", f"the {name} base is its selector * 16", base_rule, base, selector),
        make("limit", f"the {name} limit is 0xffff", limit_rule, limit),
        make("rights", f"the {name} access rights are 0xf3", rights_rule, rights),
    )


_V86_CHECKS = tuple(_v86(name) for name in _V86_SEGMENTS)


def _canonical_base(name: str) -> Check:
    base, rights = _field(name, "BASE"), _field(name, "ACCESS_RIGHTS")
    is_canonical = canonical(base)
    predicate = _system(name, lambda c, _: is_canonical(c)) if name == "LDTR" else is_canonical
    fields = (base, rights) if name == "LDTR" else (base,)
    return _rule(f"guest.{name.lower()}.base", _SECTION, f"the {name} base is canonical", fields, predicate)


def _low_base(name: str) -> Check:
    base, rights = _field(name, "BASE"), _field(name, "ACCESS_RIGHTS")
    base_of, rights_of = int(base), int(rights)

    def of_usable(c: CheckContext) -> bool:
        return not c.read(base_of) >> 32 or bool(c.read(rights_of) & _UNUSABLE)

    id_, text = f"guest.{name.lower()}.base", f"bits 63:32 of the {name} base are 0"
    if name == "CS":
        return _rule(id_, _SECTION, text, (base,), value_of(base, lambda value: not value >> 32))
    return _rule(id_, _SECTION, text, (base, rights), of_usable)


_BASES = (
    *(checks[0] for checks in _V86_CHECKS),
    *(_canonical_base(name) for name in ("TR", "FS", "GS", "LDTR")),
    *(_low_base(name) for name in ("CS", "SS", "DS", "ES")),
)

# Access rights of CS, SS, DS, ES, FS, GS

_CODE_TYPES = frozenset({9, 11, 13, 15})


def _cs_type(c: CheckContext, rights: int) -> bool:
    kind = rights & 0xF
    return kind in _CODE_TYPES or kind == 3 and _UNRESTRICTED_SET(c)


def _ss_type(_: CheckContext, rights: int) -> bool:
    return rights & 0xF in (3, 7)


def _data_type(_: CheckContext, rights: int) -> bool:
    # Accessed; and readable if it is a code segment.
    return bool(rights & 1) and rights & (_CODE | 2) != _CODE


def _cs_dpl(c: CheckContext, rights: int) -> bool:
    kind, dpl = rights & 0xF, rights >> 5 & 3
    stack_dpl = c.read(_SS_RIGHTS) >> 5 & 3
    if kind == 3:
        return dpl == 0
    if kind in (9, 11):
        return dpl == stack_dpl
    return kind not in (13, 15) or dpl <= stack_dpl


def _ss_dpl_rpl(c: CheckContext) -> bool:
    if c.read(_RFLAGS) & _VM or _UNRESTRICTED_SET(c):
        return True
    return c.read(_SS_RIGHTS) >> 5 & 3 == c.read(_SS_SELECTOR) & 3


def _ss_dpl_zero(c: CheckContext) -> bool:
    if c.read(_RFLAGS) & _VM or c.read(_CS_RIGHTS) & 0xF != 3 and c.read(_CR0) & _PE:
        return True
    return not c.read(_SS_RIGHTS) & 0x60


def _ss_fred(c: CheckContext) -> bool:
    if not c.read(_CR4) & _FRED or c.read(_RFLAGS) & _VM:
        return True
    dpl = c.read(_SS_RIGHTS) >> 5 & 3
    if dpl == 0:
        return bool(c.read(_CS_RIGHTS) & _L)
    return dpl == 3 and not c.read(_RFLAGS) & _IOPL and not c.read(_BLOCKING) & _STI


def _data_dpl(name: str) -> Check:
    selector = int(_field(name, "SELECTOR"))

    def test(c: CheckContext, rights: int) -> bool:
        # A conforming code segment (types 12 to 15) is open to every privilege level.
        return rights & 0xF >= 12 or rights >> 5 & 3 >= c.read(selector) & 3 or _UNRESTRICTED_SET(c)

    fields = (_field(name, "ACCESS_RIGHTS"), _F.GUEST_RFLAGS, Field(selector), *_UNRESTRICTED.fields)
    text = f"DPL of {name}, unless unrestricted or conforming, is not below its RPL"
    return _rule(f"guest.{name.lower()}.dpl", _SECTION, text, fields, _usable(name, test))


def _granular(limit: int, rights: int) -> bool:
    """G is 0 if a low bit of the limit is 0, and 1 if a high one is 1."""
    if rights & _G:
        return limit & 0xFFF == 0xFFF
    return not limit >> 20


def _common(name: str) -> tuple[Check, ...]:
    """S, P, the reserved bits and G, of any of the six registers."""
    rights, limit = _field(name, "ACCESS_RIGHTS"), _field(name, "LIMIT")
    limit_of, id_ = int(limit), f"guest.{name.lower()}"
    fields = (rights, _F.GUEST_RFLAGS)

    def make(suffix: str, text: str, test: RightsTest, extra: tuple[Field, ...] = ()) -> Check:
        return _rule(f"{id_}.{suffix}", _SECTION, text, (*fields, *extra), _usable(name, test))

    return (
        make("s", f"{name} is a code or data segment (S = 1)", lambda _, r: bool(r & _S)),
        make("p", f"{name} is present", lambda _, r: bool(r & _P)),
        make("reserved", f"bits 11:8 and 31:17 of the {name} access rights are 0", lambda _, r: not r & 0xFFFE_0F00),
        make("g", f"G of {name} agrees with its limit", lambda c, r: _granular(c.read(limit_of), r), (limit,)),
    )


def _cs_db(c: CheckContext, rights: int) -> bool:
    return rights & (_L | _DB) != _L | _DB or not c.read(ENTRY) & _IA32E


def _type_rule(name: str, text: str, test: RightsTest, extra: tuple[Field, ...] = ()) -> Check:
    fields = (_field(name, "ACCESS_RIGHTS"), _F.GUEST_RFLAGS, *extra)
    return _rule(f"guest.{name.lower()}.type", _SECTION, text, fields, _usable(name, test))


_DATA = ("DS", "ES", "FS", "GS")
_RIGHTS = (
    *(checks[2] for checks in _V86_CHECKS),
    _type_rule("CS", "CS is an accessed code segment, or type 3 if unrestricted", _cs_type, _UNRESTRICTED.fields),
    _type_rule("SS", "SS is an accessed writable data segment", _ss_type),
    *(_type_rule(name, f"{name} is accessed, and readable if code", _data_type) for name in _DATA),
    _rule(
        "guest.cs.dpl",
        _SECTION,
        "DPL of CS is 0 (type 3), that of SS (non-conforming), or not above that of SS (conforming)",
        (_F.GUEST_CS_ACCESS_RIGHTS, _F.GUEST_RFLAGS, _F.GUEST_SS_ACCESS_RIGHTS),
        _usable("CS", _cs_dpl),
    ),
    _rule(
        "guest.ss.dpl",
        _SECTION,
        "DPL of SS is its RPL unless unrestricted",
        (_F.GUEST_SS_ACCESS_RIGHTS, _F.GUEST_RFLAGS, _F.GUEST_SS_SELECTOR, *_UNRESTRICTED.fields),
        _ss_dpl_rpl,
    ),
    _rule(
        "guest.ss.dpl_zero",
        _SECTION,
        "DPL of SS is 0 if CS has type 3 or CR0.PE is 0",
        (_F.GUEST_SS_ACCESS_RIGHTS, _F.GUEST_RFLAGS, _F.GUEST_CS_ACCESS_RIGHTS, _F.GUEST_CR0),
        _ss_dpl_zero,
    ),
    _rule(
        "guest.ss.fred",
        _SECTION,
        "with CR4.FRED, DPL of SS is 0 with CS.L, or 3 with RFLAGS.IOPL = 0 and no blocking by STI",
        (
            _F.GUEST_SS_ACCESS_RIGHTS,
            _F.GUEST_CS_ACCESS_RIGHTS,
            _F.GUEST_CR4,
            _F.GUEST_RFLAGS,
            _F.GUEST_INTERRUPTIBILITY_STATE,
        ),
        _ss_fred,
    ),
    *(_data_dpl(name) for name in _DATA),
    *(check for name in _V86_SEGMENTS for check in _common(name)),
    _rule(
        "guest.cs.db",
        _SECTION,
        "in an IA-32e mode guest, CS has not both L and D/B",
        (_F.GUEST_CS_ACCESS_RIGHTS, _F.GUEST_RFLAGS, Field(ENTRY)),
        _usable("CS", _cs_db),
    ),
)

# Access rights of TR and LDTR


def _tr_type(c: CheckContext, rights: int) -> bool:
    kind = rights & 0xF
    return kind == BUSY_TSS or kind == BUSY_TSS_16 and not c.read(ENTRY) & _IA32E


def _system_common(name: str) -> tuple[Check, ...]:
    """S, P, the reserved bits and G of TR or LDTR."""
    rights, limit = _field(name, "ACCESS_RIGHTS"), _field(name, "LIMIT")
    limit_of, id_ = int(limit), f"guest.{name.lower()}"

    def make(suffix: str, text: str, test: RightsTest, extra: tuple[Field, ...] = ()) -> Check:
        return _rule(f"{id_}.{suffix}", _SECTION, text, (rights, *extra), _system(name, test))

    return (
        make("s", f"{name} is a system segment (S = 0)", lambda _, r: not r & _S),
        make("p", f"{name} is present", lambda _, r: bool(r & _P)),
        make("reserved", f"bits 11:8 and 31:17 of the {name} access rights are 0", lambda _, r: not r & 0xFFFE_0F00),
        make("g", f"G of {name} agrees with its limit", lambda c, r: _granular(c.read(limit_of), r), (limit,)),
    )


_SYSTEM = (
    _rule(
        "guest.tr.type",
        _SECTION,
        "TR is a busy TSS, 32-bit or 64-bit in an IA-32e mode guest",
        (_F.GUEST_TR_ACCESS_RIGHTS, Field(ENTRY)),
        _system("TR", _tr_type),
    ),
    *_system_common("TR"),
    _rule(
        "guest.tr.usable",
        _SECTION,
        "TR is usable",
        (_F.GUEST_TR_ACCESS_RIGHTS,),
        _system("TR", lambda _, rights: not rights & _UNUSABLE),
    ),
    _rule(
        "guest.ldtr.type",
        _SECTION,
        "LDTR, if usable, is an LDT",
        (_F.GUEST_LDTR_ACCESS_RIGHTS,),
        _system("LDTR", lambda _, rights: rights & 0xF == LDT),
    ),
    *_system_common("LDTR"),
)

SEGMENT_CHECKS: tuple[Check, ...] = (
    *_SELECTORS,
    *_BASES,
    *(checks[1] for checks in _V86_CHECKS),
    *_RIGHTS,
    *_SYSTEM,
)
"""Rules of 27.3.1.2 in the manual's order."""
