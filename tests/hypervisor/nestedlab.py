"""A bare L1 for tests: one VMX instruction at a time, in 64-bit mode, and what became of it.

The board is real, the guest is a page of stubs: one VMX instruction each, followed by HLT. An exception that L0 would
inject ends the step and is reported instead, so no IDT is needed.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass

from guestasm import assemble
from lzero.cpu.processor import Processor
from lzero.hypervisor.ept import ExtendedPageTables
from lzero.hypervisor.features import NESTED, PROCESSOR
from lzero.hypervisor.handlers import HANDLERS, undefined, unexpected_exit
from lzero.hypervisor.nested.shadow_fields import ShadowFields
from lzero.hypervisor.vcpu import Vcpu
from lzero.platform.clock import VirtualClock
from lzero.platform.loaders.entry import long_mode_entry
from lzero.platform.memory import GuestMemory
from lzero.platform.pc import Pc
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.vmcs_fields import Field
from lzero.trace.recorder import Recorder

CODE, OPERAND, STACK = 0x20_0000, 0x21_0000, 0x22_0000
VMXON_REGION, VMCS_A, VMCS_B = 0x30_0000, 0x30_1000, 0x30_2000
L2_CODE, L2_STACK = 0x31_0000, 0x31_1000
MEMORY = 16 << 20
REVISION = NESTED.vmcs_revision_id
_STUB = 16

STUBS = {
    "vmxon": "f30fc737",  # vmxon [rdi]
    "vmxoff": "0f01c4",
    "vmclear": "660fc737",
    "vmptrld": "0fc737",
    "vmptrst": "0fc73f",
    "vmread": "0f78d8",  # vmread rax, rbx
    "vmwrite": "0f79d8",  # vmwrite rbx, rax
    "vmlaunch": "0f01c2",
    "vmresume": "0f01c3",
    "vmcall": "0f01c1",
    "invept": "660f38801f",  # invept rbx, [rdi]
    "invvpid": "660f38811f",
}
"""Bytes of each instruction; keystone does not know them all."""


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    ``result`` is "succeed", "invalid" (CF), "valid" (ZF), "exception" or "other" (L1 went elsewhere: a VM exit of L2 or
    the end of the run); ``vector`` the exception, ``rax`` the register afterwards.
    """

    result: str
    vector: int = -1
    rax: int = 0


class Lab:
    """One L1.

    Parameters
    ----------
    shadow_fields:
        VMCS fields that L1 accesses without an exit.
    fill:
        What memory holds where nothing is; with HLT, code that ran astray comes to an end.
    """

    def __init__(self, shadow_fields: ShadowFields | None = None, *, fill: int = 0) -> None:
        self.cpu = Processor(PROCESSOR)
        self.memory = GuestMemory(MEMORY)
        self.memory.write(CODE, bytes([fill]) * (MEMORY - CODE))
        for region in self.memory.regions:
            self.cpu.memory.map(region.gpa, self.memory.mapping, region.host_offset, region.size)
        self.clock = VirtualClock(self.cpu.clock.now_ns, 1_000_000_000)
        self.pc = Pc(self.memory, self.clock, io.BytesIO())
        ept = ExtendedPageTables(self.cpu.memory)
        for region in self.memory.regions:
            ept.map_ram(region.gpa, region.size)
        ept.mark_devices(self.pc.bus.mmio_pages())
        self.warnings: list[str] = []
        self.vcpu = Vcpu(
            self.cpu,
            self.pc,
            ept,
            Recorder(None),
            ignore_msrs=False,
            warn=self.warnings.append,
            offers_vmx=True,
            shadow_fields=shadow_fields,
        )
        self.vcpu.reset_to(long_mode_entry(self.memory, CODE, {}))
        self.vcpu.msrs.feature_control = 5
        self.cpu.load_control_register(4, self.cpu.vmread(Field.GUEST_CR4) | 0x2000)
        self.cpu.vmwrite(Field.CR4_READ_SHADOW, self.cpu.vmread(Field.GUEST_CR4))
        self._place_stubs()
        self._injected: list[tuple[int, int | None]] = []
        self.vcpu.inject_exception = self._inject  # type: ignore[method-assign]  # the test's probe

    def _place_stubs(self) -> None:
        for number, code in enumerate(STUBS.values()):
            self.memory.write(CODE + _STUB * number, bytes.fromhex(code) + b"\xf4")

    def _inject(self, vector: int, error_code: int | None = None) -> bool:
        self._injected.append((vector, error_code))
        return self.vcpu.stop("exception")

    def _dispatch(self, vcpu: Vcpu, reason: int) -> bool:
        from lzero.dispatch.handlers import handler_of

        if reason == ExitReason.HLT and vcpu.level == 1:
            return vcpu.stop("hlt")
        name = handler_of(reason, nested=True)
        handler: Callable[[Vcpu], bool] | None = HANDLERS.get(name, undefined) if name is not None else None
        return handler(vcpu) if handler is not None else unexpected_exit(vcpu, reason)

    def region(self, address: int, revision: int = REVISION) -> int:
        """Make a VMXON or VMCS region; its address."""
        self.memory.write(address, revision.to_bytes(4, "little") + bytes(4092))
        return address

    def step(self, name: str, *, rax: int = 0, rbx: int = 0, operand: bytes = b"") -> Outcome:
        """Execute one VMX instruction of L1 at CPL 0."""
        self.memory.write(OPERAND, operand.ljust(16, b"\0"))
        gpr = self.cpu.gpr
        gpr[0], gpr[3], gpr[7] = rax, rbx, OPERAND
        start = CODE + _STUB * list(STUBS).index(name)
        for field, value in ((Field.GUEST_RIP, start), (Field.GUEST_RFLAGS, 2), (Field.GUEST_RSP, STACK)):
            self.cpu.vmwrite(field, value)
        self.cpu.vmwrite(Field.VM_ENTRY_INTERRUPTION_INFORMATION, 0)
        self.run()
        if self._injected:
            return Outcome("exception", self._injected[0][0])
        ended_at_hlt = self.cpu.vmread(Field.GUEST_RIP) == start + len(STUBS[name]) // 2
        if self.vcpu.stop_reason != "hlt" or not ended_at_hlt:
            return Outcome("other")
        flags = self.cpu.vmread(Field.GUEST_RFLAGS) & 0x8D5
        result = {0: "succeed", 1: "invalid", 0x40: "valid"}.get(flags, f"flags {flags:#x}")
        return Outcome(result, rax=gpr[0])

    def run(self) -> None:
        """Run L1 (and L2) until it halts, an exception is injected, or 50 µs of guest time are over."""
        self.vcpu.stop_reason = None
        self._injected.clear()
        timer = self.clock.call_at(self.clock.now_ns() + 50_000, lambda: self.vcpu.stop("time") and None)
        try:
            self.vcpu.run(self._dispatch)
        finally:
            timer.cancel()

    def pointer(self, name: str, address: int) -> Outcome:
        """VMXON, VMCLEAR or VMPTRLD of an address."""
        return self.step(name, operand=address.to_bytes(8, "little"))

    def write(self, field: int, value: int) -> Outcome:
        """VMWRITE."""
        return self.step("vmwrite", rax=value, rbx=int(field))

    def read(self, field: int) -> int:
        """VMREAD, which must succeed."""
        outcome = self.step("vmread", rbx=int(field))
        assert outcome.result == "succeed", (field, outcome)
        return outcome.rax

    def error(self) -> int:
        """The VM-instruction error."""
        return self.read(Field.VM_INSTRUCTION_ERROR)

    def start_vmx(self) -> None:
        """VMXON with a good region."""
        assert self.pointer("vmxon", self.region(VMXON_REGION)).result == "succeed"

    def load_vmcs(self, address: int = VMCS_A) -> None:
        """VMCLEAR and VMPTRLD a good VMCS."""
        self.region(address)
        assert self.pointer("vmclear", address).result == "succeed"
        assert self.pointer("vmptrld", address).result == "succeed"

    def close(self) -> None:
        self.cpu.close()


