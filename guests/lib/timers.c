/* The PC's two interval timers and the controllers that deliver their interrupts. */
#include "runtime.h"

#define PIC_MASTER 0x20
#define PIC_SLAVE  0xa0
#define ICW1_INIT_WITH_ICW4 0x11
#define ICW4_8086           0x01
#define OCW2_EOI            0x20

#define PIT_CHANNEL0 0x40
#define PIT_COMMAND  0x43
#define PIT_HZ       1193182u
#define PIT_CH0_RATE_GENERATOR 0x34   /* channel 0, low then high byte, mode 2 */

#define MSR_APIC_BASE   0x1b
#define APIC_ENABLE     (1u << 11)
#define APIC_EOI        0xb0
#define APIC_SPURIOUS   0xf0
#define APIC_LVT_TIMER  0x320
#define APIC_INITIAL    0x380
#define APIC_DIVIDE     0x3e0
#define LVT_MASKED      (1u << 16)
#define LVT_PERIODIC    (1u << 17)
#define DIVIDE_BY_16    0x3
#define SPURIOUS_VECTOR 0xff
#define SOFTWARE_ENABLE 0x100

static volatile uint32_t *lapic;

void pic_init(uint8_t first_vector)
{
	outb(PIC_MASTER, ICW1_INIT_WITH_ICW4);
	outb(PIC_SLAVE, ICW1_INIT_WITH_ICW4);
	outb(PIC_MASTER + 1, first_vector);
	outb(PIC_SLAVE + 1, (uint8_t)(first_vector + 8));
	outb(PIC_MASTER + 1, 1 << 2);   /* the slave hangs on line 2 */
	outb(PIC_SLAVE + 1, 2);
	outb(PIC_MASTER + 1, ICW4_8086);
	outb(PIC_SLAVE + 1, ICW4_8086);
	outb(PIC_MASTER + 1, 0xff);
	outb(PIC_SLAVE + 1, 0xff);
}

void pic_unmask(unsigned line)
{
	uint16_t port = (uint16_t)((line < 8 ? PIC_MASTER : PIC_SLAVE) + 1);

	outb(port, (uint8_t)(inb(port) & ~(1u << (line & 7))));
}

void pic_end_of_interrupt(unsigned line)
{
	if (line >= 8)
		outb(PIC_SLAVE, OCW2_EOI);
	outb(PIC_MASTER, OCW2_EOI);
}

void pit_periodic(uint32_t hz)
{
	uint32_t divisor = PIT_HZ / hz;

	outb(PIT_COMMAND, PIT_CH0_RATE_GENERATOR);
	outb(PIT_CHANNEL0, (uint8_t)divisor);
	outb(PIT_CHANNEL0, (uint8_t)(divisor >> 8));
}

static void spurious(struct trap_frame *frame)
{
	(void)frame;   /* a spurious interrupt wants no EOI */
}

void lapic_init(void)
{
	uint64_t base = rdmsr(MSR_APIC_BASE);

	wrmsr(MSR_APIC_BASE, base | APIC_ENABLE);
	lapic = (volatile uint32_t *)(base & ~0xfffull);
	set_trap_handler(SPURIOUS_VECTOR, spurious);
	lapic[APIC_SPURIOUS / 4] = SOFTWARE_ENABLE | SPURIOUS_VECTOR;
}

void lapic_timer_periodic(uint8_t vector, uint32_t count)
{
	lapic[APIC_DIVIDE / 4] = DIVIDE_BY_16;
	lapic[APIC_LVT_TIMER / 4] = LVT_PERIODIC | vector;
	lapic[APIC_INITIAL / 4] = count;
}

void lapic_timer_stop(void)
{
	lapic[APIC_LVT_TIMER / 4] = LVT_MASKED;
	lapic[APIC_INITIAL / 4] = 0;
}

void lapic_end_of_interrupt(void)
{
	lapic[APIC_EOI / 4] = 0;
}
