"""Formats inside VMCS fields: exit qualifications, interruption information, EPTP, guest non-register state.

Exit qualifications are SDM vol. 3, 28.2.1; interruption information 25.8.3, 25.9.2 and 25.9.3; EPTP 25.6.11.
VM-exit instruction information is in :mod:`lzero.sdm.instruction_info`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from .bitformat import BitFormat, bits

__all__ = [
    "EPT_MEMORY_TYPES",
    "ActivityState",
    "ApicAccessQualification",
    "ApicAccessType",
    "CrAccessQualification",
    "CrAccessType",
    "DebugQualification",
    "EntryFailureQualification",
    "EptEntry",
    "EptViolationQualification",
    "Eptp",
    "EventType",
    "InterruptibilityState",
    "InterruptionInformation",
    "InveptType",
    "InvvpidType",
    "IoQualification",
    "MemoryType",
    "MovDrQualification",
    "PendingDebugExceptions",
    "TaskSwitchQualification",
    "TaskSwitchSource",
    "VmxAbort",
]


class EventType(IntEnum):
    """Interruption type, bits 10:8 of interruption information (25.8.3, table 25-17)."""

    EXTERNAL_INTERRUPT = 0
    RESERVED = 1
    NMI = 2
    HARDWARE_EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4
    PRIVILEGED_SOFTWARE_EXCEPTION = 5
    SOFTWARE_EXCEPTION = 6
    OTHER_EVENT = 7


@dataclass(frozen=True)
class InterruptionInformation(BitFormat):
    """VM-entry, VM-exit and IDT-vectoring interruption information (25.8.3, 25.9.2, 25.9.3).

    ``nmi_unblocking`` is defined only for the VM-exit field; on VM entry it must be 0.
    """

    vector: int = bits(7, 0)
    type: EventType = bits(10, 8, EventType.EXTERNAL_INTERRUPT)
    error_code_valid: bool = bits(11, 11)
    nmi_unblocking: bool = bits(12, 12)
    valid: bool = bits(31, 31)


class CrAccessType(IntEnum):
    """Access type of a control-register access, bits 5:4."""

    MOV_TO_CR = 0
    MOV_FROM_CR = 1
    CLTS = 2
    LMSW = 3


@dataclass(frozen=True)
class CrAccessQualification(BitFormat):
    """Exit qualification of control-register accesses (28.2.1, table 28-3)."""

    register: int = bits(3, 0)
    access_type: CrAccessType = bits(5, 4, CrAccessType.MOV_TO_CR)
    lmsw_memory_operand: bool = bits(6, 6)
    general_register: int = bits(11, 8)
    lmsw_source: int = bits(31, 16)


@dataclass(frozen=True)
class IoQualification(BitFormat):
    """Exit qualification of I/O instructions (28.2.1, table 28-5). ``size_code`` is the size in bytes less one."""

    size_code: int = bits(2, 0)
    is_in: bool = bits(3, 3)
    string: bool = bits(4, 4)
    rep: bool = bits(5, 5)
    immediate: bool = bits(6, 6)
    port: int = bits(31, 16)

    @property
    def size(self) -> int:
        """Bytes per access: 1, 2 or 4."""
        return self.size_code + 1


@dataclass(frozen=True)
class EptViolationQualification(BitFormat):
    """Exit qualification of EPT violations (28.2.1, table 28-7)."""

    data_read: bool = bits(0, 0)
    data_write: bool = bits(1, 1)
    instruction_fetch: bool = bits(2, 2)
    readable: bool = bits(3, 3)
    writable: bool = bits(4, 4)
    executable: bool = bits(5, 5)
    user_executable: bool = bits(6, 6)
    linear_address_valid: bool = bits(7, 7)
    final_translation: bool = bits(8, 8)
    user_mode_linear_address: bool = bits(9, 9)
    read_write_page: bool = bits(10, 10)
    execute_disable_page: bool = bits(11, 11)
    nmi_unblocking: bool = bits(12, 12)
    shadow_stack_access: bool = bits(13, 13)
    supervisor_shadow_stack: bool = bits(14, 14)
    guest_paging_verification: bool = bits(15, 15)
    asynchronous: bool = bits(16, 16)


@dataclass(frozen=True)
class DebugQualification(BitFormat):
    """Exit qualification of debug exceptions (28.2.1, table 28-1): DR6's places, but ``rtm`` is active high."""

    b0: bool = bits(0, 0)
    b1: bool = bits(1, 1)
    b2: bool = bits(2, 2)
    b3: bool = bits(3, 3)
    bld: bool = bits(11, 11)
    bd: bool = bits(13, 13)
    bs: bool = bits(14, 14)
    rtm: bool = bits(16, 16)


@dataclass(frozen=True)
class MovDrQualification(BitFormat):
    """Exit qualification of MOV DR (28.2.1, table 28-4)."""

    register: int = bits(2, 0)
    from_dr: bool = bits(4, 4)
    general_register: int = bits(11, 8)


