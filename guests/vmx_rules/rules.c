/* vmx_rules: the manual's rules for VMX instructions, VM entries and VM exits.
 *
 * Prints "rule NAME ok", or what was expected and what came.  Options: verbose
 * prints the right ones too; skip=NAME[,NAME…] leaves rules out (Bochs stops at
 * some); only=NAME[,NAME…] takes only these of the entries and exits.  Debug-exit value: 0 if all were right, 1 if not.
 */
#include "rules.h"

volatile int fault_vector;
static unsigned right, wrong, skipped;
static bool verbose;

static void on_fault(struct trap_frame *frame)
{
	fault_vector = (int)frame->vector;
	frame->rip = frame->rbx;
}

uint64_t outcome_of(uint64_t flags)
{
	if (fault_vector >= 0)
		return FAULT((unsigned)fault_vector);
	if (flags & 1)
		return FAIL_INVALID;
	if (flags & 0x40)
		return FAIL_VALID(vmread(VM_INSTRUCTION_ERROR));
	return SUCCEED;
}

static void print_outcome(uint64_t outcome)
{
	switch (KIND(outcome)) {
	case SUCCEED:
		print("VMsucceed");
		break;
	case FAIL_INVALID:
		print("VMfailInvalid");
		break;
	case KIND(FAIL_VALID(0)):
		print("VMfail %lu", DETAIL(outcome));
		break;
	case KIND(FAULT(0)):
		print("vector %lu", DETAIL(outcome));
		break;
	case KIND(ENTERED(0)):
		print("exit %lu", DETAIL(outcome));
		break;
	default:
		print("entry failure %lu, qualification %lu", DETAIL(outcome), outcome >> 16);
	}
}

void rule(const char *name, uint64_t expected, uint64_t got)
{
	if (expected == got) {
		right++;
		if (verbose)
			print("rule %s ok\n", name);
		return;
	}
	wrong++;
	print("rule %s WRONG: expected ", name);
	print_outcome(expected);
	print(", got ");
	print_outcome(got);
	print("\n");
}

void rule_value(const char *name, const char *what, uint64_t expected, uint64_t got)
{
	if (expected == got) {
		right++;
		if (verbose)
			print("rule %s %s ok\n", name, what);
		return;
	}
	wrong++;
	print("rule %s WRONG: expected %s 0x%lx, got 0x%lx\n", name, what, expected, got);
}

void rule_skipped(const char *name)
{
	skipped++;
	print("rule %s skipped\n", name);
}

bool rule_wanted(const char *name)
{
	if (list_has(option_text("skip"), name)) {
		rule_skipped(name);
		return false;
	}
	return !option_text("only") || list_has(option_text("only"), name);
}

int guest_main(void)
{
	static const uint8_t caught[] = { UD, SS, GP, PF };

	verbose = option("verbose");
	if (!(cpuid(1, 0).ecx & 1u << 5)) {
		print("rules: this processor has no VMX\n");
		return 3;
	}
	for (unsigned i = 0; i < sizeof caught; i++)
		set_trap_handler(caught[i], on_fault);
	pic_init(0x20);
	instruction_rules();
	vmx_on();
	ept_init();
	entry_rules();
	exit_rules();
	vmx_off();
	print("rules: %u right, %u wrong, %u skipped\n", right, wrong, skipped);
	return wrong || !right ? 1 : 0;
}
