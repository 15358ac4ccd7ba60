/* One line of result, the same for every benchmark. */
#ifndef BENCH_H
#define BENCH_H

#include "runtime.h"

static inline int report(const char *name, uint64_t iterations, uint64_t tsc)
{
	print("bench %s iterations=%lu tsc=%lu\n", name, iterations, tsc);
	return 0;
}

#endif
