/* print() for both worlds: the guests' serial console and Linux's standard output. */
#ifndef FORMAT_H
#define FORMAT_H

#include <stdarg.h>

/* Understands %s %c %u %d %x with an optional 0, width and l; hands every byte to put(). */
void format_into(void (*put)(char c), const char *format, va_list arguments);

#endif
