/* The part of VMX that this hypervisor uses.  Numbers: SDM vol. 3, appendix A
 * (capability MSRs), appendix B (field encodings), appendix C (exit reasons) and
 * chapter 25 (controls).
 */
#ifndef VMX_H
#define VMX_H

#include "runtime.h"

enum msr {
	IA32_FEATURE_CONTROL = 0x3a,
	IA32_SYSENTER_CS = 0x174,
	IA32_SYSENTER_ESP = 0x175,
	IA32_SYSENTER_EIP = 0x176,
	IA32_VMX_BASIC = 0x480,
	IA32_VMX_PINBASED_CTLS = 0x481,
	IA32_VMX_PROCBASED_CTLS = 0x482,
	IA32_VMX_EXIT_CTLS = 0x483,
	IA32_VMX_ENTRY_CTLS = 0x484,
	IA32_VMX_CR0_FIXED0 = 0x486,
	IA32_VMX_CR0_FIXED1 = 0x487,
	IA32_VMX_CR4_FIXED0 = 0x488,
	IA32_VMX_CR4_FIXED1 = 0x489,
	IA32_VMX_PROCBASED_CTLS2 = 0x48b,
	IA32_VMX_EPT_VPID_CAP = 0x48c,
	IA32_VMX_TRUE_PINBASED_CTLS = 0x48d,
	IA32_VMX_TRUE_PROCBASED_CTLS = 0x48e,
	IA32_VMX_TRUE_EXIT_CTLS = 0x48f,
	IA32_VMX_TRUE_ENTRY_CTLS = 0x490,
	IA32_KERNEL_GS_BASE = 0xc0000102,
};

#define FEATURE_CONTROL_LOCK        (1ull << 0)
#define FEATURE_CONTROL_OUTSIDE_SMX (1ull << 2)
#define VMX_BASIC_TRUE_CONTROLS     (1ull << 55)
#define EPT_CAP_WALK_LENGTH_4       (1ull << 6)
#define EPT_CAP_WRITE_BACK          (1ull << 14)
#define EPT_CAP_2M_PAGES            (1ull << 16)
#define EPT_CAP_INVEPT_SINGLE       (1ull << 25)
#define CR4_VMXE                    (1ull << 13)
#define CR0_TS                      (1ull << 3)
#define EFER_LMA                    (1ull << 10)

enum pin_based { EXTERNAL_INTERRUPT_EXITING = 1 << 0, NMI_EXITING = 1 << 3, ACTIVATE_PREEMPTION_TIMER = 1 << 6 };

enum proc_based {
	INTERRUPT_WINDOW_EXITING = 1 << 2,
	HLT_EXITING = 1 << 7,
	USE_IO_BITMAPS = 1 << 25,
	MONITOR_TRAP_FLAG = 1 << 27,
	USE_MSR_BITMAPS = 1 << 28,
};
#define ACTIVATE_SECONDARY_CONTROLS (1u << 31)

enum proc_based2 { ENABLE_EPT = 1 << 1, ENABLE_VPID = 1 << 5, UNRESTRICTED_GUEST = 1 << 7 };

enum exit_controls {
	EXIT_HOST_ADDRESS_SPACE_SIZE = 1 << 9,
	EXIT_ACKNOWLEDGE_INTERRUPT = 1 << 15,
	EXIT_SAVE_EFER = 1 << 20,
	EXIT_LOAD_EFER = 1 << 21,
};

enum entry_controls { ENTRY_IA32E_MODE_GUEST = 1 << 9, ENTRY_LOAD_EFER = 1 << 15 };

