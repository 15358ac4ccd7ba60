/* What the hypervisor does about each exit. */
#include "l1.h"

#define INVALID_OPCODE     6
#define GENERAL_PROTECTION 13
#define PAGE_FAULT         14
#define IA32_LOW(r)        ((r) & 0xffffffff)

extern volatile uint64_t guest_flag;

static _Noreturn void unexpected(const struct guest *guest, const char *what, uint64_t value)
{
	print("%s: %s 0x%lx, qualification 0x%lx, guest rip 0x%lx\n",
	      guest->workload->name, what, value, vmread(EXIT_QUALIFICATION), vmread(GUEST_RIP));
	panic("the guest did something it should not");
}

/* The instruction was carried out for the guest, so what blocked interrupts for
 * its duration only (STI, MOV SS before it) is over as well. */
static void skip(uint64_t length)
{
	uint64_t interruptibility = vmread(GUEST_INTERRUPTIBILITY);

	vmwrite(GUEST_RIP, vmread(GUEST_RIP) + length);
	if (interruptibility & BLOCKING_BY_STI_OR_MOV_SS)
		vmwrite(GUEST_INTERRUPTIBILITY, interruptibility & ~(uint64_t)BLOCKING_BY_STI_OR_MOV_SS);
}

static void skip_instruction(void)
{
	skip(vmread(EXIT_INSTRUCTION_LENGTH));
}

static void inject_exception(unsigned vector, uint32_t error_code)
{
	vmwrite(ENTRY_EXCEPTION_ERROR_CODE, error_code);
	vmwrite(ENTRY_INTERRUPTION_INFORMATION,
		INTERRUPTION_VALID | INTERRUPTION_ERROR_CODE | TYPE_HARDWARE_EXCEPTION << 8 | vector);
}

/* Deliver the timer's interrupt now if the guest can take it; otherwise ask for
 * an exit as soon as it can. */
void deliver_timer(struct guest *guest)
{
	bool busy = vmread(ENTRY_INTERRUPTION_INFORMATION) & INTERRUPTION_VALID;
	bool ready = vmread(GUEST_RFLAGS) & RFLAGS_IF && !(vmread(GUEST_INTERRUPTIBILITY) & BLOCKING_BY_STI_OR_MOV_SS);

	if (busy || !ready) {
		vmcs_set_proc_based(INTERRUPT_WINDOW_EXITING, 0);
		return;
	}
	guest->timer_pending = false;
	vmwrite(ENTRY_INTERRUPTION_INFORMATION, INTERRUPTION_VALID | TYPE_EXTERNAL << 8 | VECTOR_TIMER);
}

/* An exit in the middle of an event's delivery: the event is lost unless the next
 * entry delivers it again (28.2.4). */
static void redeliver(void)
{
	uint32_t event = (uint32_t)vmread(IDT_VECTORING_INFORMATION);

	if (!(event & INTERRUPTION_VALID))
		return;
	if (event & INTERRUPTION_ERROR_CODE)
		vmwrite(ENTRY_EXCEPTION_ERROR_CODE, vmread(IDT_VECTORING_ERROR_CODE));
	if (INTERRUPTION_TYPE(event) == TYPE_SOFTWARE_INTERRUPT || INTERRUPTION_TYPE(event) == TYPE_SOFTWARE_EXCEPTION)
		vmwrite(ENTRY_INSTRUCTION_LENGTH, vmread(EXIT_INSTRUCTION_LENGTH));
	vmwrite(ENTRY_INTERRUPTION_INFORMATION, event & ~(1u << 12));   /* bit 12 is not defined here */
}

static void on_exception(struct guest *guest)
{
	uint32_t event = (uint32_t)vmread(EXIT_INTERRUPTION_INFORMATION);
	unsigned vector = event & 0xff;

	if (vector != INVALID_OPCODE && vector != PAGE_FAULT)
		unexpected(guest, "exception", event);
	if (vector == PAGE_FAULT && vmread(EXIT_QUALIFICATION) != UNMAPPED_LINEAR)
		unexpected(guest, "page fault", event);
	vmwrite(GUEST_RIP, guest->registers.r[RBX]);
}

