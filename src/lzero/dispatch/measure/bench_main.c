/*
 * Times dispatchers by replaying an order of exits.  candidates.h lists them; every pass of every candidate goes over the
 * whole order.
 *
 *   bench ORDER CPU NESTED WARM SEED MODE ROUNDS [MODE ROUNDS ...]
 *       prints "mode round candidate ticks" for each pass; ticks are of the exits after the first WARM ones.
 *       Candidates are visited in a new random order in each round; round -1 is a rehearsal and is printed too.
 *   bench ORDER CPU NESTED 0 0 once CANDIDATE
 *       one silent plain pass, for cachegrind.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <x86intrin.h>

#include "bench.h"

#define noinline __attribute__((noinline))

bool nested;

int handle_unexpected_exit(struct kvm_vcpu *vcpu);
int handle_unexpected_exit(struct kvm_vcpu *vcpu)
{
	fprintf(stderr, "unexpected exit %u\n", vcpu->exit_reason);
	exit(3);
}

static uint64_t start_ticks(void)
{
	_mm_lfence();
	uint64_t now = __rdtsc();
	_mm_lfence();
	return now;
}

static uint64_t stop_ticks(void)
{
	unsigned int cpu;
	uint64_t now = __rdtscp(&cpu);

	_mm_lfence();
	return now;
}

/* Conditional branches on random bits: what the guest and the rest of the exit path do to the branch history. */
#define FLIP(k)                                                                \
	do {                                                                   \
		if (bits >> (k) & 1)                                           \
			__asm__ volatile("nop");                               \
	} while (0)
#define FLIP8(k)                                                               \
	FLIP(k); FLIP(k + 1); FLIP(k + 2); FLIP(k + 3);                        \
	FLIP(k + 4); FLIP(k + 5); FLIP(k + 6); FLIP(k + 7)

static noinline void pollute(uint64_t bits)
{
	FLIP8(0);
	FLIP8(8);
	FLIP8(16);
}

struct work {
	struct kvm_vcpu *vcpu;
	const uint16_t *order;
	size_t count, warm;
};

static uint64_t random_state;

static uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* The loops are written out per candidate: its dispatcher is called directly, as vmx_handle_exit() would contain it. */
#define PASS(name, mode, before)                                               \
	static noinline uint64_t name##_##mode(const struct work *w)           \
	{                                                                      \
		struct kvm_vcpu *vcpu = w->vcpu;                               \
		uint64_t begin = start_ticks();                                \
		for (size_t i = 0; i < w->count; i++) {                        \
			if (__builtin_expect(i == w->warm, 0))                 \
				begin = start_ticks();                         \
			before;                                                \
			vcpu->exit_reason = w->order[i];                       \
			if (__builtin_expect(!name(vcpu, w->order[i]), 0))     \
				exit(4);                                       \
		}                                                              \
		return stop_ticks() - begin;                                   \
	}

#define CANDIDATE(name)                                                        \
	int name(struct kvm_vcpu *vcpu, unsigned int reason);                  \
	void name##_init(void) __attribute__((weak));                          \
	PASS(name, plain, (void)0)                                             \
	PASS(name, serialised, _mm_lfence())                                   \
	PASS(name, polluted, pollute(next_random()))
#include "candidates.h"
#undef CANDIDATE

static const struct candidate {
	const char *name;
	void (*init)(void);
	uint64_t (*pass[3])(const struct work *);
} candidates[] = {
#define CANDIDATE(name) { #name, name##_init, { name##_plain, name##_serialised, name##_polluted } },
#include "candidates.h"
};

#define COUNT (sizeof(candidates) / sizeof(candidates[0]))

static const char *const modes[] = { "plain", "serialised", "polluted" };

static int mode_number(const char *name)
{
	for (int i = 0; i < 3; i++)
		if (!strcmp(name, modes[i]))
			return i;
	fprintf(stderr, "no mode %s\n", name);
	exit(2);
}

static void pin(int cpu)
{
	const struct sched_param lowest = { .sched_priority = 1 };
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (cpu < 0)
		return;
	/* Without the right to pin, or to real-time priority, the measurement is noisier, not wrong. */
	(void)!sched_setaffinity(0, sizeof(set), &set);
	(void)!sched_setscheduler(0, SCHED_FIFO, &lowest);
}

static long preemptions(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_nivcsw;
}

/* A pass during which another process got the CPU is made again; on a crowded machine the fourth attempt stands. */
static uint64_t undisturbed(const struct candidate *c, int mode, const struct work *w)
{
	uint64_t ticks = 0;

	for (int attempt = 0; attempt < 4; attempt++) {
		long before = preemptions();

		random_state = 88172645463325252u;
		ticks = c->pass[mode](w);
		if (preemptions() == before)
			break;
	}
	return ticks;
}

static void measure(struct work *w, int mode, long rounds, uint64_t seed)
{
	size_t turn[COUNT];
	uint64_t shuffle = seed * 2654435769u + 88172645463325252u;

	for (size_t i = 0; i < COUNT; i++)
		turn[i] = i;
	for (long round = -1; round < rounds; round++) {
		for (size_t i = COUNT - 1; i > 0; i--) {
			shuffle ^= shuffle << 13;
			shuffle ^= shuffle >> 7;
			shuffle ^= shuffle << 17;
			size_t j = shuffle % (i + 1), swap = turn[i];

			turn[i] = turn[j];
			turn[j] = swap;
		}
		for (size_t i = 0; i < COUNT; i++) {
			const struct candidate *c = &candidates[turn[i]];

			printf("%s %ld %s %llu\n", modes[mode], round, c->name, (unsigned long long)undisturbed(c, mode, w));
		}
	}
}

static const uint16_t *read_order(const char *path, size_t *count)
{
	struct stat status;
	int file = open(path, O_RDONLY);

	if (file < 0 || fstat(file, &status) || status.st_size < 2) {
		perror(path);
		exit(2);
	}
	*count = (size_t)status.st_size / 2;
	void *order = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
	if (order == MAP_FAILED) {
		perror(path);
		exit(2);
	}
	return order;
}

int main(int argc, char **argv)
{
	static struct kvm_vcpu vcpu = { .instruction_length = 3 };
	struct work w = { .vcpu = &vcpu };

	if (argc < 8) {
		fprintf(stderr, "usage: %s ORDER CPU NESTED WARM SEED MODE ROUNDS ...\n", argv[0]);
		return 2;
	}
	w.order = read_order(argv[1], &w.count);
	pin(atoi(argv[2]));
	nested = atoi(argv[3]);
	w.warm = strtoul(argv[4], NULL, 10);
	for (size_t i = 0; i < COUNT; i++)
		if (candidates[i].init)
			candidates[i].init();
	if (!strcmp(argv[6], "once")) {
		for (size_t i = 0; i < COUNT; i++)
			if (!strcmp(candidates[i].name, argv[7]))
				return candidates[i].pass[0](&w) == 0;
		fprintf(stderr, "no candidate %s\n", argv[7]);
		return 2;
	}
	for (int i = 6; i + 1 < argc; i += 2)
		measure(&w, mode_number(argv[i]), atol(argv[i + 1]), strtoull(argv[5], NULL, 10));
	return 0;
}
