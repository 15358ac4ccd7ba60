/* Userland work for a Linux guest.
 *
 *   tasks fork N       fork and execute "tasks nothing" N times, one after the other
 *   tasks syscalls N   N getppid() calls
 *   tasks fill N       N bytes of text on standard output, the same each time
 *   tasks nothing      what "fork" executes
 */
#include "linux.h"

static int fork_many(char *self, uint64_t count)
{
	static char nothing[] = "nothing";
	char *arguments[] = { self, nothing, NULL };
	char *environment[] = { NULL };

	for (uint64_t i = 0; i < count; i++) {
		int status = 0;
		long child = call0(__NR_fork);

		if (child < 0)
			fail("fork", child);
		if (child == 0) {
			long error = call3(__NR_execve, (long)"/proc/self/exe", (long)arguments, (long)environment);

			fail("execve", error);
		}
		child = system_call(__NR_wait4, child, (long)&status, 0, 0, 0, 0);
		if (child < 0 || status)
			fail("the child", child < 0 ? child : status);
	}
	print("fork: %lu children\n", count);
	return 0;
}

static int system_calls(uint64_t count)
{
	long parent = call0(__NR_getppid);

	for (uint64_t i = 0; i < count; i++)
		if (call0(__NR_getppid) != parent)
			fail("getppid changed its mind at call", (long)i);
	print("syscalls: %lu\n", count);
	return 0;
}

/* Words out of a small vocabulary, so that a compressor has something to find. */
static int fill(uint64_t count)
{
	static const char *const words[] = { "exit ", "entry ", "guest ", "host ", "page ", "fault ", "trap ", "level\n" };
	static char block[4096];
	size_t at = 0;
	uint32_t state = 1;

	while (count) {
		const char *word;

		state = state * 1664525 + 1013904223;   /* any fixed sequence will do */
		word = words[state >> 29];
		for (; *word && count; word++, count--) {
			block[at++] = *word;
			if (at == sizeof block || count == 1) {
				long written = call3(__NR_write, 1, (long)block, (long)at);

				if (written != (long)at)
					fail("write", written);
				at = 0;
			}
		}
	}
	return 0;
}

int main(int count, char **arguments)
{
	if (count == 2 && same(arguments[1], "nothing"))
		return 0;
	if (count == 3 && same(arguments[1], "fork"))
		return fork_many(arguments[0], number(arguments[2]));
	if (count == 3 && same(arguments[1], "syscalls"))
		return system_calls(number(arguments[2]));
	if (count == 3 && same(arguments[1], "fill"))
		return fill(number(arguments[2]));
	print("usage: tasks nothing | fork N | syscalls N | fill N\n");
	return 2;
}
