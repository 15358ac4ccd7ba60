/* The few library functions the static programs need. */
#include "format.h"
#include "linux.h"

static char line[256];
static size_t used;

void *memset(void *to, int value, size_t n)
{
	void *start = to;

	asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
	return start;
}

void *memcpy(void *to, const void *from, size_t n)
{
	void *start = to;

	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	return start;
}

int same(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

uint64_t number(const char *text)
{
	uint64_t value = 0;

	if (!*text)
		fail("an empty number", 0);
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			fail("not a number", 0);
		value = value * 10 + (uint64_t)(*text - '0');
	}
	return value;
}

static void flush(void)
{
	if (used)
		call3(__NR_write, 1, (long)line, (long)used);
	used = 0;
}

/* A whole line per write(), so that lines of several processes do not mix. */
static void put(char c)
{
	line[used++] = c;
	if (c == '\n' || used == sizeof line)
		flush();
}

void print(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	format_into(put, format, arguments);
	va_end(arguments);
}

_Noreturn void leave(int status)
{
	flush();
	for (;;)
		call3(__NR_exit_group, status, 0, 0);
}

_Noreturn void fail(const char *what, long error)
{
	print("failed: %s: error %ld\n", what, error);
	leave(1);
}
