#include <stdbool.h>
#include <stdint.h>

#include "format.h"

static void put_number(void (*put)(char c), uint64_t value, unsigned base, int width, char pad)
{
	char digits[20];
	int n = 0;

	do {
		digits[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	while (width-- > n)
		put(pad);
	while (n)
		put(digits[--n]);
}

void format_into(void (*put)(char c), const char *format, va_list arguments)
{
	for (; *format; format++) {
		char pad = ' ';
		int width = 0;
		bool wide = false;

		if (*format != '%') {
			put(*format);
			continue;
		}
		format++;
		if (*format == '0')
			pad = *format++;
		while (*format >= '0' && *format <= '9')
			width = width * 10 + (*format++ - '0');
		for (; *format == 'l'; format++)
			wide = true;
		switch (*format) {
		case 's':
			for (const char *s = va_arg(arguments, const char *); *s; s++)
				put(*s);
			break;
		case 'c':
			put((char)va_arg(arguments, int));
			break;
		case 'x':
			put_number(put, wide ? va_arg(arguments, uint64_t) : va_arg(arguments, uint32_t), 16, width, pad);
			break;
		case 'd': {
			int64_t value = wide ? va_arg(arguments, int64_t) : va_arg(arguments, int32_t);

			if (value < 0)
				put('-');
			put_number(put, value < 0 ? -(uint64_t)value : (uint64_t)value, 10, width, pad);
			break;
		}
		case 'u':
			put_number(put, wide ? va_arg(arguments, uint64_t) : va_arg(arguments, uint32_t), 10, width, pad);
			break;
		default:
			put(*format);
		}
	}
}
