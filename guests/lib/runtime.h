/* What the guests share: console, command line, traps, timers, the way out. */
#ifndef RUNTIME_H
#define RUNTIME_H

#include "layout.h"
#include "processor.h"

/* Pushed by traps.S and the processor; lowest address first. */
struct trap_frame {
	uint64_t r15, r14, r13, r12, r11, r10, r9, r8;
	uint64_t rdi, rsi, rbp, rbx, rdx, rcx, rax;
	uint64_t vector, error_code;
	uint64_t rip, cs, rflags, rsp, ss;
};

/* An interrupt gate of 64-bit mode. */
struct gate {
	uint16_t offset_low;
	uint16_t selector;
	uint8_t ist;
	uint8_t type;
	uint16_t offset_mid;
	uint32_t offset_high;
	uint32_t reserved;
};

typedef void (*trap_handler)(struct trap_frame *frame);

/* Each image defines this.  The return value is the debug-exit value. */
int guest_main(void);

/* print.c.  Formats: %s %c %u %d %x with an optional 0, width and l. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void console_init(void);

/* boot.S */
extern char boot_gdt[], boot_tss[];

/* runtime.c */
extern uint32_t memory_kib_above_1m;
extern const char *command_line;
bool option(const char *name);                                 /* is the bare word NAME there? */
uint64_t option_value(const char *name, uint64_t otherwise);   /* NAME=VALUE, decimal or 0x… */
const char *option_text(const char *name);                     /* the text after NAME=, or NULL */
bool list_has(const char *list, const char *word);   /* is WORD in the comma-separated LIST, up to a blank? */
void set_trap_handler(unsigned vector, trap_handler handler);  /* NULL: report and stop */
struct gate interrupt_gate(const char *handler);
_Noreturn void leave(uint8_t value);
_Noreturn void panic(const char *what);

/* timers.c */
void pic_init(uint8_t first_vector);      /* both 8259s, all lines masked */
void pic_unmask(unsigned line);
void pic_end_of_interrupt(unsigned line);
void pit_periodic(uint32_t hz);
void lapic_init(void);
void lapic_timer_periodic(uint8_t vector, uint32_t count);
void lapic_timer_stop(void);
void lapic_end_of_interrupt(void);

void *memset(void *to, int value, size_t n);
void *memcpy(void *to, const void *from, size_t n);

#endif
