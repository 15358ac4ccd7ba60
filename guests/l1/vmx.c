/* Into VMX operation and out of it; what the capability MSRs allow. */
#include "vmx.h"

struct region {
	uint32_t revision;
	uint8_t rest[4092];
} __attribute__((aligned(4096)));

static struct region vmxon_region, vmcs_region;

_Noreturn void vmx_failed(const char *instruction, uint64_t operand)
{
	static bool again;   /* reading the error number may fail too */
	uint64_t error = 0;

	if (!again) {
		again = true;
		error = vmread(VM_INSTRUCTION_ERROR);
	}
	print("%s 0x%lx: VM-instruction error %lu\n", instruction, operand, error);
	panic("a VMX instruction failed");
}

/* Bits that must be 1 in FIXED0 and may be 1 in FIXED1 (A.7, A.8). */
uint64_t fix_cr0(uint64_t value)
{
	return (value | rdmsr(IA32_VMX_CR0_FIXED0)) & rdmsr(IA32_VMX_CR0_FIXED1);
}

uint64_t fix_cr4(uint64_t value)
{
	return (value | rdmsr(IA32_VMX_CR4_FIXED0)) & rdmsr(IA32_VMX_CR4_FIXED1);
}

static uint64_t control_capability(enum msr plain, enum msr true_msr)
{
	return rdmsr(rdmsr(IA32_VMX_BASIC) & VMX_BASIC_TRUE_CONTROLS ? true_msr : plain);
}

bool control_allowed(enum msr plain, enum msr true_msr, uint32_t bits)
{
	return (control_capability(plain, true_msr) >> 32 & bits) == bits;
}

/* The low half says which controls must be 1, the high half which may be 1 (A.3 to A.5). */
uint32_t controls(enum msr plain, enum msr true_msr, uint32_t required, uint32_t optional)
{
	uint64_t capability = control_capability(plain, true_msr);
	uint32_t must = (uint32_t)capability, may = (uint32_t)(capability >> 32);

	if (required & ~may) {
		print("capability MSR 0x%x does not allow 0x%x\n", plain, required & ~may);
		panic("the processor lacks a control");
	}
	return must | required | (optional & may);
}

void vmx_on(void)
{
	uint64_t feature_control = rdmsr(IA32_FEATURE_CONTROL);
	uint32_t revision = (uint32_t)rdmsr(IA32_VMX_BASIC) & 0x7fffffff;
	uint64_t address = (uint64_t)&vmxon_region;
	bool failed;

	if (!(feature_control & FEATURE_CONTROL_LOCK))
		wrmsr(IA32_FEATURE_CONTROL, feature_control | FEATURE_CONTROL_LOCK | FEATURE_CONTROL_OUTSIDE_SMX);
	else if (!(feature_control & FEATURE_CONTROL_OUTSIDE_SMX))
		panic("VMX is locked off in IA32_FEATURE_CONTROL");

	write_cr0(fix_cr0(read_cr0()));
	write_cr4(fix_cr4(read_cr4() | CR4_VMXE));
	vmxon_region.revision = revision;
	vmcs_region.revision = revision;
	asm volatile("vmxon %1" : "=@ccbe"(failed) : "m"(address) : "memory");
	if (failed)
		panic("VMXON failed");
}

void vmx_off(void)
{
	bool failed;

	asm volatile("vmxoff" : "=@ccbe"(failed) : : "memory");
	if (failed)
		panic("VMXOFF failed");
	write_cr4(read_cr4() & ~CR4_VMXE);
}

void vmcs_make_current(void)
{
	uint64_t address = (uint64_t)&vmcs_region;
	bool failed;

	asm volatile("vmclear %1" : "=@ccbe"(failed) : "m"(address) : "memory");
	if (failed)
		panic("VMCLEAR failed");
	asm volatile("vmptrld %1" : "=@ccbe"(failed) : "m"(address) : "memory");
	if (failed)
		panic("VMPTRLD failed");
}

void invept_single(uint64_t eptp)
{
	struct {
		uint64_t eptp, reserved;
	} descriptor = { eptp, 0 };
	bool failed;

	asm volatile("invept %1, %2" : "=@ccbe"(failed) : "m"(descriptor), "r"(1ull) : "memory");
	if (failed)
		vmx_failed("invept", eptp);
}
