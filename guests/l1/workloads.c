/* The guests, and how to tell that one ran right. */
#include "l1.h"

extern const char guest_cpuid[], guest_vmcall[], guest_io[], guest_msr[], guest_ept[], guest_mmio[];
extern const char guest_timer[], guest_hlt[], guest_exceptions[], guest_cr[], guest_preempt[], guest_mtf[];
extern const char guest_integer[], guest_stores[];
void loop_integer(uint64_t unused, uint64_t iterations);
void loop_stores(uint64_t unused, uint64_t iterations);

/* 1 + 2 + … + n: the guests count down and add up. */
static uint64_t sum(uint64_t n)
{
	return n * (n + 1) / 2;
}

static bool cpuid_correct(const struct guest *g)
{
	return g->result == sum(g->iterations) + g->iterations && g->exits[EXIT_CPUID] == g->iterations;
}

static bool vmcall_correct(const struct guest *g)
{
	return g->result == 3 * sum(g->iterations) && g->exits[EXIT_VMCALL] == g->iterations + 1;
}

static bool io_correct(const struct guest *g)
{
	uint64_t bytes = 0;

	for (uint64_t i = 1; i <= g->iterations; i++)
		bytes += (i + 1) & 0xff;
	return g->result == bytes + sum(g->iterations) + g->iterations && g->exits[EXIT_IO] == 4 * g->iterations;
}

/* Per iteration: shadowed write and read, and the read that gets #GP. */
static bool msr_correct(const struct guest *g)
{
	return g->result == 2 * sum(g->iterations) + 2 * g->iterations
	       && g->exits[EXIT_RDMSR] == 2 * g->iterations && g->exits[EXIT_WRMSR] == g->iterations;
}

static bool ept_correct(const struct guest *g)
{
	return g->result == g->iterations && g->exits[EXIT_EPT_VIOLATION] == 2 * g->iterations;
}

static bool mmio_correct(const struct guest *g)
{
	return g->result == 2 * (sum(g->iterations) + g->iterations)
	       && g->exits[EXIT_EPT_VIOLATION] == 2 * g->iterations
	       && g->exits[EXIT_EPT_MISCONFIGURATION] == 2 * g->iterations;
}

static bool timer_correct(const struct guest *g)
{
	return g->result >= g->iterations && g->exits[EXIT_EXTERNAL_INTERRUPT] >= g->iterations;
}

static bool hlt_correct(const struct guest *g)
{
	return g->result >= g->iterations && g->exits[EXIT_HLT] > 0;
}

static bool exceptions_correct(const struct guest *g)
{
	return g->result == g->iterations && g->exits[EXIT_EXCEPTION_OR_NMI] == 2 * g->iterations;
}

/* MOV to CR0 and CLTS exit; the moves to and from CR3 only where they must. */
static bool cr_correct(const struct guest *g)
{
	return g->result == g->iterations && g->exits[EXIT_CR_ACCESS] >= 2 * g->iterations;
}

static bool preempt_correct(const struct guest *g)
{
	return g->result == 0 && g->exits[EXIT_PREEMPTION_TIMER] >= g->iterations;
}

/* One exit after each instruction: two before the loop, two in it, two before the VMCALL. */
static bool mtf_correct(const struct guest *g)
{
	return g->exits[EXIT_MONITOR_TRAP_FLAG] == 2 * g->iterations + 4;
}

static bool real_correct(const struct guest *g)
{
	return g->result == g->iterations && g->exits[EXIT_CPUID] == g->iterations
	       && g->exits[EXIT_IO] == 2 * g->iterations;
}

static bool no_exits(const struct guest *g)
{
	return g->exits[EXIT_VMCALL] == 1;
}

#define ON_INVALID_OPCODE (1u << 6)
#define ON_PAGE_FAULT     (1u << 14)

const struct workload workloads[] = {
	{ .name = "cpuid", .entry = guest_cpuid, .iterations = 500, .correct = cpuid_correct },
	{ .name = "vmcall", .entry = guest_vmcall, .iterations = 200, .correct = vmcall_correct },
	{ .name = "io", .entry = guest_io, .iterations = 100, .correct = io_correct },
	{ .name = "msr", .entry = guest_msr, .iterations = 100, .correct = msr_correct },
	{ .name = "ept", .entry = guest_ept, .iterations = 4096, .correct = ept_correct },
	{ .name = "mmio", .entry = guest_mmio, .iterations = 100, .correct = mmio_correct },
	{ .name = "timer", .entry = guest_timer, .iterations = 50, .correct = timer_correct, .timer = true },
	{ .name = "hlt", .entry = guest_hlt, .iterations = 50, .correct = hlt_correct, .timer = true },
	{ .name = "exceptions", .entry = guest_exceptions, .iterations = 100, .correct = exceptions_correct,
	  .exceptions = ON_INVALID_OPCODE | ON_PAGE_FAULT },
	{ .name = "cr", .entry = guest_cr, .iterations = 100, .correct = cr_correct },
	{ .name = "preempt", .entry = guest_preempt, .iterations = 50, .correct = preempt_correct,
	  .pin_based = ACTIVATE_PREEMPTION_TIMER },
	{ .name = "mtf", .entry = guest_mtf, .iterations = 100, .correct = mtf_correct, .proc_based = MONITOR_TRAP_FLAG },
	{ .name = "real", .iterations = 100, .correct = real_correct },
	{ .name = "integer", .entry = guest_integer, .iterations = 1000000, .correct = no_exits,
	  .natively = loop_integer, .only_if_named = true },
	{ .name = "stores", .entry = guest_stores, .iterations = 1000000, .correct = no_exits,
	  .natively = loop_stores, .only_if_named = true },
};
const unsigned workload_count = sizeof workloads / sizeof workloads[0];
