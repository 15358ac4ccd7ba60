/* Filling a VMCS: controls, host state, guest state. */
#include "l1.h"

#define ACCESS_CODE64      0xa09b   /* present, DPL 0, execute/read/accessed, L, G */
#define ACCESS_DATA        0xc093   /* present, DPL 0, read/write/accessed, D/B, G */
#define ACCESS_REAL_CODE   0x009b
#define ACCESS_REAL_DATA   0x0093
#define ACCESS_BUSY_TSS    0x008b
#define ACCESS_LDT         0x0082
#define ACCESS_UNUSABLE    0x10000
#define DR7_FIXED          0x400
#define CR0_FIXED_FOR_REAL (~(uint64_t)(CR0_PG | CR0_PE))

enum { ES, CS, SS, DS, FS, GS, LDTR, TR, SEGMENTS };

static uint8_t io_bitmaps[2][4096] __attribute__((aligned(4096)));
static uint8_t msr_bitmaps[4096] __attribute__((aligned(4096)));
static struct gate guest_idt[256];
static uint32_t proc_based;

extern uint64_t host_rsp;
extern const char guest_on_fault[], guest_on_fault_with_code[], guest_on_timer[];
extern const char guest_stack_top[], guest_real[], guest_real_end[];

static void set_bit(uint8_t *bitmap, uint32_t bit)
{
	bitmap[bit / 8] |= (uint8_t)(1u << (bit % 8));
}

static void fill_bitmaps(void)
{
	set_bit(io_bitmaps[0], PORT_ECHO_OUT);
	for (unsigned i = 0; i < 4; i++) {
		set_bit(io_bitmaps[0], PORT_ECHO_OUT + i);
		set_bit(io_bitmaps[0], PORT_ECHO_IN + i);
	}
	/* Reads of MSRs from 0 have their bits at byte 0, writes at byte 2048 (25.6.9). */
	set_bit(msr_bitmaps, MSR_SHADOWED);
	set_bit(msr_bitmaps + 2048, MSR_SHADOWED);
}

static uint32_t pin_controls(const struct workload *workload)
{
	return controls(IA32_VMX_PINBASED_CTLS, IA32_VMX_TRUE_PINBASED_CTLS,
			EXTERNAL_INTERRUPT_EXITING | workload->pin_based, 0);
}

bool vmcs_possible(const struct workload *workload)
{
	uint32_t secondary = workload->entry ? ENABLE_EPT : ENABLE_EPT | UNRESTRICTED_GUEST;

	/* The secondary controls have no second, "true" capability MSR. */
	return control_allowed(IA32_VMX_PINBASED_CTLS, IA32_VMX_TRUE_PINBASED_CTLS, workload->pin_based)
	       && control_allowed(IA32_VMX_PROCBASED_CTLS, IA32_VMX_TRUE_PROCBASED_CTLS,
				  ACTIVATE_SECONDARY_CONTROLS | workload->proc_based)
	       && control_allowed(IA32_VMX_PROCBASED_CTLS2, IA32_VMX_PROCBASED_CTLS2, secondary);
}

