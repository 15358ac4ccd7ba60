/*
 * Rows by time: a stable radix sort of the times, then one pass that moves the rows.
 *
 * The times of one block lie close together, so as a rule a time and its row's number fit one word.
 */
#include <stdlib.h>
#include <string.h>

#include "events.h"

enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS };

struct wide {
	uint64_t key;
	uint64_t index;
};

static void places(uint64_t at[DIGITS])
{
	uint64_t sum = 0;

	for (unsigned digit = 0; digit < DIGITS; digit++) {
		uint64_t here = at[digit];
		at[digit] = sum;
		sum += here;
	}
}

/* Row numbers in the low half, times in the high half. */
static int order_narrow(const struct row *rows, uint64_t count, uint64_t low, uint64_t span, struct row *ordered)
{
	uint64_t *items = malloc(2 * count * sizeof(*items));
	uint64_t *from = items, *to = items + count;

	if (!items)
		return -1;
	for (uint64_t i = 0; i < count; i++)
		from[i] = (rows[i].time_ns - low) << 32 | i;
	for (unsigned shift = 0; shift < 32 && span >> shift; shift += DIGIT_BITS) {
		uint64_t at[DIGITS] = {0};
		uint64_t *swap;

		for (uint64_t i = 0; i < count; i++)
			at[from[i] >> (32 + shift) & (DIGITS - 1)]++;
		places(at);
		for (uint64_t i = 0; i < count; i++)
			to[at[from[i] >> (32 + shift) & (DIGITS - 1)]++] = from[i];
		swap = from;
		from = to;
		to = swap;
	}
	for (uint64_t i = 0; i < count; i++)
		ordered[i] = rows[from[i] & 0xffffffff];
	free(items);
	return 0;
}

static int order_wide(const struct row *rows, uint64_t count, uint64_t low, uint64_t span, struct row *ordered)
{
	struct wide *items = malloc(2 * count * sizeof(*items));
	struct wide *from = items, *to = items + count;

	if (!items)
		return -1;
	for (uint64_t i = 0; i < count; i++)
		from[i] = (struct wide){rows[i].time_ns - low, i};
	for (unsigned shift = 0; shift < 64 && span >> shift; shift += DIGIT_BITS) {
		uint64_t at[DIGITS] = {0};
		struct wide *swap;

		for (uint64_t i = 0; i < count; i++)
			at[from[i].key >> shift & (DIGITS - 1)]++;
		places(at);
		for (uint64_t i = 0; i < count; i++)
			to[at[from[i].key >> shift & (DIGITS - 1)]++] = from[i];
		swap = from;
		from = to;
		to = swap;
	}
	for (uint64_t i = 0; i < count; i++)
		ordered[i] = rows[from[i].index];
	free(items);
	return 0;
}

int lz_order(const struct row *rows, uint64_t count, struct row *ordered)
{
	uint64_t low = UINT64_MAX, high = 0, before = 0;
	int in_order = 1;

	if (!count)
		return 0;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t time = rows[i].time_ns;

		in_order &= time >= before;
		before = time;
		low = time < low ? time : low;
		high = time > high ? time : high;
	}
	if (in_order) {
		memcpy(ordered, rows, count * sizeof(*rows));
		return 0;
	}
	if (high - low <= UINT32_MAX && count <= UINT32_MAX)
		return order_narrow(rows, count, low, high - low, ordered);
	return order_wide(rows, count, low, high - low, ordered);
}
