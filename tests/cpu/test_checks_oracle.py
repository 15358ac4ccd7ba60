"""The checks against a second, plainer statement of the rules: sets of allowed states, written out, no bit tricks."""

from __future__ import annotations

import pytest
from checkstate import EVERYTHING, flip, long_mode, off, on, processor, protected_mode, put
from hypothesis import given, settings
from hypothesis import strategies as st

from lzero.cpu.checks import CHECKS, run_checks
from lzero.sdm.controls import PinBased, ProcBased2, VmEntry
from lzero.sdm.formats import EventType, InterruptionInformation
from lzero.sdm.registers import Cr4

LIMITS = (0, 0xFFFF, 0xFFFFF, 0x100000, 0x100FFF, 0xFFFFFFFF)


def granularity_allowed(limit: int) -> set[int]:
    """Values that G may have with this limit."""
    if limit <= 0xFFFFF and limit % 4096 == 4095:
        return {0, 1}
    return {0} if limit <= 0xFFFFF else {1} if limit % 4096 == 4095 else set()


def split(rights: int) -> dict[str, int]:
    """Access rights by name."""
    fields = {"type": 4, "s": 1, "dpl": 2, "p": 1, "reserved": 4, "avl": 1, "l": 1, "db": 1, "g": 1, "unusable": 1}
    parts = {}
    for name, width in fields.items():
        parts[name] = rights % (1 << width)
        rights >>= width
    return parts | {"high": rights}


def common(parts: dict[str, int], limit: int, s: int) -> bool:
    """What every usable segment register obeys."""
    fixed = parts["s"] == s and parts["p"] == 1 and parts["reserved"] == 0 and parts["high"] == 0
    return fixed and parts["g"] in granularity_allowed(limit)


def data_segment(parts: dict[str, int], limit: int, rpl: int) -> bool:
    """DS, ES, FS or GS outside virtual-8086 mode, not unrestricted."""
    if parts["unusable"]:
        return True
    if parts["type"] not in {1, 3, 5, 7, 11, 15} or not common(parts, limit, 1):
        return False
    return parts["type"] == 15 or parts["dpl"] >= rpl


def stack_segment(parts: dict[str, int], limit: int, rpl: int) -> bool:
    """SS in protected mode with a code segment of the same RPL."""
    if parts["dpl"] != rpl:
        return False
    return bool(parts["unusable"]) or parts["type"] in {3, 7} and common(parts, limit, 1)


def code_segment(parts: dict[str, int], limit: int, stack_dpl: int) -> bool:
    """CS of an IA-32e mode guest, not unrestricted; it is never unusable to these rules."""
    if not common(parts, limit, 1) or (parts["l"] and parts["db"]):
        return False
    if parts["type"] in {9, 11}:
        return parts["dpl"] == stack_dpl
    return parts["type"] in {13, 15} and parts["dpl"] <= stack_dpl


def holds(state: object, prefixes: tuple[str, ...]) -> bool:
    """All rules whose identifier starts so hold."""
    context = state.context()  # type: ignore[attr-defined]
    return all(check.predicate(context) for check in CHECKS if check.id.startswith(prefixes))


RIGHTS = st.one_of(
    st.integers(0, 0x1FFFF),
    st.builds(lambda type_, dpl, rest: 0x90 | type_ | dpl << 5 | rest << 12, *(st.integers(0, n) for n in (15, 3, 31))),
    st.integers(0, 31).map(lambda n: 0xC093 ^ 1 << n),
)
RPL = st.integers(0, 3)


@settings(max_examples=1500)
@given(RIGHTS, st.sampled_from(LIMITS), RPL, st.sampled_from(("DS", "ES", "FS", "GS")))
def test_data_segments(rights: int, limit: int, rpl: int, name: str) -> None:
    state = long_mode()
    put(**{f"GUEST_{name}_ACCESS_RIGHTS": rights, f"GUEST_{name}_LIMIT": limit, f"GUEST_{name}_SELECTOR": rpl})(state)
    assert holds(state, (f"guest.{name.lower()}.",)) == data_segment(split(rights), limit, rpl)


