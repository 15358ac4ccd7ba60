/* The instructions themselves (SDM vol. 3, chapter 31), in the order of a life:
 * outside VMX operation, entering it, without a current VMCS, with one, leaving.
 */
#include "rules.h"

#define CANONICAL_NOT   0x8000000000000000ull
#define UNMAPPED        UNMAPPED_LINEAR
#define ABSENT_FIELD    0x0ffeull        /* no processor has this encoding */
#define MISALIGNED      0x800ull
#define BEYOND_MEMORY   (1ull << 52)     /* more than any processor's physical-address width */
#define IO_BITMAP_A_HIGH (IO_BITMAP_A + 1)
#define MISC_WRITE_ANY  (1ull << 29)     /* IA32_VMX_MISC: VMWRITE takes exit-information fields */
#define IA32_VMX_MISC   0x485
#define VPID_CAP_INVVPID (1ull << 32)

struct page {
	uint32_t revision;
	uint8_t rest[4092];
} __attribute__((aligned(4096)));

static struct page vmxon_page, page_a, page_b, foreign;

static uint64_t vmxon(uint64_t address)
{
	return attempt("vmxon %1", "m"(address));
}

static uint64_t vmclear(uint64_t address)
{
	return attempt("vmclear %1", "m"(address));
}

static uint64_t vmptrld(uint64_t address)
{
	return attempt("vmptrld %1", "m"(address));
}

static uint64_t try_vmread(uint64_t field)
{
	return attempt("vmread %1, %%rax", "r"(field));
}

static uint64_t try_vmwrite(uint64_t field, uint64_t value)
{
	return attempt("vmwrite %1, %2", "r"(value), "r"(field));
}

static uint64_t invept(uint64_t type, uint64_t eptp)
{
	uint64_t descriptor[2] = { eptp, 0 };

	return attempt("invept %1, %2", "m"(descriptor), "r"(type));
}

static uint64_t invvpid(uint64_t type, uint64_t vpid, uint64_t linear)
{
	uint64_t descriptor[2] = { vpid, linear };

	return attempt("invvpid %1, %2", "m"(descriptor), "r"(type));
}

static uint64_t current_vmcs(void)
{
	uint64_t address = 0;

	asm volatile("vmptrst %0" : "=m"(address) : : "memory");
	return address;
}

/* The rule holds if the condition does. */
static void holds(const char *name, bool condition)
{
	rule(name, 1, condition);
}

static void outside_vmx_operation(void)
{
	uint64_t a = (uint64_t)&page_a;

	rule("outside.vmxon_without_cr4_vmxe", FAULT(UD), vmxon(a));
	rule("outside.vmxoff", FAULT(UD), attempt("vmxoff", "i"(0)));
	rule("outside.vmclear", FAULT(UD), vmclear(a));
	rule("outside.vmptrld", FAULT(UD), vmptrld(a));
	rule("outside.vmptrst", FAULT(UD), attempt("vmptrst %1", "m"(a)));
	rule("outside.vmread", FAULT(UD), try_vmread(EXIT_REASON));
	rule("outside.vmwrite", FAULT(UD), try_vmwrite(GUEST_RIP, 0));
	rule("outside.vmlaunch", FAULT(UD), attempt("vmlaunch", "i"(0)));
	rule("outside.vmresume", FAULT(UD), attempt("vmresume", "i"(0)));
	rule("outside.vmcall", FAULT(UD), attempt("vmcall", "i"(0)));
	rule("outside.invept", FAULT(UD), invept(2, 0));
	rule("outside.invvpid", FAULT(UD), invvpid(2, 0, 0));
}

static void entering(uint32_t revision)
{
	uint64_t feature_control = rdmsr(IA32_FEATURE_CONTROL);
	uint64_t good = (uint64_t)&vmxon_page;
	uint64_t cr0 = fix_cr0(read_cr0());

	if (!(feature_control & FEATURE_CONTROL_LOCK)) {
		write_cr4(fix_cr4(read_cr4() | CR4_VMXE));
		rule("vmxon.feature_control_unlocked", FAULT(GP), vmxon(good));
		wrmsr(IA32_FEATURE_CONTROL, feature_control | FEATURE_CONTROL_LOCK | FEATURE_CONTROL_OUTSIDE_SMX);
	} else {
		rule_skipped("vmxon.feature_control_unlocked");
	}
	rule("feature_control.locked", FAULT(GP), attempt("xorl %%eax, %%eax; xorl %%edx, %%edx; wrmsr", "c"(IA32_FEATURE_CONTROL)));

	write_cr4(fix_cr4(read_cr4() | CR4_VMXE));
	write_cr0(cr0 & ~(uint64_t)CR0_NE);
	rule("vmxon.cr0_not_fixed", FAULT(GP), vmxon(good));
	write_cr0(cr0);
	rule("vmxon.operand_not_canonical", FAULT(GP), attempt("vmxon (%1)", "r"(CANONICAL_NOT)));
	rule("vmxon.operand_not_mapped", FAULT(PF), attempt("vmxon (%1)", "r"(UNMAPPED)));
	rule("vmxon.misaligned", FAIL_INVALID, vmxon(good + MISALIGNED));
	rule("vmxon.beyond_memory", FAIL_INVALID, vmxon(good | BEYOND_MEMORY));
	vmxon_page.revision = revision ^ 1;
	rule("vmxon.revision", FAIL_INVALID, vmxon(good));
	vmxon_page.revision = revision | 1u << 31;
	rule("vmxon.shadow_indicator", FAIL_INVALID, vmxon(good));
	vmxon_page.revision = revision;
	rule("vmxon", SUCCEED, vmxon(good));
}

