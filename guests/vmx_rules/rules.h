/* One rule: what a VMX instruction or a VM entry must come to. */
#ifndef RULES_H
#define RULES_H

#include "l1.h"

/* An outcome in one number, so that it can stand in a table. */
#define SUCCEED           0x0000ull
#define FAIL_INVALID      0x1000ull                 /* VMfailInvalid: CF */
#define FAIL_VALID(error) (0x2000ull | (error))     /* VMfailValid: ZF and the VM-instruction error */
#define FAULT(vector)     (0x3000ull | (vector))
#define ENTERED(reason)   (0x4000ull | (reason))    /* the guest ran until this exit */
#define ENTRY_FAILED(reason, qualification) (0x5000ull | (reason) | (uint64_t)(qualification) << 16)
#define KIND(outcome)     ((outcome) & 0xf000)
#define DETAIL(outcome)   ((outcome) & 0xfff)

enum { UD = 6, SS = 12, GP = 13, PF = 14 };

/* rules.c */
void rule(const char *name, uint64_t expected, uint64_t got);
void rule_value(const char *name, const char *what, uint64_t expected, uint64_t got);
void rule_skipped(const char *name);
bool rule_wanted(const char *name);     /* by the options skip= and only= */
uint64_t outcome_of(uint64_t flags);    /* of the instruction that attempt() ran */
extern volatile int fault_vector;

void instruction_rules(void);           /* instructions.c */
void entry_rules(void);                 /* entries.c */
void exit_rules(void);                  /* exits.c */

/* Run one instruction whatever it raises; a fault continues after it. */
#define attempt(instruction, ...)                                              \
	({                                                                     \
		uint64_t flags_;                                               \
		fault_vector = -1;                                             \
		asm volatile("leaq 1f(%%rip), %%rbx\n\t" instruction           \
			     "\n1:\tpushfq\n\tpopq %0"                         \
			     : "=&r"(flags_) : __VA_ARGS__ : "rax", "rbx", "rdx", "cc", "memory"); \
		outcome_of(flags_);                                            \
	})

#endif
