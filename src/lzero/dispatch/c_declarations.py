"""C text around emitted dispatchers: exit-reason names, types, the barrier, stand-ins for the kernel's names."""

from __future__ import annotations

from lzero.sdm.exit_reasons import EXIT_REASONS

__all__ = [
    "BARRIER",
    "ENTRY_FAILED",
    "KERNEL_TYPES",
    "NESTED",
    "PARSE",
    "TABLE_HELPERS",
    "TYPES",
    "UNLIKELY",
    "reason_constants",
    "reason_spelling",
]


def reason_spelling(reason: int) -> str:
    """C spelling of a reason: the kernel's macro where it has one, else the number."""
    row = EXIT_REASONS.get(reason)
    return row.kvm_macro if row is not None and row.kvm_macro else str(reason)


def reason_constants() -> str:
    """``#define`` lines for every exit reason the kernel names."""
    rows = [row for _, row in sorted(EXIT_REASONS.items()) if row.kvm_macro]
    width = max(len(row.kvm_macro or "") for row in rows)
    return "".join(f"#define {row.kvm_macro:<{width}} {row.number}\n" for row in rows)


TYPES = """\
#include <stdbool.h>

#define noinline __attribute__((noinline))

struct kvm_vcpu {
	unsigned int exit_reason;	/* the field as the VMCS has it, all 32 bits */
};
"""

NESTED = """\
/* Whether VMX is offered to guests; set before the first exit. */
extern bool nested;
"""

BARRIER = """\
/* The optimiser must take the value for unknown from here on, so it cannot merge or reorder what tests it. */
#define LZERO_HIDE_VALUE(value) __asm__("" : "+r"(value))
"""

UNLIKELY = """\
#define unlikely(condition) __builtin_expect(!!(condition), 0)
"""

TABLE_HELPERS = """\
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

/* Zero, also under misspeculation, unless index < size: what a bounds check alone does not give (Spectre v1). */
static inline unsigned int lzero_index_nospec(unsigned long index, unsigned long size)
{
	unsigned long mask;

	__asm__ volatile("cmp %[size], %[index]\\n\\tsbb %[mask], %[mask]"
		: [mask] "=&r"(mask) : [index] "r"(index), [size] "r"(size) : "cc");
	return (unsigned int)(index & mask);
}
"""

PARSE = """\
__attribute__((unused)) static inline unsigned int basic_exit_reason(const struct kvm_vcpu *vcpu)
{
	return vcpu->exit_reason & 0xffff;
}
"""

ENTRY_FAILED = """\
__attribute__((unused)) static inline bool entry_failed(const struct kvm_vcpu *vcpu)
{
	return vcpu->exit_reason >> 31;
}
"""

KERNEL_TYPES = """\
#include <stdbool.h>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define noinline __attribute__((__noinline__))
#define unlikely(condition) __builtin_expect(!!(condition), 0)
#define OPTIMIZER_HIDE_VAR(var) __asm__("" : "+r"(var))
#define array_index_nospec lzero_index_nospec

union vmx_exit_reason {
	struct {
		u32 basic		: 16;
		u32 reserved		: 15;
		u32 failed_vmentry	: 1;
	};
	u32 full;
};

struct kvm_vcpu {
	union vmx_exit_reason exit_reason;
};

extern bool nested;
void dump_vmcs(struct kvm_vcpu *vcpu);
void kvm_prepare_unexpected_reason_exit(struct kvm_vcpu *vcpu, u64 exit_reason);

__attribute__((unused)) static inline union vmx_exit_reason vmx_get_exit_reason(struct kvm_vcpu *vcpu)
{
	return vcpu->exit_reason;
}
"""