/* The interrupt was acknowledged by the exit: it is ours to end. */
static void on_external_interrupt(struct guest *guest)
{
	uint32_t event = (uint32_t)vmread(EXIT_INTERRUPTION_INFORMATION);

	if ((event & 0xff) != TIMER_VECTOR)
		unexpected(guest, "external interrupt", event);
	lapic_end_of_interrupt();
	guest->timer_pending = true;
}

static void on_interrupt_window(struct guest *guest)
{
	(void)guest;   /* exit_dispatch() delivers what is pending */
	vmcs_set_proc_based(0, INTERRUPT_WINDOW_EXITING);
}

static void on_cpuid(struct guest *guest)
{
	uint64_t *r = guest->registers.r;

	if ((uint32_t)r[RAX] == LEAF_OWN) {
		r[RAX] = IA32_LOW(r[RCX] + 1);
		r[RBX] = r[RCX] = r[RDX] = 0;
	} else {
		struct cpuid real = cpuid((uint32_t)r[RAX], (uint32_t)r[RCX]);

		r[RAX] = real.eax;
		r[RBX] = real.ebx;
		r[RCX] = real.ecx;
		r[RDX] = real.edx;
	}
	skip_instruction();
}

static volatile bool timer_fired;

static void on_timer_in_l1(struct trap_frame *frame)
{
	(void)frame;
	timer_fired = true;
	lapic_end_of_interrupt();
}

/* The guest is idle, and so are we until the timer fires. */
static void on_hlt(struct guest *guest)
{
	set_trap_handler(TIMER_VECTOR, on_timer_in_l1);
	timer_fired = false;
	while (!guest->timer_pending && !timer_fired)
		wait_for_interrupt();
	guest->timer_pending = true;
	skip_instruction();
}

static void on_vmcall(struct guest *guest)
{
	uint64_t *r = guest->registers.r;

	switch (r[RAX]) {
	case CALL_DONE:
		guest->done = true;
		guest->result = r[RBX];
		return;
	case CALL_PING:
		r[RAX] = 3 * r[RSI];
		break;
	case CALL_DROP_WINDOW:
		ept_drop_window();
		break;
	default:
		unexpected(guest, "VMCALL", r[RAX]);
	}
	skip_instruction();
}

/* Qualification: CR number in 3:0, what was done in 5:4, register in 11:8 (table 28-3). */
static void on_cr_access(struct guest *guest)
{
	uint64_t qualification = vmread(EXIT_QUALIFICATION);
	uint64_t *reg = &guest->registers.r[qualification >> 8 & 15];

	switch (qualification & 0x3f) {
	case 0x00:   /* MOV to CR0 */
		vmwrite(CR0_READ_SHADOW, *reg);
		vmwrite(GUEST_CR0, fix_cr0(*reg & ~CR0_TS));
		break;
	case 0x20:   /* CLTS */
		vmwrite(CR0_READ_SHADOW, vmread(CR0_READ_SHADOW) & ~CR0_TS);
		break;
	case 0x03:   /* MOV to CR3 */
		vmwrite(GUEST_CR3, *reg);
		break;
	case 0x13:   /* MOV from CR3 */
		*reg = vmread(GUEST_CR3);
		break;
	default:
		unexpected(guest, "control-register access", qualification);
	}
	skip_instruction();
}

/* Qualification: size - 1 in 2:0, IN in 3, string in 4, port in 31:16 (table 28-5). */
static void on_io(struct guest *guest)
{
	uint64_t qualification = vmread(EXIT_QUALIFICATION);
	unsigned size = (qualification & 7) + 1;
	unsigned port = qualification >> 16 & 0xffff;
	uint64_t mask = size == 4 ? 0xffffffff : (1u << 8 * size) - 1;
	uint64_t *rax = &guest->registers.r[RAX];

	if (qualification & 1 << 4)
		unexpected(guest, "string I/O at port", port);
	if (port == PORT_ECHO_OUT && !(qualification & 1 << 3))
		guest->echo = (uint32_t)(*rax & mask);
	else if (port == PORT_ECHO_IN && qualification & 1 << 3)
		*rax = (size == 4 ? 0 : *rax & ~mask) | ((guest->echo + 1) & mask);
	else
		unexpected(guest, "access to port", port);
	skip_instruction();
}

