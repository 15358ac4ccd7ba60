"""Random sequences of VMX instructions against a plain statement of the rules, and VMCSs with a bit turned.

The model below is written from SDM 3C 31.3 alone and knows nothing of L0: which regions exist, which is current,
which were launched.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from nestedlab import REVISION, VMCS_A, VMCS_B, VMXON_REGION, Lab, prepare_l2

from lzero.errors import GuestFault
from lzero.hypervisor.features import NESTED
from lzero.sdm.vmcs_fields import VMCS_FIELDS, Field, Width

LIMIT = 1 << NESTED.physical_address_width
PLAIN, BAD_REVISION, SHADOW = 0x34_0000, 0x34_1000, 0x34_2000
REGIONS = {
    VMXON_REGION: REVISION,
    VMCS_A: REVISION,
    VMCS_B: REVISION,
    PLAIN: REVISION,
    BAD_REVISION: REVISION ^ 4,
    SHADOW: REVISION | 1 << 31,
}
addresses = st.sampled_from([*REGIONS, VMCS_A + 1, VMCS_B + 0x800, LIMIT, LIMIT | VMCS_A, (1 << 64) - 1])
WIDTH = {Width.W16: 0xFFFF, Width.W32: 0xFFFF_FFFF, Width.W64: (1 << 64) - 1, Width.NATURAL: (1 << 64) - 1}
encodings = st.one_of(
    st.sampled_from(sorted(NESTED.existing_fields)),
    st.sampled_from(sorted(NESTED.existing_fields)).map(lambda e: e | 1),
    st.integers(0, 0x7FFF),
)


@dataclass
class Model:
    """The rules, as data."""

    vmxon: int | None = None
    current: int | None = None
    fields: dict[tuple[int, int], int] = field(default_factory=dict)

    def fail(self) -> str:
        return "invalid" if self.current is None else "valid"

    def operate(self, name: str, address: int) -> str:
        bad_address = bool(address & 0xFFF) or address >= LIMIT
        if name == "vmxon":
            if self.vmxon is not None:
                return self.fail()
            if bad_address or REGIONS.get(address) != REVISION:
                return "invalid"
            self.vmxon, self.current = address, None
            return "succeed"
        if bad_address or address == self.vmxon:
            return self.fail()
        if name == "vmclear":
            if address == self.current:
                self.current = None
            return "succeed"
        if REGIONS.get(address, 0) & 0x7FFF_FFFF != REVISION:
            return self.fail()
        self.current = address
        return "succeed"

    def exists(self, encoding: int) -> bool:
        low = encoding & ~1
        return low in NESTED.existing_fields and (not encoding & 1 or VMCS_FIELDS[low].width is Width.W64)


class VmxSequences(RuleBasedStateMachine):
    """L1 executes VMX instructions in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.lab = Lab()
        self.model = Model()
        for address, revision in REGIONS.items():
            self.lab.region(address, revision)

    def teardown(self) -> None:
        self.lab.close()

    def outside(self) -> bool:
        return self.model.vmxon is None

    @rule(name=st.sampled_from(["vmxon", "vmclear", "vmptrld"]), address=addresses)
    def pointer(self, name: str, address: int) -> None:
        outcome = self.lab.pointer(name, address)
        if self.outside() and name != "vmxon":
            assert outcome.result == "exception"
            return
        assert outcome.result == self.model.operate(name, address)

    @rule(encoding=encodings, value=st.integers(0, (1 << 64) - 1))
    def write_then_read(self, encoding: int, value: int) -> None:
        outcome = self.lab.step("vmwrite", rax=value, rbx=encoding)
        if self.outside():
            assert outcome.result == "exception"
            return
        if self.model.current is None:
            assert outcome.result == "invalid"
            return
        if not self.model.exists(encoding):
            assert outcome.result == "valid"
            assert self.lab.error() == 12
            return
        assert outcome.result == "succeed"
        key = (self.model.current, encoding & ~1)
        old = self.model.fields.get(key, 0)
        if encoding & 1:
            new = (old & 0xFFFF_FFFF) | (value & 0xFFFF_FFFF) << 32
        else:
            new = value & WIDTH[VMCS_FIELDS[encoding].width]
        self.model.fields[key] = new
        expected = new >> 32 if encoding & 1 else new
        assert self.lab.read(encoding) == expected

    @precondition(lambda self: self.model.current is not None)
    @rule(data=st.data())
    def fields_stay(self, data: st.DataObject) -> None:
        mine = sorted(e for address, e in self.model.fields if address == self.model.current)
        if mine:
            encoding = data.draw(st.sampled_from(mine))
            if encoding != Field.VM_INSTRUCTION_ERROR:
                assert self.lab.read(encoding) == self.model.fields[self.model.current, encoding]

    @rule()
    def vmptrst(self) -> None:
        outcome = self.lab.step("vmptrst")
        if self.outside():
            assert outcome.result == "exception"
        else:
            from nestedlab import OPERAND

            expected = self.model.current if self.model.current is not None else (1 << 64) - 1
            assert self.lab.memory.read_u64(OPERAND) == expected

    @rule(launch=st.booleans())
    def entry_of_garbage(self, launch: bool) -> None:
        """No VMCS here was ever filled to be entered: VMfail, one way or another."""
        outcome = self.lab.step("vmlaunch" if launch else "vmresume")
        if self.outside():
            assert outcome.result == "exception"
        elif self.model.current in (None, SHADOW):
            assert outcome.result == "invalid"
        else:
            assert outcome.result == "valid"

    @rule()
    def vmxoff(self) -> None:
        outcome = self.lab.step("vmxoff")
        assert outcome.result == ("exception" if self.outside() else "succeed")
        if not self.outside():
            self.model.vmxon = self.model.current = None


VmxSequences.TestCase.settings = settings(max_examples=250, stateful_step_count=80)
TestVmxSequences = VmxSequences.TestCase


bits = st.tuples(st.sampled_from(sorted(NESTED.existing_fields)), st.integers(0, 63))


@settings(max_examples=150)
@given(batches=st.lists(st.lists(bits, min_size=1, max_size=3), min_size=40, max_size=40))
def test_a_good_vmcs_with_bits_turned(batches: list[list[tuple[int, int]]]) -> None:
    """Valid ± a few bits: entry, VMfail, exit 33 or 34, triple fault or a clear guest fault; never a broken machine."""
    lab = Lab(fill=0xF4)
    try:
        lab.start_vmx()
        prepare_l2(lab)
        state = lab.vcpu.nested.state
        assert state.vmcs12 is not None
        good = bytes(state.vmcs12.words)
        for batch in batches:
            state = lab.vcpu.nested.state
            if state.vmcs12 is None:
                return
            state.vmcs12.words[:] = memoryview(good).cast("Q")
            state.vmcs12.launched = False
            for encoding, bit in batch:
                mask = WIDTH[VMCS_FIELDS[encoding].width]
                state.vmcs12.changed = (1 << 400) - 1
                lab_field = encoding
                value = state.vmcs12.read(lab_field) ^ (1 << bit & mask)
                state.vmcs12.write(lab_field, value)
            try:
                lab.step("vmlaunch")
            except GuestFault:
                return  # the guest is gone, with a message
            if lab.vcpu.level != 1 or lab.vcpu.stop_reason != "hlt":
                return
    finally:
        lab.close()