static void fill_controls(const struct workload *workload)
{
	bool real_mode = !workload->entry;
	uint32_t secondary = controls(IA32_VMX_PROCBASED_CTLS2, IA32_VMX_PROCBASED_CTLS2,
				      ENABLE_EPT | (real_mode ? UNRESTRICTED_GUEST : 0), ENABLE_VPID);

	proc_based = controls(IA32_VMX_PROCBASED_CTLS, IA32_VMX_TRUE_PROCBASED_CTLS,
			      HLT_EXITING | USE_IO_BITMAPS | USE_MSR_BITMAPS | ACTIVATE_SECONDARY_CONTROLS
			      | workload->proc_based, 0);
	vmwrite(PIN_BASED_CONTROLS, pin_controls(workload));
	vmwrite(PROC_BASED_CONTROLS, proc_based);
	vmwrite(PROC_BASED_CONTROLS2, secondary);
	vmwrite(EXIT_CONTROLS, controls(IA32_VMX_EXIT_CTLS, IA32_VMX_TRUE_EXIT_CTLS,
					EXIT_HOST_ADDRESS_SPACE_SIZE | EXIT_ACKNOWLEDGE_INTERRUPT
					| EXIT_SAVE_EFER | EXIT_LOAD_EFER, 0));
	vmwrite(ENTRY_CONTROLS, controls(IA32_VMX_ENTRY_CTLS, IA32_VMX_TRUE_ENTRY_CTLS,
					 ENTRY_LOAD_EFER | (real_mode ? 0 : ENTRY_IA32E_MODE_GUEST), 0));
	if (secondary & ENABLE_VPID)
		vmwrite(VIRTUAL_PROCESSOR_IDENTIFIER, 1);
	if (workload->pin_based & ACTIVATE_PREEMPTION_TIMER)
		vmwrite(PREEMPTION_TIMER_VALUE, 1000);

	vmwrite(EXCEPTION_BITMAP, workload->exceptions);
	vmwrite(PAGE_FAULT_ERROR_CODE_MASK, 0);
	vmwrite(PAGE_FAULT_ERROR_CODE_MATCH, 0);
	vmwrite(CR3_TARGET_COUNT, 0);
	vmwrite(EXIT_MSR_STORE_COUNT, 0);
	vmwrite(EXIT_MSR_LOAD_COUNT, 0);
	vmwrite(ENTRY_MSR_LOAD_COUNT, 0);
	vmwrite(ENTRY_INTERRUPTION_INFORMATION, 0);
	vmwrite(IO_BITMAP_A, (uint64_t)io_bitmaps[0]);
	vmwrite(IO_BITMAP_B, (uint64_t)io_bitmaps[1]);
	vmwrite(MSR_BITMAPS, (uint64_t)msr_bitmaps);
	vmwrite(EPT_POINTER, ept_pointer());
	/* CR0.TS is ours: the guest sees the shadow's bit, and setting it exits. */
	vmwrite(CR0_GUEST_HOST_MASK, CR0_TS);
	vmwrite(CR0_READ_SHADOW, 0);
	vmwrite(CR4_GUEST_HOST_MASK, 0);
	vmwrite(CR4_READ_SHADOW, 0);
}

static void fill_host_state(uint64_t host_rip)
{
	struct __attribute__((packed)) {
		uint16_t limit;
		uint64_t base;
	} idt;

	asm volatile("sidt %0" : "=m"(idt));
	vmwrite(HOST_CR0, read_cr0());
	vmwrite(HOST_CR3, read_cr3());
	vmwrite(HOST_CR4, read_cr4());
	vmwrite(HOST_CS_SELECTOR, SEL_CODE64);
	vmwrite(HOST_SS_SELECTOR, SEL_DATA);
	vmwrite(HOST_DS_SELECTOR, SEL_DATA);
	vmwrite(HOST_ES_SELECTOR, SEL_DATA);
	vmwrite(HOST_FS_SELECTOR, 0);
	vmwrite(HOST_GS_SELECTOR, 0);
	vmwrite(HOST_TR_SELECTOR, SEL_TSS);
	vmwrite(HOST_FS_BASE, 0);
	vmwrite(HOST_GS_BASE, 0);
	vmwrite(HOST_TR_BASE, (uint64_t)boot_tss);
	vmwrite(HOST_GDTR_BASE, (uint64_t)boot_gdt);
	vmwrite(HOST_IDTR_BASE, idt.base);
	vmwrite(HOST_SYSENTER_CS, 0);
	vmwrite(HOST_SYSENTER_ESP, 0);
	vmwrite(HOST_SYSENTER_EIP, 0);
	vmwrite(HOST_IA32_EFER, rdmsr(MSR_EFER));
	vmwrite(HOST_RIP, host_rip);
	host_rsp = 0;   /* vmx_enter() writes HOST_RSP when its stack differs from this */
}

static void segment(unsigned which, uint16_t selector, uint64_t base, uint32_t limit, uint32_t access_rights)
{
	vmwrite(GUEST_ES_SELECTOR + 2 * which, selector);
	vmwrite(GUEST_ES_BASE + 2 * which, base);
	vmwrite(GUEST_ES_LIMIT + 2 * which, limit);
	vmwrite(GUEST_ES_ACCESS_RIGHTS + 2 * which, access_rights);
}

