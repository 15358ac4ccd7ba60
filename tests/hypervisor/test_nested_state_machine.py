"""Random sequences of VMX instructions against a plain statement of the rules, and VMCSs with a bit turned.

The model below is written from SDM 3C 31.3 alone and knows nothing of L0: which regions exist, which is current,
which were launched.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from l2lab import AD_FLAGS, DATA, L2
from nestedlab import REVISION, VMCS_A, VMCS_B, VMXON_REGION, Lab, prepare_l2

from lzero.errors import GuestFault
from lzero.hypervisor.features import NESTED
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, VmExit
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


def turn(lab: Lab, batches: list[list[tuple[int, int]]]) -> None:
    """Enter with each batch of bits turned, until the machine is no longer where the next entry could start."""
    state = lab.vcpu.nested.state
    assert state.vmcs12 is not None
    good = bytes(state.vmcs12.words)
    for batch in batches:
        state = lab.vcpu.nested.state
        if state.vmcs12 is None:
            return
        state.vmcs12.words[:] = memoryview(good).cast("Q")
        state.vmcs12.launched = False
        state.vmcs12.changed = (1 << 400) - 1
        for encoding, bit in batch:
            mask = WIDTH[VMCS_FIELDS[encoding].width]
            state.vmcs12.write(encoding, state.vmcs12.read(encoding) ^ (1 << bit & mask))
        try:
            lab.step("vmlaunch")
        except GuestFault:
            return  # the guest is gone, with a message
        if lab.vcpu.level != 1 or lab.vcpu.stop_reason != "hlt":
            return


@settings(max_examples=150)
@given(batches=st.lists(st.lists(bits, min_size=1, max_size=3), min_size=40, max_size=40))
def test_a_good_vmcs_with_bits_turned(batches: list[list[tuple[int, int]]]) -> None:
    """Valid ± a few bits: entry, VMfail, exit 33 or 34, triple fault or a clear guest fault; never a broken machine."""
    lab = Lab(fill=0xF4)
    try:
        lab.start_vmx()
        prepare_l2(lab)
        turn(lab, batches)
    finally:
        lab.close()


@settings(max_examples=150)
@given(batches=st.lists(st.lists(bits, min_size=1, max_size=3), min_size=40, max_size=40))
def test_a_vmcs_with_every_feature_and_bits_turned(batches: list[list[tuple[int, int]]]) -> None:
    """The same with EPT, its flags and log, #VE, APIC accesses, shadowing, bitmaps, timer and MSR areas in use."""
    l2 = L2(fill=0xF4)
    try:
        everything(l2)
        turn(l2.lab, batches)
    finally:
        l2.close()


def everything(l2: L2) -> None:
    l2.use_idt()
    l2.use_ept(flags=AD_FLAGS)
    l2.want(
        *(control for control in ProcBased2 if control & NESTED.proc2.allowed1),
        PinBased.ACTIVATE_VMX_PREEMPTION_TIMER,
        PinBased.EXTERNAL_INTERRUPT_EXITING,
        ProcBased.USE_TPR_SHADOW,
        ProcBased.USE_MSR_BITMAPS,
        ProcBased.USE_IO_BITMAPS,
        ProcBased.USE_TSC_OFFSETTING,
        VmExit.SAVE_VMX_PREEMPTION_TIMER_VALUE,
    )
    for address in (
        Field.VIRTUAL_APIC_ADDRESS,
        Field.APIC_ACCESS_ADDRESS,
        Field.MSR_BITMAPS_ADDRESS,
        Field.IO_BITMAP_A_ADDRESS,
        Field.IO_BITMAP_B_ADDRESS,
        Field.VMREAD_BITMAP_ADDRESS,
        Field.VMWRITE_BITMAP_ADDRESS,
        Field.PML_ADDRESS,
        Field.EPTP_LIST_ADDRESS,
        Field.VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS,
        Field.VM_EXIT_MSR_STORE_ADDRESS,
    ):
        l2[address] = l2.page()
    l2.memory.write_u64(l2[Field.EPTP_LIST_ADDRESS], l2[Field.EPT_POINTER])
    shadow = l2.page()
    l2.lab.memory.write(shadow, (REVISION | 1 << 31).to_bytes(4, "little"))
    l2[Field.VMCS_LINK_POINTER] = shadow
    l2[Field.VPID], l2[Field.TSC_MULTIPLIER], l2[Field.PML_INDEX] = 5, 1 << 48, 511
    l2[Field.VM_FUNCTION_CONTROLS], l2[Field.VMX_PREEMPTION_TIMER_VALUE] = 1, 1000
    l2.code(f"mov eax, 0; mov ecx, 0; vmfunc; mov [{DATA:#x}], rax; mov cr8, rax; rdtsc; in al, 0x71; hlt")
