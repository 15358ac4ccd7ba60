/* What the benchmark's translation units share.  The first member is what the emitted dispatchers know. */
#ifndef LZERO_BENCH_H
#define LZERO_BENCH_H

#include <stdint.h>

struct kvm_vcpu {
	unsigned int exit_reason;
	unsigned int instruction_length;
	unsigned int interruptibility;
	unsigned int request;
	uint64_t rip;
	uint64_t general[16];
	uint64_t reserved_bits;
	uint64_t stored[16];
	uint64_t registers_known;
	uint64_t registers_dirty;
	uint64_t exits[128];
};

#endif
