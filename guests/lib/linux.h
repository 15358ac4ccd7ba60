/* Just enough of Linux for a static program without a C library. */
#ifndef LINUX_H
#define LINUX_H

#include <asm/unistd.h>
#include <stddef.h>
#include <stdint.h>

/* Raw system call: a negative errno on failure. */
static inline long system_call(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 asm("r10") = d;
	register long r8 asm("r8") = e;
	register long r9 asm("r9") = f;
	long result;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return result;
}

static inline long call0(long number)
{
	return system_call(number, 0, 0, 0, 0, 0, 0);
}

static inline long call3(long number, long a, long b, long c)
{
	return system_call(number, a, b, c, 0, 0, 0);
}

int main(int count, char **arguments);   /* each program defines it */

/* linux.c */
void *memset(void *to, int value, size_t n);
void *memcpy(void *to, const void *from, size_t n);
int same(const char *a, const char *b);          /* are two strings equal? */
uint64_t number(const char *text);               /* decimal; stops the program otherwise */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));   /* %s %c %u %d %x, 0, width, l */
_Noreturn void leave(int status);
_Noreturn void fail(const char *what, long error);  /* "what: error -N" on standard output, status 1 */

#endif
