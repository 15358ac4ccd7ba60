/* Runs each row of exit_table.c until its first exit and compares what the VMCS then holds. */
#include "exits.h"

#define EXIT_INSTRUCTION_INFORMATION 0x440e
#define EXIT_INTERRUPTION_ERROR_CODE 0x4406
#define GUEST_LINEAR_ADDRESS         0x640a
#define EPT_QUALIFICATION_MASK       0x1ffull   /* the bits above need the EPT capability bit 22 */

uint8_t exit_scratch[4096] __attribute__((aligned(4096)));

static bool possible(const struct exit_rule *row)
{
	struct cpuid features = row->cpuid_leaf ? cpuid(row->cpuid_leaf, 0) : (struct cpuid){ 0 };

	return control_allowed(IA32_VMX_PINBASED_CTLS, IA32_VMX_TRUE_PINBASED_CTLS, row->pin)
	       && control_allowed(IA32_VMX_PROCBASED_CTLS, IA32_VMX_TRUE_PROCBASED_CTLS, row->proc)
	       && control_allowed(IA32_VMX_PROCBASED_CTLS2, IA32_VMX_PROCBASED_CTLS2, row->proc2)
	       && (features.ecx & row->cpuid_ecx) == row->cpuid_ecx
	       && (features.ebx & row->cpuid_ebx) == row->cpuid_ebx;
}

static void prepare(const struct exit_rule *row)
{
	const struct workload workload = {
		.name = row->name, .entry = row->code, .pin_based = row->pin, .proc_based = row->proc, .exceptions = row->exceptions,
	};

	/* Where RBX points, and so where the guest goes after a fault that was not to be: a VMCALL. */
	memcpy(exit_scratch, "\x0f\x01\xc1", 3);
	ept_drop_window();
	vmcs_make_current();
	vmcs_fill(&workload, (uint64_t)vmx_exit);
	vmwrite(PROC_BASED_CONTROLS2, vmread(PROC_BASED_CONTROLS2) | row->proc2);
	vmwrite(PREEMPTION_TIMER_VALUE, 0);
	vmwrite(CR0_READ_SHADOW, row->cr0_shadow);
	vmwrite(CR4_GUEST_HOST_MASK, row->cr4_mask);
	vmwrite(CR4_READ_SHADOW, vmread(GUEST_CR4));
	vmwrite(ENTRY_INTERRUPTION_INFORMATION, row->injection);
	vmwrite(ENTRY_EXCEPTION_ERROR_CODE, row->injection_error);
	vmwrite(ENTRY_INSTRUCTION_LENGTH, row->injection_length);
	vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | row->rflags);
	if (row->guest_cr3)
		vmwrite(GUEST_CR3, row->guest_cr3);
}

/* What the injected event left on the guest's stack, which L1 sees at the same address. */
static void compare_injected_frame(const struct exit_rule *row)
{
	const uint64_t *stack = (const uint64_t *)vmread(GUEST_RSP);

	if (row->injection & INTERRUPTION_ERROR_CODE)
		rule_value(row->name, "pushed error code", row->injection_error, *stack++);
	rule_value(row->name, "pushed rip", (uint64_t)row->code + row->injection_length, stack[0]);
	rule_value(row->name, "pushed cs", SEL_CODE64, stack[1]);
	rule_value(row->name, "pushed ss", SEL_DATA, stack[4]);
}

static void compare(const struct exit_rule *row)
{
	uint64_t qualification = vmread(EXIT_QUALIFICATION);

	rule_value(row->name, "reason", row->reason, vmread(EXIT_REASON));
	if (vmread(EXIT_REASON) != row->reason)
		return;
	rule_value(row->name, "rip", (uint64_t)row->at, vmread(GUEST_RIP));
	if (row->reason == EXIT_EPT_VIOLATION)
		qualification &= EPT_QUALIFICATION_MASK;
	if (!(row->checks & CHECK_NO_QUALIFICATION))
		rule_value(row->name, "qualification", row->qualification, qualification);
	if (row->checks & CHECK_LENGTH)
		rule_value(row->name, "length", row->length, vmread(EXIT_INSTRUCTION_LENGTH));
	if (row->checks & CHECK_INFORMATION)
		rule_value(row->name, "instruction information", row->information,
			   vmread((enum field)EXIT_INSTRUCTION_INFORMATION) & row->mask);
	if (row->checks & CHECK_LINEAR)
		rule_value(row->name, "linear address", row->linear, vmread((enum field)GUEST_LINEAR_ADDRESS));
	if (row->checks & CHECK_PHYSICAL)
		rule_value(row->name, "physical address", row->physical, vmread(GUEST_PHYSICAL_ADDRESS));
	if (row->checks & CHECK_EVENT) {
		rule_value(row->name, "interruption information", row->event, vmread(EXIT_INTERRUPTION_INFORMATION));
		if (row->event & INTERRUPTION_ERROR_CODE)
			rule_value(row->name, "error code", row->error_code, vmread((enum field)EXIT_INTERRUPTION_ERROR_CODE));
	}
	if (row->checks & CHECK_VECTORING) {
		if (row->vectoring & INTERRUPTION_ERROR_CODE)
			rule_value(row->name, "vectoring error code", row->error_code, vmread(IDT_VECTORING_ERROR_CODE));
		rule_value(row->name, "vectoring information", row->vectoring, vmread(IDT_VECTORING_INFORMATION));
	} else {
		rule_value(row->name, "vectoring valid", 0, vmread(IDT_VECTORING_INFORMATION) & INTERRUPTION_VALID);
	}
	rule_value(row->name, "interruptibility", row->interruptibility, vmread(GUEST_INTERRUPTIBILITY));
	rule_value(row->name, "injection consumed", 0, vmread(ENTRY_INTERRUPTION_INFORMATION) & INTERRUPTION_VALID);
	if (row->injection)
		compare_injected_frame(row);
}

void exit_rules(void)
{
	for (unsigned i = 0; i < exit_rule_count; i++) {
		const struct exit_rule *row = &exit_rule_table[i];
		struct registers registers = {
			.r[RAX] = START_RAX, .r[RCX] = START_RCX, .r[RDX] = START_RDX,
			.r[RBX] = SCRATCH, .r[RSI] = SCRATCH, .r[RDI] = SCRATCH,
		};

		if (!rule_wanted(row->name))
			continue;
		if (!possible(row)) {
			rule_skipped(row->name);
			continue;
		}
		prepare(row);
		if (vmx_enter(&registers, false))
			rule(row->name, ENTERED(row->reason), FAIL_VALID(vmread(VM_INSTRUCTION_ERROR)));
		else
			compare(row);
	}
}
