/* Benchmark: L2 CPUID, L1 with a handler of two VMREADs and one VMWRITE, L2.
 *
 * Options: count=N.
 */
#include "l1.h"

extern const char roundtrip_exit[], roundtrip_guest[];

int guest_main(void)
{
	static struct registers registers;
	const struct workload workload = { .name = "roundtrip", .entry = roundtrip_guest };
	uint64_t count = option_value("count", 10000);
	uint64_t tsc;

	if (!(cpuid(1, 0).ecx & 1u << 5)) {
		print("roundtrip: this processor has no VMX\n");
		return 3;
	}
	pic_init(0x20);
	vmx_on();
	ept_init();
	vmcs_make_current();
	vmcs_fill(&workload, (uint64_t)roundtrip_exit);
	registers.r[RDI] = count;
	tsc = rdtsc();
	if (vmx_enter(&registers, false))
		vmx_failed("vmlaunch", 0);
	tsc = rdtsc() - tsc;
	if ((uint32_t)vmread(EXIT_REASON) != EXIT_VMCALL || registers.r[RDI] != 0)
		panic("the guest did not reach its end");
	vmx_off();
	print("bench roundtrip iterations=%lu tsc=%lu\n", count, tsc);
	return 0;
}