/* The guest shares our page tables and descriptors; it has an IDT of its own. */
static void fill_64bit_guest(const struct workload *workload)
{
	for (unsigned which = ES; which <= GS; which++)
		segment(which, SEL_DATA, 0, 0xffffffff, ACCESS_DATA);
	segment(CS, SEL_CODE64, 0, 0xffffffff, ACCESS_CODE64);
	segment(TR, SEL_TSS, (uint64_t)boot_tss, 0x67, ACCESS_BUSY_TSS);

	guest_idt[0] = interrupt_gate(guest_on_fault);
	guest_idt[13] = interrupt_gate(guest_on_fault_with_code);
	guest_idt[VECTOR_TIMER] = interrupt_gate(guest_on_timer);
	vmwrite(GUEST_IDTR_BASE, (uint64_t)guest_idt);
	vmwrite(GUEST_IDTR_LIMIT, sizeof guest_idt - 1);

	vmwrite(GUEST_CR0, fix_cr0(read_cr0()));
	vmwrite(GUEST_CR3, read_cr3());
	vmwrite(GUEST_CR4, fix_cr4(CR4_PAE));
	vmwrite(GUEST_IA32_EFER, rdmsr(MSR_EFER));
	vmwrite(GUEST_RIP, (uint64_t)workload->entry);
	vmwrite(GUEST_RSP, (uint64_t)guest_stack_top);
}

/* Unrestricted guest: PE and PG may be 0 whatever CR0's fixed bits say (24.8). */
static void fill_real_mode_guest(void)
{
	for (unsigned which = ES; which <= GS; which++)
		segment(which, REAL_MODE_CODE >> 4, REAL_MODE_CODE, 0xffff, ACCESS_REAL_DATA);
	segment(CS, REAL_MODE_CODE >> 4, REAL_MODE_CODE, 0xffff, ACCESS_REAL_CODE);
	segment(TR, 0, 0, 0xffff, ACCESS_BUSY_TSS);
	memcpy(ept_real_mode_page(), guest_real, (size_t)(guest_real_end - guest_real));

	vmwrite(GUEST_IDTR_BASE, 0);
	vmwrite(GUEST_IDTR_LIMIT, 0x3ff);
	vmwrite(GUEST_CR0, fix_cr0(CR0_NE) & CR0_FIXED_FOR_REAL);
	vmwrite(GUEST_CR3, 0);
	vmwrite(GUEST_CR4, fix_cr4(0));
	vmwrite(GUEST_IA32_EFER, 0);
	vmwrite(GUEST_RIP, 0);
	vmwrite(GUEST_RSP, 0x1000);
}

void vmcs_fill(const struct workload *workload, uint64_t host_rip)
{
	fill_bitmaps();
	fill_controls(workload);
	fill_host_state(host_rip);
	segment(LDTR, 0, 0, 0, ACCESS_UNUSABLE | ACCESS_LDT);
	if (workload->entry)
		fill_64bit_guest(workload);
	else
		fill_real_mode_guest();
	vmwrite(GUEST_GDTR_BASE, (uint64_t)boot_gdt);
	vmwrite(GUEST_GDTR_LIMIT, 0x3f);
	vmwrite(GUEST_DR7, DR7_FIXED);
	vmwrite(GUEST_RFLAGS, RFLAGS_FIXED);
	vmwrite(GUEST_INTERRUPTIBILITY, 0);
	vmwrite(GUEST_ACTIVITY_STATE, 0);
	vmwrite(GUEST_PENDING_DEBUG_EXCEPTIONS, 0);
	vmwrite(GUEST_SYSENTER_CS, 0);
	vmwrite(GUEST_SYSENTER_ESP, 0);
	vmwrite(GUEST_SYSENTER_EIP, 0);
	vmwrite(GUEST_IA32_DEBUGCTL, 0);
	vmwrite(VMCS_LINK_POINTER, ~0ull);
}

void vmcs_set_proc_based(uint32_t set, uint32_t clear)
{
	proc_based = (proc_based | set) & ~clear;
	vmwrite(PROC_BASED_CONTROLS, proc_based);
}
