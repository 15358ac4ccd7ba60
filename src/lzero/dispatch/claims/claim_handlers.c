/*
 * Handlers for claim C5, which asks what inlining them changes: the same bodies, once as functions of another translation
 * unit (LINKAGE empty) and once in the dispatcher's own, where the compiler must put them into their callers.  handlers.h
 * lists them.
 */
#include "bench.h"

#ifndef LINKAGE
#define LINKAGE
#endif

#define HANDLER(name, number)                                                  \
	LINKAGE int name(struct kvm_vcpu *vcpu);                               \
	LINKAGE int name(struct kvm_vcpu *vcpu)                                \
	{                                                                      \
		uint64_t value = vcpu->general[(number) & 15];                 \
                                                                               \
		vcpu->exits[number]++;                                         \
		vcpu->registers_known |= 1ull << ((number) & 31);              \
		if (__builtin_expect((value & vcpu->reserved_bits) != 0, 0))   \
			return 0;                                              \
		vcpu->stored[(number) & 15] = value + (number);                \
		vcpu->rip += vcpu->instruction_length;                         \
		vcpu->registers_dirty |= 1u << 16;                             \
		return 1;                                                      \
	}
#include "handlers.h"