class ApicAccessType(IntEnum):
    """Access type of an APIC access, bits 15:12 (28.2.1, table 28-6); the others are reserved."""

    LINEAR_READ = 0
    LINEAR_WRITE = 1
    LINEAR_FETCH = 2
    LINEAR_EVENT_DELIVERY = 3
    LINEAR_MONITORING = 4
    PHYSICAL_EVENT_DELIVERY = 10
    PHYSICAL_MONITORING = 11
    PHYSICAL_FETCH_OR_EXECUTION = 15


@dataclass(frozen=True)
class ApicAccessQualification(BitFormat):
    """Exit qualification of APIC accesses (28.2.1, table 28-6); ``access_type`` as in :class:`ApicAccessType`."""

    offset: int = bits(11, 0)
    access_type: int = bits(15, 12)
    asynchronous: bool = bits(16, 16)


class TaskSwitchSource(IntEnum):
    """What caused a task switch, bits 31:30."""

    CALL = 0
    IRET = 1
    JMP = 2
    TASK_GATE_IN_IDT = 3


@dataclass(frozen=True)
class TaskSwitchQualification(BitFormat):
    """Exit qualification of task switches (28.2.1, table 28-2)."""

    selector: int = bits(15, 0)
    source: TaskSwitchSource = bits(31, 30, TaskSwitchSource.CALL)


class EntryFailureQualification(IntEnum):
    """Exit qualification of a VM entry that failed on guest state (27.8); other failures give 0."""

    OTHER = 0
    PDPTE = 2
    NMI_INJECTION = 3
    VMCS_LINK_POINTER = 4


class MemoryType(IntEnum):
    """Memory types of PAT, MTRR and EPT (12.3)."""

    UC = 0
    WC = 1
    WT = 4
    WP = 5
    WB = 6
    UC_MINUS = 7


EPT_MEMORY_TYPES = frozenset({0, 1, 4, 5, 6})
"""Memory types that an EPT leaf entry may have (29.3.7.2); others are misconfigurations."""


@dataclass(frozen=True)
class Eptp(BitFormat):
    """Extended-page-table pointer (25.6.11, table 25-9). ``walk_length_code`` is the number of levels less one."""

    memory_type: int = bits(2, 0, MemoryType.WB)
    walk_length_code: int = bits(5, 3, 3)
    accessed_dirty: bool = bits(6, 6)
    supervisor_shadow_stack: bool = bits(7, 7)
    page_frame: int = bits(51, 12)

    @property
    def levels(self) -> int:
        """Number of levels of the walk."""
        return self.walk_length_code + 1

    @property
    def address(self) -> int:
        """Physical address of the top-level table."""
        return self.page_frame << 12


class EptEntry(IntFlag):
    """Bits of EPT paging-structure entries (29.3.2, tables 29-1 to 29-7)."""

    READ = 1 << 0
    WRITE = 1 << 1
    EXECUTE = 1 << 2
    MEMORY_TYPE = 7 << 3
    IGNORE_PAT = 1 << 6
    PAGE_SIZE = 1 << 7
    ACCESSED = 1 << 8
    DIRTY = 1 << 9
    USER_EXECUTE = 1 << 10
    VERIFY_GUEST_PAGING = 1 << 57
    PAGING_WRITE = 1 << 58
    SUPERVISOR_SHADOW_STACK = 1 << 60
    SUPPRESS_VE = 1 << 63


class InterruptibilityState(IntFlag):
    """Guest interruptibility state (25.4.2, table 25-3)."""

    BLOCKING_BY_STI = 1 << 0
    BLOCKING_BY_MOV_SS = 1 << 1
    BLOCKING_BY_SMI = 1 << 2
    BLOCKING_BY_NMI = 1 << 3
    ENCLAVE_INTERRUPTION = 1 << 4


class ActivityState(IntEnum):
    """Guest activity state (25.4.2)."""

    ACTIVE = 0
    HLT = 1
    SHUTDOWN = 2
    WAIT_FOR_SIPI = 3


class PendingDebugExceptions(IntFlag):
    """Guest pending debug exceptions (25.4.2, table 25-4)."""

    B0 = 1 << 0
    B1 = 1 << 1
    B2 = 1 << 2
    B3 = 1 << 3
    BLD = 1 << 11
    ENABLED_BREAKPOINT = 1 << 12
    BS = 1 << 14
    RTM = 1 << 16


class InveptType(IntEnum):
    """INVEPT types (31.3)."""

    SINGLE_CONTEXT = 1
    ALL_CONTEXT = 2


class InvvpidType(IntEnum):
    """INVVPID types (31.3)."""

    INDIVIDUAL_ADDRESS = 0
    SINGLE_CONTEXT = 1
    ALL_CONTEXT = 2
    SINGLE_CONTEXT_RETAINING_GLOBALS = 3


class VmxAbort(IntEnum):
    """VMX-abort indicator (28.7)."""

    SAVING_GUEST_MSRS = 1
    HOST_PDPTE = 2
    VMCS_CORRUPTED = 3
    LOADING_HOST_MSRS = 4
    MACHINE_CHECK = 5
    HOST_NOT_64_BIT = 6
