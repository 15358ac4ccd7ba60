/* Integer arithmetic in registers; nothing exits.  Options: count=N.
 *
 * The loop is in assembly so that the same bytes can run on the bare engine:
 * benchmarks/ copies them out of the image between the two symbols.
 */
#include "bench.h"

int guest_main(void)
{
	uint64_t count = option_value("count", 100000000);
	uint64_t left = count;
	uint64_t start = rdtsc();

	asm volatile(
		".globl bench_loop_start, bench_loop_end\n"
		"bench_loop_start:\n"
		"1: leaq 1(%%rax,%%rbx,2), %%rax\n"
		"   xorq %%rcx, %%rbx\n"
		"   addq %%rax, %%rbx\n"
		"   rolq $7, %%rcx\n"
		"   subq %%rbx, %%rcx\n"
		"   decq %0\n"
		"   jnz 1b\n"
		"bench_loop_end:\n"
		: "+S"(left) : : "rax", "rbx", "rcx", "cc");
	return report("integer", count, rdtsc() - start);
}