def invept_descriptor(eptp: int, reserved: int = 0) -> bytes:
    return struct.pack("<QQ", eptp, reserved)


def invvpid_descriptor(vpid: int, linear: int = 0, reserved: int = 0) -> bytes:
    return struct.pack("<HHIQ", vpid, reserved & 0xFFFF, reserved >> 16, linear)


def good_vmcs() -> dict[Field, int]:
    """Fields with which an L2 in 64-bit mode can be entered; it halts, which exits to L1 at the HLT stub."""
    host_rip = CODE + _STUB * len(STUBS)
    fields = {
        Field.PIN_BASED_VM_EXECUTION_CONTROLS: NESTED.pin.allowed0,
        Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: NESTED.proc.allowed0 | 1 << 7 | 1 << 31,
        Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: 0,
        Field.VM_EXIT_CONTROLS: NESTED.exit.allowed0 | 1 << 9,
        Field.VM_ENTRY_CONTROLS: NESTED.entry.allowed0 | 1 << 9,
        Field.VMCS_LINK_POINTER: (1 << 64) - 1,
        Field.HOST_CR0: 0x8001_0031,
        Field.HOST_CR4: 0x2020,
        Field.HOST_CS_SELECTOR: 0x10,
        Field.HOST_SS_SELECTOR: 0x18,
        Field.HOST_DS_SELECTOR: 0x18,
        Field.HOST_ES_SELECTOR: 0x18,
        Field.HOST_TR_SELECTOR: 0x18,
        Field.HOST_RSP: STACK,
        Field.HOST_RIP: host_rip,
        Field.GUEST_CR0: 0x8001_0031,
        Field.GUEST_CR4: 0x2020,
        Field.GUEST_RSP: L2_STACK,
        Field.GUEST_RIP: L2_CODE,
        Field.GUEST_RFLAGS: 2,
        Field.GUEST_CS_SELECTOR: 0x10,
        Field.GUEST_CS_LIMIT: 0xFFFF_FFFF,
        Field.GUEST_CS_ACCESS_RIGHTS: 0xA09B,
        Field.GUEST_TR_SELECTOR: 0x18,
        Field.GUEST_TR_LIMIT: 0x67,
        Field.GUEST_TR_ACCESS_RIGHTS: 0x8B,
        Field.GUEST_LDTR_ACCESS_RIGHTS: 1 << 16,
        Field.GUEST_DR7: 0x400,
    }
    for name in ("SS", "DS", "ES", "FS", "GS"):
        fields[Field[f"GUEST_{name}_SELECTOR"]] = 0x18
        fields[Field[f"GUEST_{name}_LIMIT"]] = 0xFFFF_FFFF
        fields[Field[f"GUEST_{name}_ACCESS_RIGHTS"]] = 0xC093
    return fields


def prepare_l2(lab: Lab) -> None:
    """Make VMCS A current and fill it so that L2 can be entered."""
    lab.load_vmcs()
    lab.memory.write(CODE + _STUB * len(STUBS), b"\xf4")
    lab.memory.write(L2_CODE, assemble("cpuid; hlt", 64))
    cr3 = lab.cpu.vmread(Field.GUEST_CR3)
    for field, value in {**good_vmcs(), Field.HOST_CR3: cr3, Field.GUEST_CR3: cr3}.items():
        outcome = lab.write(field, value)
        assert outcome.result == "succeed", (field, outcome)
