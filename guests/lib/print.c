/* The console: a 16550 at 0x3f8, polled. */
#include "format.h"
#include "runtime.h"

#define COM1 0x3f8
#define LINE_STATUS 5
#define TRANSMITTER_EMPTY 0x20

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
