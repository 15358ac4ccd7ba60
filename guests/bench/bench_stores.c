/* Stores, push and pop: what an engine that watches code pages makes slow.
 * The stack and the buffer lie in the same 2 MiB page as the code.  Options: count=N.
 */
#include "bench.h"

static uint64_t buffer[512] __attribute__((aligned(4096)));

int guest_main(void)
{
	uint64_t count = option_value("count", 5000000);
	uint64_t left = count;
	uint64_t start = rdtsc();

	asm volatile(
		".globl bench_loop_start, bench_loop_end\n"
		"bench_loop_start:\n"
		"1: movq %0, (%1)\n"
		"   movq %0, 256(%1)\n"
		"   movl %%eax, 512(%1)\n"
		"   movb %%al, 1024(%1)\n"
		"   pushq %0\n"
		"   pushq %%rax\n"
		"   popq %%rax\n"
		"   popq %%rcx\n"
		"   decq %0\n"
		"   jnz 1b\n"
		"bench_loop_end:\n"
		: "+S"(left) : "b"(buffer) : "rax", "rcx", "cc", "memory");
	return report("stores", count, rdtsc() - start);
}
