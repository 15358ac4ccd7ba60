/* The smallest guest worth watching: it touches what a kernel touches while it
 * boots, so that one run shows the exits of one level.
 *
 * Options: ticks=N (of each timer, 5), exit=N (debug-exit value, 0).
 */
#include "runtime.h"

#define PIC_VECTOR   0x20
#define TIMER_VECTOR 0x40
#define UNMAPPED     0x1234567000ull   /* above the 4 GiB that boot.S maps */

enum { DIVIDE_ERROR = 0, BREAKPOINT = 3, INVALID_OPCODE = 6, GENERAL_PROTECTION = 13, PAGE_FAULT = 14 };

#define MSR_APIC_BASE      0x1b
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_UNKNOWN        0x12345678

static volatile unsigned pit_ticks, apic_ticks, faults;
static volatile uint64_t last_error_code;

static void on_pit(struct trap_frame *frame)
{
	(void)frame;
	pit_ticks++;
	pic_end_of_interrupt(0);
}

static void on_apic_timer(struct trap_frame *frame)
{
	(void)frame;
	apic_ticks++;
	lapic_end_of_interrupt();
}

/* Every faulting instruction below leaves the address to continue at in RBX. */
static void on_fault(struct trap_frame *frame)
{
	faults++;
	last_error_code = frame->error_code;
	if (frame->vector != BREAKPOINT)
		frame->rip = frame->rbx;
}

static void show_processor(void)
{
	struct cpuid r = cpuid(0, 0);
	char vendor[13] = { 0 };
	unsigned highest = r.eax;

	memcpy(vendor, &r.ebx, 4);
	memcpy(vendor + 4, &r.edx, 4);
	memcpy(vendor + 8, &r.ecx, 4);
	r = cpuid(1, 0);
	print("cpuid: vendor %s, highest leaf 0x%x, signature 0x%x, vmx %u, hypervisor %u\n",
	      vendor, highest, r.eax, r.ecx >> 5 & 1, r.ecx >> 31);
}

static void show_msrs(void)
{
	uint64_t read_back;

	wrmsr(MSR_KERNEL_GS_BASE, 0xffff800000001000);
	read_back = rdmsr(MSR_KERNEL_GS_BASE);
	wrmsr(MSR_KERNEL_GS_BASE, 0);
	print("msr: apic base 0x%lx, efer 0x%lx, kernel gs base reads back 0x%lx\n",
	      rdmsr(MSR_APIC_BASE), rdmsr(MSR_EFER), read_back);
	faults = 0;
	asm volatile("leaq 1f(%%rip), %%rbx; rdmsr; 1:" : : "c"(MSR_UNKNOWN) : "rax", "rbx", "rdx", "memory");
	print("msr: unknown 0x%x %s\n", MSR_UNKNOWN, faults ? "raises #GP" : "is readable");
}

static void show_exceptions(void)
{
	faults = 0;
	asm volatile("int3" : : : "memory");
	asm volatile("leaq 1f(%%rip), %%rbx; ud2; 1:" : : : "rbx", "memory");
	asm volatile("leaq 1f(%%rip), %%rbx; xorl %%ecx, %%ecx; divl %%ecx; 1:" : : : "rax", "rbx", "rcx", "rdx", "memory");
	asm volatile("leaq 1f(%%rip), %%rbx; movb $1, (%0); 1:" : : "r"(UNMAPPED) : "rbx", "memory");
	print("exceptions: %u taken (4 expected), #PF error code 0x%lx, cr2 0x%lx\n",
	      faults, last_error_code, read_cr2());
}

static void show_timers(unsigned wanted)
{
	pic_init(PIC_VECTOR);
	pit_periodic(100);
	pic_unmask(0);
	while (pit_ticks < wanted)
		wait_for_interrupt();
	pic_init(PIC_VECTOR);   /* masks every line again */
	print("pit: %u ticks at 100 Hz\n", pit_ticks);

	lapic_init();
	lapic_timer_periodic(TIMER_VECTOR, 100000);
	while (apic_ticks < wanted)
		wait_for_interrupt();
	lapic_timer_stop();
	print("apic timer: %u ticks\n", apic_ticks);
}

int guest_main(void)
{
	static const uint8_t expected[] = { DIVIDE_ERROR, BREAKPOINT, INVALID_OPCODE, GENERAL_PROTECTION, PAGE_FAULT };
	unsigned ticks = (unsigned)option_value("ticks", 5);

	for (unsigned i = 0; i < sizeof expected; i++)
		set_trap_handler(expected[i], on_fault);
	set_trap_handler(PIC_VECTOR, on_pit);
	set_trap_handler(TIMER_VECTOR, on_apic_timer);

	print("hello: 64-bit, %u KiB above 1 MiB\n", memory_kib_above_1m);
	show_processor();
	show_msrs();
	show_exceptions();
	outb(0x70, 0x0b);
	print("rtc: register B 0x%02x\n", inb(0x71));
	show_timers(ticks);
	print("hello: done\n");
	return (int)option_value("exit", 0);
}
