/* The console: a 16550 at 0x3f8, polled. */
#include "format.h"
#include "runtime.h"

#define COM1 0x3f8
#define DIVISOR_LOW 0        /* while the line control's divisor latch is open */
#define DIVISOR_HIGH 1
#define INTERRUPT_ENABLE 1
#define FIFO_CONTROL 2
#define LINE_CONTROL 3
#define LINE_STATUS 5
#define DIVISOR_LATCH 0x80
#define EIGHT_BITS_NO_PARITY 0x03
#define ENABLE_AND_CLEAR_FIFOS 0x07
#define TRANSMITTER_EMPTY 0x20

/* After reset a 16550 sends five bits a character. */
void console_init(void)
{
	outb(COM1 + INTERRUPT_ENABLE, 0);
	outb(COM1 + LINE_CONTROL, DIVISOR_LATCH);
	outb(COM1 + DIVISOR_LOW, 1);   /* 115200 baud */
	outb(COM1 + DIVISOR_HIGH, 0);
	outb(COM1 + LINE_CONTROL, EIGHT_BITS_NO_PARITY);
	outb(COM1 + FIFO_CONTROL, ENABLE_AND_CLEAR_FIFOS);
}

static void put(char c)
{
	if (c == '\n')
		put('\r');
	while (!(inb(COM1 + LINE_STATUS) & TRANSMITTER_EMPTY))
		;
	outb(COM1, (uint8_t)c);
}

void print(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	format_into(put, format, arguments);
	va_end(arguments);
}
