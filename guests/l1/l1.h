/* The hypervisor's one guest. */
#ifndef L1_H
#define L1_H

#include "ept.h"
#include "guest.h"
#include "vmx.h"

#define TIMER_VECTOR 0x40   /* where L1 takes its APIC timer's interrupt */

struct guest;

struct workload {
	const char *name;
	const char *entry;                       /* guest code; NULL for the real-mode guest */
	uint64_t iterations;                     /* unless count= says otherwise */
	bool (*correct)(const struct guest *guest);
	uint32_t pin_based, proc_based, exceptions;   /* besides what every guest gets */
	bool timer;                              /* L1's APIC timer runs meanwhile */
	bool only_if_named;
	void (*natively)(uint64_t unused, uint64_t iterations);   /* the same work in L1, if there is such a thing */
};

struct guest {
	struct registers registers;
	const struct workload *workload;
	uint64_t iterations;
	bool done;
	uint64_t result;                         /* RBX of the last VMCALL */
	uint64_t exits[EXIT_REASONS];
	bool timer_pending;                      /* an interrupt waits for the guest to be ready */
	uint32_t echo;                           /* last value written to PORT_ECHO_OUT */
	uint64_t shadow_msr;
	uint32_t device[2];                      /* the registers at DEVICE_ABSENT and DEVICE_MISCONFIG */
};

extern const struct workload workloads[];
extern const unsigned workload_count;

/* vmcs.c */
bool vmcs_possible(const struct workload *workload);   /* does this processor have the controls? */
void vmcs_fill(const struct workload *workload, uint64_t host_rip);
void vmcs_set_proc_based(uint32_t set, uint32_t clear);

/* exits.c */
void exit_dispatch(struct guest *guest);
void deliver_timer(struct guest *guest);

#endif