static void without_current_vmcs(void)
{
	holds("no_vmcs.vmptrst", current_vmcs() == ~0ull);
	rule("no_vmcs.vmread", FAIL_INVALID, try_vmread(EXIT_REASON));
	rule("no_vmcs.vmwrite", FAIL_INVALID, try_vmwrite(GUEST_RIP, 0));
	rule("no_vmcs.vmlaunch", FAIL_INVALID, attempt("vmlaunch", "i"(0)));
	rule("no_vmcs.vmresume", FAIL_INVALID, attempt("vmresume", "i"(0)));
	rule("no_vmcs.vmxon", FAIL_INVALID, vmxon((uint64_t)&vmxon_page));
	rule("no_vmcs.vmcall", FAIL_INVALID, attempt("vmcall", "i"(0)));
	rule("no_vmcs.vmclear_misaligned", FAIL_INVALID, vmclear((uint64_t)&page_a + MISALIGNED));
	rule("no_vmcs.vmclear_vmxon_pointer", FAIL_INVALID, vmclear((uint64_t)&vmxon_page));
	rule("no_vmcs.vmptrld_revision", FAIL_INVALID, vmptrld((uint64_t)&foreign));
}

static void in_vmx_operation(void)
{
	rule("vmx_operation.cr4_vmxe_cleared", FAULT(GP), attempt("mov %1, %%cr4", "r"(read_cr4() & ~CR4_VMXE)));
	rule("vmx_operation.cr0_ne_cleared", FAULT(GP),
	     attempt("mov %1, %%cr0", "r"(read_cr0() & ~(uint64_t)CR0_NE)));
	rule("vmx_operation.vmfunc_in_root", FAULT(UD), attempt("xorl %%eax, %%eax; vmfunc", "i"(0)));
}

static void pointers(void)
{
	uint64_t a = (uint64_t)&page_a;

	rule("vmclear", SUCCEED, vmclear(a));
	rule("vmptrld", SUCCEED, vmptrld(a));
	holds("vmptrst", current_vmcs() == a);
	rule("vmclear.misaligned", FAIL_VALID(2), vmclear(a + MISALIGNED));
	rule("vmclear.beyond_memory", FAIL_VALID(2), vmclear(a | BEYOND_MEMORY));
	rule("vmclear.vmxon_pointer", FAIL_VALID(3), vmclear((uint64_t)&vmxon_page));
	rule("vmclear.operand_not_canonical", FAULT(GP), attempt("vmclear (%1)", "r"(CANONICAL_NOT)));
	rule("vmptrld.misaligned", FAIL_VALID(9), vmptrld(a + MISALIGNED));
	rule("vmptrld.beyond_memory", FAIL_VALID(9), vmptrld(a | BEYOND_MEMORY));
	rule("vmptrld.vmxon_pointer", FAIL_VALID(10), vmptrld((uint64_t)&vmxon_page));
	rule("vmptrld.revision", FAIL_VALID(11), vmptrld((uint64_t)&foreign));
	rule("vmptrld.operand_not_mapped", FAULT(PF), attempt("vmptrld (%1)", "r"(UNMAPPED)));
	rule("vmptrst.operand_not_mapped", FAULT(PF), attempt("vmptrst (%1)", "r"(UNMAPPED)));
	holds("vmptrld.failure_keeps_current", current_vmcs() == a);
	rule("vmxon.in_root_operation", FAIL_VALID(15), vmxon((uint64_t)&vmxon_page));
	if (rule_wanted("vmcall.in_root_operation"))
		rule("vmcall.in_root_operation", FAIL_VALID(1), attempt("vmcall", "i"(0)));
}

