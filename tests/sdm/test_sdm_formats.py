"""Bit formats: round trips, refusal of what does not fit, values taken from the manual's tables."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lzero.sdm import cpuid, exceptions, formats, instruction_info, registers
from lzero.sdm.bitformat import BitFormat
from lzero.sdm.exceptions import ExceptionClass, Vector, has_error_code
from lzero.sdm.formats import (
    CrAccessQualification,
    CrAccessType,
    Eptp,
    EventType,
    InterruptionInformation,
    IoQualification,
)
from lzero.sdm.instruction_info import VmreadVmwriteInformation
from lzero.sdm.vm_instruction_errors import VM_INSTRUCTION_ERRORS, VmInstructionError

FORMATS = sorted(
    (
        cls
        for module in (formats, instruction_info)
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, BitFormat) and cls is not BitFormat
    ),
    key=lambda cls: cls.__name__,
)


@pytest.mark.parametrize("cls", FORMATS)
def test_fields_of_a_format_do_not_overlap(cls: type[BitFormat]) -> None:
    seen = 0
    for field in dataclasses.fields(cls):
        mask = ((1 << field.metadata["width"]) - 1) << field.metadata["lsb"]
        assert not seen & mask, field.name
        seen |= mask
    assert seen == cls.defined_bits()


@given(st.sampled_from(FORMATS), st.integers(0, (1 << 64) - 1))
def test_unpack_pack_round_trip(cls: type[BitFormat], value: int) -> None:
    value &= cls.defined_bits()
    decoded = cls.unpack(value)
    assert decoded.pack() == value
    assert cls.__name__ in str(decoded)
    assert cls.unpack_lenient(value | ~cls.defined_bits() & (1 << 64) - 1) == decoded


@pytest.mark.parametrize("cls", FORMATS)
def test_a_value_too_large_raises(cls: type[BitFormat]) -> None:
    for field in dataclasses.fields(cls):
        with pytest.raises(ValueError, match=field.name):
            cls(**{field.name: 1 << field.metadata["width"]})
        with pytest.raises(ValueError, match=field.name):
            cls(**{field.name: -1})


@pytest.mark.parametrize("cls", FORMATS)
def test_reserved_bits_raise(cls: type[BitFormat]) -> None:
    reserved = ~cls.defined_bits() & (1 << 64) - 1
    with pytest.raises(ValueError, match="reserved"):
        cls.unpack(reserved & -reserved)


def test_known_values() -> None:
    page_fault = InterruptionInformation(14, EventType.HARDWARE_EXCEPTION, True, valid=True)
    assert page_fault.pack() == 0x8000_0B0E
    assert str(page_fault) == "InterruptionInformation(vector=0xe type=HARDWARE_EXCEPTION error_code_valid valid)"
    assert IoQualification.unpack(0x03F8_0008) == IoQualification(is_in=True, port=0x3F8)
    assert IoQualification.unpack(0x03F8_0008).size == 1
    lmsw = CrAccessQualification.unpack(0x1234_0030)
    assert (lmsw.access_type, lmsw.lmsw_source) == (CrAccessType.LMSW, 0x1234)
    assert Eptp(page_frame=0x1234).pack() == 0x123401E
    assert Eptp.unpack(0x5E).levels == 4
    vmread = VmreadVmwriteInformation.unpack(1 << 10 | 3 << 3 | 9 << 28)
    assert (vmread.is_register, vmread.register1, vmread.register2) == (True, 3, 9)


def test_vectors() -> None:
    assert {int(v) for v in Vector if v.has_error_code} == {8, 10, 11, 12, 13, 14, 17, 21}
    assert not has_error_code(15)
    assert not has_error_code(256)
    assert Vector.GP.is_contributory
    assert Vector.PF.exception_class is ExceptionClass.PAGE_FAULT
    assert (Vector.BP.is_trap, Vector.UD.is_fault, Vector.MC.is_abort) == (True, True, True)
    assert set(exceptions.VECTORS) == {int(v) for v in Vector}


def test_vm_instruction_errors() -> None:
    assert set(VM_INSTRUCTION_ERRORS) == {int(e) for e in VmInstructionError}
    assert set(range(1, 29)) - set(VM_INSTRUCTION_ERRORS) == {14, 21, 27}


def test_rflags_bits_cover_everything_that_is_not_reserved() -> None:
    # Iteration leaves out IOPL, the one member of two bits.
    defined = sum(registers.Rflags) | registers.Rflags.IOPL
    assert defined | registers.RFLAGS_ALWAYS_ONE | registers.RFLAGS_RESERVED == (1 << 64) - 1
    assert not defined & registers.RFLAGS_RESERVED


def test_descriptor_rights_round_trip() -> None:
    flat_code = 0x00AF_9B00_0000_FFFF
    rights = registers.access_rights_from_descriptor(flat_code)
    assert rights == registers.access_rights(11, long=True, granularity=True)
    assert registers.descriptor_attributes(rights) == flat_code & 0x00F0_FF00_0000_0000
    with pytest.raises(ValueError, match="DPL"):
        registers.access_rights(3, dpl=4)


@pytest.mark.parametrize("width", [48, 57])
def test_canonical_addresses(width: int) -> None:
    top = 1 << (width - 1)
    assert registers.is_canonical(top - 1, width)
    assert not registers.is_canonical(top, width)
    assert registers.is_canonical((1 << 64) - top, width)
    assert not registers.is_canonical((1 << 64) - top - 1, width)


def test_cpuid_rows_and_vendor() -> None:
    assert cpuid.FEATURES[1, 0, "ecx", 5].name == "VMX"
    assert all(1 << row.bit == int(row.flag) for row in cpuid.FEATURES.values())
    assert cpuid.vendor_registers("GenuineIntel") == (0x756E6547, 0x6C65746E, 0x49656E69)
    with pytest.raises(ValueError, match="12"):
        cpuid.vendor_registers("Intel")
