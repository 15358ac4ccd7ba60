/* Rows of the exit rules: guest code, the controls it runs under, and what the first exit must report. */
#ifndef EXITS_H
#define EXITS_H

#include "rules.h"

/* What a row checks besides reason and RIP. */
#define CHECK_LENGTH        (1 << 0)
#define CHECK_INFORMATION   (1 << 1)   /* instruction information, under the row's mask */
#define CHECK_LINEAR        (1 << 2)
#define CHECK_PHYSICAL      (1 << 3)
#define CHECK_EVENT         (1 << 4)   /* VM-exit interruption information and error code */
#define CHECK_VECTORING     (1 << 5)
#define CHECK_NO_QUALIFICATION (1 << 6)   /* undefined for this exit */

struct exit_rule {
	const char *name;
	const char *code, *at;          /* where the guest starts, and where the exit must find it */
	uint32_t reason;
	uint64_t qualification;
	uint32_t checks;
	uint32_t length;
	uint32_t information, mask;
	uint64_t linear, physical;
	uint32_t event, error_code;
	uint32_t vectoring;
	uint32_t interruptibility;
	uint32_t pin, proc, proc2, exceptions;
	uint64_t cr0_shadow;            /* CR0.TS is owned by L1 */
	uint64_t cr4_mask;
	uint64_t injection;             /* VM-entry interruption information */
	uint32_t injection_length, injection_error;
	uint64_t guest_cr3;             /* 0: L1's own */
	uint64_t rflags;                /* besides the fixed bit */
	uint32_t cpuid_leaf, cpuid_ecx, cpuid_ebx;   /* bits that must be there, or the row is skipped */
};

/* The registers every row starts with. */
extern uint8_t exit_scratch[4096];
#define START_RAX 0x1230ull
#define START_RCX 0x10ull
#define START_RDX 0xe4ull
#define SCRATCH   ((uint64_t)exit_scratch)      /* RBX, RSI, RDI */

extern const struct exit_rule exit_rule_table[];
extern const unsigned exit_rule_count;

#endif