@settings(max_examples=1000)
@given(RIGHTS, st.sampled_from(LIMITS), RPL)
def test_stack_segment(rights: int, limit: int, rpl: int) -> None:
    state = long_mode()
    put(GUEST_SS_ACCESS_RIGHTS=rights, GUEST_SS_LIMIT=limit, GUEST_SS_SELECTOR=rpl, GUEST_CS_SELECTOR=rpl)(state)
    assert holds(state, ("guest.ss.",)) == stack_segment(split(rights), limit, rpl)


@settings(max_examples=1000)
@given(RIGHTS.map(lambda rights: rights ^ 8), st.sampled_from(LIMITS), RPL)
def test_code_segment(rights: int, limit: int, stack_dpl: int) -> None:
    state = long_mode()
    put(GUEST_CS_ACCESS_RIGHTS=rights, GUEST_CS_LIMIT=limit, GUEST_SS_ACCESS_RIGHTS=0xC093 | stack_dpl << 5)(state)
    assert holds(state, ("guest.cs.",)) == code_segment(split(rights), limit, stack_dpl)


@pytest.mark.parametrize("ia32e", [False, True])
def test_every_low_half_of_task_register_rights(ia32e: bool) -> None:
    state = long_mode() if ia32e else protected_mode()
    allowed = {0x8B} if ia32e else {0x83, 0x8B}
    # DPL, AVL, L and D/B of TR are not looked at; the limit 0x67 needs G = 0.
    for rights in range(0x2_0000):
        put(GUEST_TR_ACCESS_RIGHTS=rights)(state)
        if holds_tr(state) != (rights & ~0x7060 in allowed):
            pytest.fail(f"{rights:#x}")


TR_RULES = tuple(check.predicate for check in CHECKS if check.id.startswith("guest.tr."))


def holds_tr(state: object) -> bool:
    """All rules on TR hold."""
    context = state.context()  # type: ignore[attr-defined]
    return all(predicate(context) for predicate in TR_RULES)


WITH_ERROR_CODE = {"#DF": 8, "#TS": 10, "#NP": 11, "#SS": 12, "#GP": 13, "#PF": 14, "#AC": 17}


def injection_allowed(event: InterruptionInformation, length: int, code: int) -> bool:
    """Event injection into a protected-mode guest without FRED, by itself (27.2.1.3)."""
    kind = event.type
    vectors = {
        EventType.EXTERNAL_INTERRUPT: range(256),
        EventType.NMI: range(2, 3),
        EventType.HARDWARE_EXCEPTION: range(32),
        EventType.SOFTWARE_INTERRUPT: range(256),
        EventType.PRIVILEGED_SOFTWARE_EXCEPTION: range(256),
        EventType.SOFTWARE_EXCEPTION: range(256),
        EventType.OTHER_EVENT: range(1),
    }
    if event.vector not in vectors.get(kind, ()) or event.nmi_unblocking:
        return False
    expects = kind is EventType.HARDWARE_EXCEPTION and event.vector in WITH_ERROR_CODE.values()
    if event.error_code_valid != expects or (expects and code > 0xFFFF):
        return False
    software = {
        EventType.SOFTWARE_INTERRUPT,
        EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
        EventType.SOFTWARE_EXCEPTION,
    }
    return kind not in software or length in range(16)


def unblocked(event: InterruptionInformation, activity: int, blocking: set[str], flags: set[str]) -> bool:
    """The guest's non-register state is consistent, and the event is one that it lets through (27.3.1.5)."""
    if activity > 3 or {"sti", "mov_ss"} <= blocking or ("sti" in blocking and "if" not in flags):
        return False
    if activity and blocking & {"sti", "mov_ss"}:
        return False
    kind, vector = event.type, event.vector
    if not event.valid:
        return True
    if kind is EventType.EXTERNAL_INTERRUPT and ("if" not in flags or blocking & {"sti", "mov_ss"}):
        return False
    if kind is EventType.NMI and (blocking & {"sti", "mov_ss"} or {"nmi", "virtual_nmis"} <= blocking | flags):
        return False
    hardware = kind is EventType.HARDWARE_EXCEPTION
    match activity:
        case 0:
            return True
        case 1:
            through = kind in (EventType.EXTERNAL_INTERRUPT, EventType.NMI, EventType.OTHER_EVENT)
            return through or (hardware and vector in (1, 18))
        case 2:
            return kind is EventType.NMI or (hardware and vector == 18)
        case _:
            return False


