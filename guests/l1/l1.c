/* l1: a small hypervisor, to be read as an introduction to VMX and to be run
 * where there is an L0 below it.
 *
 *   vmx.c        into VMX operation; what the capability MSRs allow
 *   vmcs.c       filling the VMCS: controls, host state, guest state
 *   ept.c        the guest's physical memory
 *   enter.S      VMLAUNCH and VMRESUME, and where exits arrive
 *   exits.c      what is done about each exit reason
 *   guest.S      the guests; workloads.c says how to tell that one ran right
 *
 * Options: run=NAME[,NAME…] (all that are not for timing), count=N (iterations),
 * where=l1 (the timing loops integer and stores without a guest).
 * Debug-exit value: 0 if every guest ran right, 1 if not.
 */
#include "l1.h"

static struct guest guest;

static void run_guest(const struct workload *workload)
{
	bool launched = false;

	vmcs_make_current();
	vmcs_fill(workload, (uint64_t)vmx_exit);
	if (workload->timer)
		lapic_timer_periodic(TIMER_VECTOR, 20000);
	guest.registers.r[RDI] = guest.iterations;
	while (!guest.done) {
		if (vmx_enter(&guest.registers, launched))
			vmx_failed(launched ? "vmresume" : "vmlaunch", guest.iterations);
		launched = true;
		exit_dispatch(&guest);
	}
	if (workload->timer)
		lapic_timer_stop();
}

enum outcome { CORRECT, WRONG, SKIPPED, OUTCOMES };

static enum outcome run(const struct workload *workload)
{
	uint64_t exits = 0, tsc;
	bool correct = true, in_guest = true;

	memset(&guest, 0, sizeof guest);
	guest.workload = workload;
	guest.iterations = option_value("count", workload->iterations);
	if (list_has(option_text("where"), "l1") && workload->natively)
		in_guest = false;
	else if (!vmcs_possible(workload)) {
		print("l1: %s skipped: the processor lacks a control for it\n", workload->name);
		return SKIPPED;
	}
	tsc = rdtsc();
	if (in_guest) {
		run_guest(workload);
		correct = workload->correct(&guest);
	} else {
		workload->natively(0, guest.iterations);
	}
	tsc = rdtsc() - tsc;
	for (unsigned reason = 0; reason < EXIT_REASONS; reason++)
		exits += guest.exits[reason];
	print("l1: %s %s iterations=%lu exits=%lu tsc=%lu result=%lu\n", workload->name, correct ? "ok" : "WRONG",
	      guest.iterations, exits, tsc, guest.result);
	return correct ? CORRECT : WRONG;
}

int guest_main(void)
{
	unsigned outcomes[OUTCOMES] = { 0 };

	if (!(cpuid(1, 0).ecx & 1u << 5)) {
		print("l1: this processor has no VMX\n");
		return 3;
	}
	pic_init(0x20);   /* all lines masked: only the APIC timer interrupts */
	lapic_init();
	vmx_on();
	ept_init();
	for (unsigned i = 0; i < workload_count; i++) {
		const struct workload *workload = &workloads[i];

		if (option_text("run") ? !list_has(option_text("run"), workload->name) : workload->only_if_named)
			continue;
		outcomes[run(workload)]++;
	}
	vmx_off();
	print("l1: %u right, %u wrong, %u skipped\n", outcomes[CORRECT], outcomes[WRONG], outcomes[SKIPPED]);
	return outcomes[WRONG] || !outcomes[CORRECT] ? 1 : 0;
}