static void fields(void)
{
	volatile uint64_t memory = 0;

	rule("vmread.absent", FAIL_VALID(12), try_vmread(ABSENT_FIELD));
	rule("vmread.encoding_above_32_bits", FAIL_VALID(12), try_vmread(1ull << 32 | GUEST_RIP));
	rule("vmwrite.absent", FAIL_VALID(12), try_vmwrite(ABSENT_FIELD, 0));
	rule("vmwrite.read_only", rdmsr(IA32_VMX_MISC) & MISC_WRITE_ANY ? SUCCEED : FAIL_VALID(13),
	     try_vmwrite(EXIT_QUALIFICATION, 0));
	rule("vmread.success_clears_error_flags", SUCCEED, try_vmread(GUEST_RIP));

	vmwrite(GUEST_RIP, 0x123456789abcdef0);
	holds("vmwrite.natural_width", vmread(GUEST_RIP) == 0x123456789abcdef0);
	vmwrite(EXCEPTION_BITMAP, 0x1122334455667788);
	holds("vmwrite.32_bits_drop_the_rest", vmread(EXCEPTION_BITMAP) == 0x55667788);
	vmwrite(GUEST_ES_SELECTOR, 0xfffff1f0);
	holds("vmwrite.16_bits_drop_the_rest", vmread(GUEST_ES_SELECTOR) == 0xf1f0);
	vmwrite(IO_BITMAP_A, 0x1111222233334000);
	holds("vmread.high_half", vmread((enum field)IO_BITMAP_A_HIGH) == 0x11112222);
	vmwrite((enum field)IO_BITMAP_A_HIGH, 0xaaaaaaaa55556666);
	holds("vmwrite.high_half", vmread(IO_BITMAP_A) == 0x5555666633334000);
	rule("vmread.to_memory", SUCCEED, attempt("vmread %2, (%1)", "r"(&memory), "r"((uint64_t)GUEST_RIP)));
	holds("vmread.memory_value", memory == 0x123456789abcdef0);
	rule("vmread.operand_not_mapped", FAULT(PF), attempt("vmread %2, (%1)", "r"(UNMAPPED), "r"((uint64_t)GUEST_RIP)));
	rule("vmwrite.operand_not_canonical", FAULT(GP),
	     attempt("vmwrite (%1), %2", "r"(CANONICAL_NOT), "r"((uint64_t)GUEST_RIP)));
}

static void two_vmcss(void)
{
	uint64_t a = (uint64_t)&page_a, b = (uint64_t)&page_b;

	vmwrite(GUEST_RSP, 0xaaaa);
	rule("vmclear.another", SUCCEED, vmclear(b));
	holds("vmclear.another_keeps_current", current_vmcs() == a);
	rule("vmptrld.another", SUCCEED, vmptrld(b));
	vmwrite(GUEST_RSP, 0xbbbb);
	rule("vmptrld.back", SUCCEED, vmptrld(a));
	holds("vmptrld.keeps_fields", vmread(GUEST_RSP) == 0xaaaa);
	rule("vmclear.current", SUCCEED, vmclear(a));
	holds("vmclear.current_leaves_none", current_vmcs() == ~0ull);
	rule("vmptrld.after_vmclear", SUCCEED, vmptrld(a));
	holds("vmclear.keeps_fields", vmread(GUEST_RSP) == 0xaaaa);
}

static void launch_state(void)
{
	rule("vmresume.not_launched", FAIL_VALID(5), attempt("vmresume", "i"(0)));
	rule("vmlaunch.mov_ss_blocking", FAIL_VALID(26),
	     attempt("movl %%ss, %%eax; movl %%eax, %%ss; vmlaunch", "i"(0)));
	vmwrite(PIN_BASED_CONTROLS, 0);
	rule("vmlaunch.controls_zero", FAIL_VALID(7), attempt("vmlaunch", "i"(0)));
}

static void invalidations(void)
{
	uint64_t eptp = ept_pointer();

	rule("invept.type_0", FAIL_VALID(28), invept(0, eptp));
	rule("invept.type_3", FAIL_VALID(28), invept(3, eptp));
	rule("invept.single", SUCCEED, invept(1, eptp));
	rule("invept.single_bad_memory_type", FAIL_VALID(28), invept(1, eptp | 7));
	rule("invept.all", SUCCEED, invept(2, 0));
	rule("invept.operand_not_mapped", FAULT(PF), attempt("invept (%1), %2", "r"(UNMAPPED), "r"(1ull)));
	if (!(rdmsr(IA32_VMX_EPT_VPID_CAP) & VPID_CAP_INVVPID)) {
		rule_skipped("invvpid");
		return;
	}
	rule("invvpid.type_4", FAIL_VALID(28), invvpid(4, 1, 0));
	rule("invvpid.single", SUCCEED, invvpid(1, 1, 0));
	rule("invvpid.single_vpid_0", FAIL_VALID(28), invvpid(1, 0, 0));
	rule("invvpid.reserved", FAIL_VALID(28), invvpid(1, 0x10001, 0));
	rule("invvpid.address", SUCCEED, invvpid(0, 1, 0x1000));
	rule("invvpid.address_not_canonical", FAIL_VALID(28), invvpid(0, 1, CANONICAL_NOT));
	rule("invvpid.all", SUCCEED, invvpid(2, 0, 0));
}

void instruction_rules(void)
{
	uint32_t revision = (uint32_t)rdmsr(IA32_VMX_BASIC) & 0x7fffffff;

	outside_vmx_operation();
	page_a.revision = page_b.revision = revision;
	foreign.revision = revision ^ 1;
	entering(revision);
	in_vmx_operation();
	without_current_vmcs();
	pointers();
	fields();
	two_vmcss();
	launch_state();
	invalidations();
	rule("vmxoff", SUCCEED, attempt("vmxoff", "i"(0)));
	rule("vmxoff.again", FAULT(UD), attempt("vmxoff", "i"(0)));
}
