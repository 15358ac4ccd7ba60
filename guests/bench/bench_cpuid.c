/* CPUID in a loop: the cheapest instruction that always exits.  Options: count=N. */
#include "bench.h"

int guest_main(void)
{
	uint64_t count = option_value("count", 100000);
	uint64_t left = count;
	uint64_t start = rdtsc();

	asm volatile("1: xorl %%eax, %%eax; xorl %%ecx, %%ecx; cpuid; decq %0; jnz 1b"
		     : "+S"(left) : : "rax", "rbx", "rcx", "rdx", "cc");
	return report("cpuid", count, rdtsc() - start);
}
