/* Loads and adds over a buffer.  Options: count=N passes over it, kib=N its size. */
#include "bench.h"

#define MAX_KIB 4096

static uint64_t buffer[MAX_KIB * 1024 / 8] __attribute__((aligned(4096)));

int guest_main(void)
{
	uint64_t count = option_value("count", 1000);
	uint64_t kib = option_value("kib", 256);
	uint64_t left = count, sum = 0, tsc;
	uint64_t *end = buffer + kib * 1024 / 8;

	if (kib == 0 || kib > MAX_KIB)
		panic("kib must be 1 to 4096");
	tsc = rdtsc();
	asm volatile(
		".globl bench_loop_start, bench_loop_end\n"
		"bench_loop_start:\n"
		"1: movq %2, %%rdi\n"
		"2: addq (%%rdi), %1\n"
		"   addq 8(%%rdi), %1\n"
		"   addq 16(%%rdi), %1\n"
		"   addq 24(%%rdi), %1\n"
		"   addq $32, %%rdi\n"
		"   cmpq %3, %%rdi\n"
		"   jb 2b\n"
		"   decq %0\n"
		"   jnz 1b\n"
		"bench_loop_end:\n"
		: "+S"(left), "+a"(sum) : "b"(buffer), "d"(end) : "rdi", "cc", "memory");
	tsc = rdtsc() - tsc;
	if (sum)
		panic("a zeroed buffer did not sum to zero");
	return report("memory", count * kib * 128, tsc);
}