EVENTS = st.builds(
    InterruptionInformation,
    vector=st.one_of(st.integers(0, 33), st.sampled_from((1, 2, 14, 18, 0x80, 0xFF))),
    type=st.sampled_from(EventType),
    error_code_valid=st.booleans(),
    nmi_unblocking=st.sampled_from((False, False, False, True)),
    valid=st.sampled_from((True, True, True, False)),
)
BLOCKING = {"sti": 1, "mov_ss": 2, "nmi": 8}


@settings(max_examples=1500)
@given(
    EVENTS,
    st.integers(0, 17),
    st.sampled_from((0, 2, 0xFFFF, 0x10000)),
    st.integers(0, 4),
    st.sets(st.sampled_from(sorted(BLOCKING))),
    st.sets(st.sampled_from(("if", "virtual_nmis"))),
)
def test_event_injection(
    event: InterruptionInformation, length: int, code: int, activity: int, blocking: set[str], flags: set[str]
) -> None:
    state = long_mode()
    put(
        VM_ENTRY_INTERRUPTION_INFORMATION=event.pack(),
        VM_ENTRY_INSTRUCTION_LENGTH=length,
        VM_ENTRY_EXCEPTION_ERROR_CODE=code,
        GUEST_ACTIVITY_STATE=activity,
        GUEST_INTERRUPTIBILITY_STATE=sum(BLOCKING[name] for name in blocking),
        GUEST_RFLAGS=0x202 if "if" in flags else 2,
    )(state)
    if "virtual_nmis" in flags:
        on(PinBased.NMI_EXITING, PinBased.VIRTUAL_NMIS)(state)
    allowed = not event.valid or injection_allowed(event, length, code)
    failure = run_checks(state.context())
    assert (failure is None) == (allowed and unblocked(event, activity, blocking, flags)), failure
    if not allowed:
        assert failure is not None
        assert failure.vm_instruction_error == 7


@settings(max_examples=500)
@given(st.integers(0, (1 << 64) - 1), st.booleans(), st.integers(0, 1), st.booleans())
def test_guest_instruction_pointer(address: int, ia32e: bool, long: int, near: bool) -> None:
    # Half of the cases lie around the end of the lower half of the linear-address space.
    address = (1 << 47) + (address % 0x2_0000_0000_0000) - 0x1_0000 if near else address
    state = long_mode()
    if not ia32e:
        off(VmEntry.IA32E_MODE_GUEST)(state)
        flip(GUEST_CR4=Cr4.PAE)(state)
    put(GUEST_RIP=address, GUEST_CS_ACCESS_RIGHTS=0xA09B if long else 0xC09B)(state)
    bits = f"{address:064b}"
    expected = len(set(bits[:16])) == 1 if ia32e and long else "1" not in bits[:32]
    failure = run_checks(state.context())
    assert (failure is None) == expected
    assert failure is None or failure.check.id == "guest.rip"


@settings(max_examples=500)
@given(
    st.integers(0, 7),
    st.integers(0, 7),
    st.booleans(),
    st.booleans(),
    st.one_of(st.just(0), st.integers(0, 0xFFF), st.integers(0, 63).map(lambda n: 1 << n)),
)
def test_ept_pointer(kind: int, levels: int, dirty: bool, shadow: bool, rest: int) -> None:
    state = long_mode()
    on(ProcBased2.ENABLE_EPT)(state)
    processor()(state)
    eptp = kind | levels << 3 | dirty << 6 | shadow << 7 | rest & ~0xFF
    put(EPT_POINTER=eptp)(state)
    expected = (
        kind in {0, 6} and levels in {3, 4} and rest & 0xF00 == 0 and rest < 1 << EVERYTHING.physical_address_width
    )
    assert (run_checks(state.context()) is None) == expected