static void on_rdmsr(struct guest *guest)
{
	uint64_t *r = guest->registers.r;

	if ((uint32_t)r[RCX] != MSR_SHADOWED) {
		inject_exception(GENERAL_PROTECTION, 0);
		return;
	}
	r[RAX] = IA32_LOW(guest->shadow_msr + 1);
	r[RDX] = (guest->shadow_msr + 1) >> 32;
	skip_instruction();
}

static void on_wrmsr(struct guest *guest)
{
	uint64_t *r = guest->registers.r;

	if ((uint32_t)r[RCX] != MSR_SHADOWED) {
		inject_exception(GENERAL_PROTECTION, 0);
		return;
	}
	guest->shadow_msr = IA32_LOW(r[RDX]) << 32 | IA32_LOW(r[RAX]);
	skip_instruction();
}

static void on_monitor_trap(struct guest *guest)
{
	(void)guest;   /* counted by exit_dispatch() */
}

/* A device register reads as what was written plus one.  The exit gives no
 * instruction length, so this is a decoder of two instructions. */
static void emulate_device(struct guest *guest, uint32_t *reg)
{
	const uint8_t *code = (const uint8_t *)vmread(GUEST_RIP);
	uint64_t *rax = &guest->registers.r[RAX];

	if (code[0] == 0x89 && code[1] == 0x03)         /* MOV (RBX), EAX */
		*reg = (uint32_t)*rax;
	else if (code[0] == 0x8b && code[1] == 0x03)    /* MOV EAX, (RBX) */
		*rax = (uint32_t)(*reg + 1);
	else
		unexpected(guest, "device access by opcode", code[0]);
	skip(2);
}

/* Qualification: read, write, fetch in 2:0 (table 28-7). */
static void on_ept_violation(struct guest *guest)
{
	uint64_t address = vmread(GUEST_PHYSICAL_ADDRESS);

	if (ept_in_window(address))
		ept_allow(address, vmread(EXIT_QUALIFICATION) & 7);
	else if (address == DEVICE_ABSENT)
		emulate_device(guest, &guest->device[0]);
	else
		unexpected(guest, "EPT violation at", address);
}

static void on_ept_misconfiguration(struct guest *guest)
{
	uint64_t address = vmread(GUEST_PHYSICAL_ADDRESS);

	if (address != DEVICE_MISCONFIG)
		unexpected(guest, "EPT misconfiguration at", address);
	emulate_device(guest, &guest->device[1]);
}

static void on_preemption_timer(struct guest *guest)
{
	vmwrite(PREEMPTION_TIMER_VALUE, 1000);
	if (guest->exits[EXIT_PREEMPTION_TIMER] == guest->iterations)
		guest_flag = 1;
}

static void (*const handlers[EXIT_REASONS])(struct guest *guest) = {
	[EXIT_EXCEPTION_OR_NMI] = on_exception,
	[EXIT_EXTERNAL_INTERRUPT] = on_external_interrupt,
	[EXIT_INTERRUPT_WINDOW] = on_interrupt_window,
	[EXIT_CPUID] = on_cpuid,
	[EXIT_HLT] = on_hlt,
	[EXIT_VMCALL] = on_vmcall,
	[EXIT_CR_ACCESS] = on_cr_access,
	[EXIT_IO] = on_io,
	[EXIT_RDMSR] = on_rdmsr,
	[EXIT_WRMSR] = on_wrmsr,
	[EXIT_MONITOR_TRAP_FLAG] = on_monitor_trap,
	[EXIT_EPT_VIOLATION] = on_ept_violation,
	[EXIT_EPT_MISCONFIGURATION] = on_ept_misconfiguration,
	[EXIT_PREEMPTION_TIMER] = on_preemption_timer,
};

void exit_dispatch(struct guest *guest)
{
	uint32_t reason = (uint32_t)vmread(EXIT_REASON);
	uint16_t basic = (uint16_t)reason;

	if (reason & EXIT_REASON_ENTRY_FAILURE)
		unexpected(guest, "VM entry failed, reason", basic);
	if (basic >= EXIT_REASONS || !handlers[basic])
		unexpected(guest, "exit reason", basic);
	guest->exits[basic]++;
	redeliver();
	handlers[basic](guest);
	if (guest->timer_pending)
		deliver_timer(guest);
}