enum field {
	VIRTUAL_PROCESSOR_IDENTIFIER = 0x0000,
	GUEST_ES_SELECTOR = 0x0800,            /* then CS SS DS FS GS LDTR TR, two apart */
	HOST_ES_SELECTOR = 0x0c00,
	HOST_CS_SELECTOR = 0x0c02,
	HOST_SS_SELECTOR = 0x0c04,
	HOST_DS_SELECTOR = 0x0c06,
	HOST_FS_SELECTOR = 0x0c08,
	HOST_GS_SELECTOR = 0x0c0a,
	HOST_TR_SELECTOR = 0x0c0c,
	IO_BITMAP_A = 0x2000,
	IO_BITMAP_B = 0x2002,
	MSR_BITMAPS = 0x2004,
	EPT_POINTER = 0x201a,
	GUEST_PHYSICAL_ADDRESS = 0x2400,
	VMCS_LINK_POINTER = 0x2800,
	GUEST_IA32_DEBUGCTL = 0x2802,
	GUEST_IA32_EFER = 0x2806,
	HOST_IA32_EFER = 0x2c02,
	PIN_BASED_CONTROLS = 0x4000,
	PROC_BASED_CONTROLS = 0x4002,
	EXCEPTION_BITMAP = 0x4004,
	PAGE_FAULT_ERROR_CODE_MASK = 0x4006,
	PAGE_FAULT_ERROR_CODE_MATCH = 0x4008,
	CR3_TARGET_COUNT = 0x400a,
	EXIT_CONTROLS = 0x400c,
	EXIT_MSR_STORE_COUNT = 0x400e,
	EXIT_MSR_LOAD_COUNT = 0x4010,
	ENTRY_CONTROLS = 0x4012,
	ENTRY_MSR_LOAD_COUNT = 0x4014,
	ENTRY_INTERRUPTION_INFORMATION = 0x4016,
	ENTRY_EXCEPTION_ERROR_CODE = 0x4018,
	ENTRY_INSTRUCTION_LENGTH = 0x401a,
	PROC_BASED_CONTROLS2 = 0x401e,
	VM_INSTRUCTION_ERROR = 0x4400,
	EXIT_REASON = 0x4402,
	EXIT_INTERRUPTION_INFORMATION = 0x4404,
	IDT_VECTORING_INFORMATION = 0x4408,
	IDT_VECTORING_ERROR_CODE = 0x440a,
	EXIT_INSTRUCTION_LENGTH = 0x440c,
	GUEST_ES_LIMIT = 0x4800,               /* the same order as the selectors */
	GUEST_GDTR_LIMIT = 0x4810,
	GUEST_IDTR_LIMIT = 0x4812,
	GUEST_ES_ACCESS_RIGHTS = 0x4814,
	GUEST_INTERRUPTIBILITY = 0x4824,
	GUEST_ACTIVITY_STATE = 0x4826,
	GUEST_SYSENTER_CS = 0x482a,
	PREEMPTION_TIMER_VALUE = 0x482e,
	HOST_SYSENTER_CS = 0x4c00,
	CR0_GUEST_HOST_MASK = 0x6000,
	CR4_GUEST_HOST_MASK = 0x6002,
	CR0_READ_SHADOW = 0x6004,
	CR4_READ_SHADOW = 0x6006,
	EXIT_QUALIFICATION = 0x6400,
	GUEST_CR0 = 0x6800,
	GUEST_CR3 = 0x6802,
	GUEST_CR4 = 0x6804,
	GUEST_ES_BASE = 0x6806,                /* the same order as the selectors */
	GUEST_GDTR_BASE = 0x6816,
	GUEST_IDTR_BASE = 0x6818,
	GUEST_DR7 = 0x681a,
	GUEST_RSP = 0x681c,
	GUEST_RIP = 0x681e,
	GUEST_RFLAGS = 0x6820,
	GUEST_PENDING_DEBUG_EXCEPTIONS = 0x6822,
	GUEST_SYSENTER_ESP = 0x6824,
	GUEST_SYSENTER_EIP = 0x6826,
	HOST_CR0 = 0x6c00,
	HOST_CR3 = 0x6c02,
	HOST_CR4 = 0x6c04,
	HOST_FS_BASE = 0x6c06,
	HOST_GS_BASE = 0x6c08,
	HOST_TR_BASE = 0x6c0a,
	HOST_GDTR_BASE = 0x6c0c,
	HOST_IDTR_BASE = 0x6c0e,
	HOST_SYSENTER_ESP = 0x6c10,
	HOST_SYSENTER_EIP = 0x6c12,
	HOST_RSP = 0x6c14,
	HOST_RIP = 0x6c16,
};

enum exit_reason {
	EXIT_EXCEPTION_OR_NMI = 0,
	EXIT_EXTERNAL_INTERRUPT = 1,
	EXIT_INTERRUPT_WINDOW = 7,
	EXIT_CPUID = 10,
	EXIT_HLT = 12,
	EXIT_VMCALL = 18,
	EXIT_CR_ACCESS = 28,
	EXIT_IO = 30,
	EXIT_RDMSR = 31,
	EXIT_WRMSR = 32,
	EXIT_MONITOR_TRAP_FLAG = 37,
	EXIT_EPT_VIOLATION = 48,
	EXIT_EPT_MISCONFIGURATION = 49,
	EXIT_PREEMPTION_TIMER = 52,
	EXIT_REASONS = 80,
};
#define EXIT_REASON_ENTRY_FAILURE (1u << 31)

#define INTERRUPTION_VALID        (1u << 31)
#define INTERRUPTION_ERROR_CODE   (1u << 11)
#define INTERRUPTION_TYPE(info)   ((info) >> 8 & 7)
enum interruption_type { TYPE_EXTERNAL = 0, TYPE_HARDWARE_EXCEPTION = 3, TYPE_SOFTWARE_INTERRUPT = 4, TYPE_SOFTWARE_EXCEPTION = 6 };

#define BLOCKING_BY_STI_OR_MOV_SS 3u
#define RFLAGS_FIXED              (1ull << 1)
#define RFLAGS_IF                 (1ull << 9)

/* In the order of the instruction encoding, so that an exit qualification's
 * register number is an index.  The processor keeps RSP in the VMCS. */
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
struct registers {
	uint64_t r[16];
};

/* enter.S.  Runs the guest until its next exit; true if the entry failed early
 * (VMfail), with the guest never started. */
bool vmx_enter(struct registers *registers, bool launched);
extern const char vmx_exit[];

/* vmx.c */
void vmx_on(void);
void vmx_off(void);
void vmcs_make_current(void);   /* cleared, so that the next entry must be VMLAUNCH */
uint32_t controls(enum msr plain, enum msr true_msr, uint32_t required, uint32_t optional);
bool control_allowed(enum msr plain, enum msr true_msr, uint32_t bits);
uint64_t fix_cr0(uint64_t value);
uint64_t fix_cr4(uint64_t value);
void invept_single(uint64_t eptp);
_Noreturn void vmx_failed(const char *instruction, uint64_t operand);

static inline uint64_t vmread(enum field field)
{
	uint64_t value;
	bool failed;

	asm volatile("vmread %2, %1" : "=@ccbe"(failed), "=r"(value) : "r"((uint64_t)field) : "memory");
	if (failed)
		vmx_failed("vmread", field);
	return value;
}

static inline void vmwrite(enum field field, uint64_t value)
{
	bool failed;

	asm volatile("vmwrite %1, %2" : "=@ccbe"(failed) : "r"(value), "r"((uint64_t)field) : "memory");
	if (failed)
		vmx_failed("vmwrite", field);
}

#endif
