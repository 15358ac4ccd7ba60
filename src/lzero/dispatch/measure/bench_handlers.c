/*
 * Handlers of the benchmark: one function per name, in a translation unit of their own, so no compiler can fold them into a
 * dispatcher.  Each does the bookkeeping that nearly every real handler shares: counts the exit, looks for a pending
 * request, reads and marks cached registers, checks and stores a value the guest passed in two of them, moves the guest's RIP
 * past the instruction.  All do the same amount of work, so the difference between two dispatchers is the dispatch.
 */
#include "bench.h"

#define noinline __attribute__((noinline))

static noinline int serve_request(struct kvm_vcpu *vcpu)
{
	vcpu->request = 0;
	return 0;
}

static noinline int skip_instruction(struct kvm_vcpu *vcpu)
{
	vcpu->rip += vcpu->instruction_length;
	vcpu->registers_dirty |= 1u << 16;
	if (__builtin_expect(vcpu->interruptibility != 0, 0))
		vcpu->interruptibility &= ~3u;
	return 1;
}

static noinline int store_value(struct kvm_vcpu *vcpu, unsigned int slot)
{
	uint64_t value = (uint32_t)vcpu->general[0] | vcpu->general[2] << 32;
	uint32_t index = (uint32_t)vcpu->general[1];

	if (__builtin_expect((value & vcpu->reserved_bits) != 0, 0))
		return 0;
	if (vcpu->stored[slot] != value + index)
		vcpu->stored[slot] = value + index;
	vcpu->general[1] = index + 1;
	return 1;
}

#define HANDLER(name, number)                                                  \
	int name(struct kvm_vcpu *vcpu);                                       \
	int name(struct kvm_vcpu *vcpu)                                        \
	{                                                                      \
		vcpu->exits[number]++;                                         \
		if (__builtin_expect(vcpu->request != 0, 0))                   \
			return serve_request(vcpu);                            \
		vcpu->registers_known |= 1ull << ((number) & 31);              \
		if (__builtin_expect(!store_value(vcpu, (number) & 15), 0))    \
			return 0;                                              \
		return skip_instruction(vcpu);                                 \
	}
#include "handlers.h"
