/* The pages of ftrace's ring buffer to rows. See lzero.trace.readers.binary.ring_pages, which this must agree with. */
#include <string.h>

#include "events.h"
#include "plan.h"

enum { TYPE_PADDING = 29, TYPE_TIME_EXTEND = 30, TYPE_TIME_STAMP = 31 };
enum { DELTA_BITS = 27, STAMP_BITS = 59, COMMIT_MASK = (1 << DELTA_BITS) - 1, MISSED_STORED = 1 << 30 };
static const uint32_t MISSED = 1u << 31;

static void note(struct page_decode *state, struct page_note *notes, uint64_t room, uint32_t kind, uint64_t page, uint64_t number)
{
	if (state->notes < room)
		notes[state->notes] = (struct page_note){.page = page, .number = number, .kind = kind};
	state->notes++;
}

static void event(struct page_decode *state, const struct plan *plans, uint32_t plan_count, const uint8_t *data, uint64_t size,
		  uint64_t time, int32_t cpu, uint64_t place, struct row *rows)
{
	uint16_t number;

	if (size >= 8) {
		memcpy(&number, data, 2);
		for (uint32_t index = 0; index < plan_count; index++) {
			struct row *row = &rows[state->rows];
			int32_t thread;

			if (plans[index].event != number)
				continue;
			if (size < plans[index].size) {
				if (!state->shorts++)
					state->first_short = place;
				break;
			}
			lz_fill(row, &plans[index], data);
			memcpy(&thread, data + 4, 4);
			row->thread = thread;
			row->time_ns = time;
			row->cpu = (int16_t)cpu;
			state->rows++;
			return;
		}
	}
	state->others++;
}

/* 0, or -1 where the page does not make sense from some event on. */
static int one_page(struct page_decode *state, const struct page_layout *layout, const struct plan *plans, uint32_t plan_count,
		    const uint8_t *page, uint64_t start, uint64_t used, int32_t cpu, struct row *rows)
{
	const uint8_t *at = page + layout->data, *end = at + used;
	uint64_t time = lz_number(page + layout->timestamp, 8);

	while (at < end) {
		uint32_t header, second = 0;
		uint32_t type, delta;
		const uint8_t *data = at + 4;
		int64_t size;

		memcpy(&header, at, 4);
		type = header & 31;
		delta = header >> 5;
		if (end - at >= 8)
			memcpy(&second, at + 4, 4);
		if (type == 0) {
			data = at + 8;
			size = (int64_t)second - 4;
		} else if (type == TYPE_PADDING) {
			size = delta ? (int64_t)second : end - at - 4;
		} else if (type >= TYPE_TIME_EXTEND) {
			size = 4;
		} else {
			size = (int64_t)type * 4;
		}
		if (size < 0 || data + ((size + 3) & -4) > end)
			return -1;
		if (type == TYPE_TIME_STAMP)
			time = (delta | (uint64_t)second << DELTA_BITS) | time >> STAMP_BITS << STAMP_BITS;
		else if (type == TYPE_TIME_EXTEND)
			time += delta + ((uint64_t)second << DELTA_BITS);
		else
			time += delta;
		state->reached = time;
		if (type < TYPE_PADDING)
			event(state, plans, plan_count, data, (uint64_t)size, time, cpu, start + (uint64_t)(data - page), rows);
		at = data + ((size + 3) & -4);
	}
	return 0;
}

void lz_pages(const uint8_t *pages, uint64_t count, const struct page_layout *layout, const struct plan *plans, uint32_t plan_count,
	      int32_t cpu, struct row *rows, struct page_note *notes, uint64_t note_room, struct page_decode *state)
{
	memset(state, 0, sizeof(*state));
	for (uint64_t index = 0; index < count; index++) {
		const uint8_t *page = pages + index * layout->page_size;
		uint32_t commit = (uint32_t)lz_number(page + layout->commit, 4);
		uint64_t used = commit & COMMIT_MASK;

		if (layout->data + used > layout->page_size || used % 4) {
			note(state, notes, note_room, PAGE_DAMAGED, index, 0);
			continue;
		}
		if (commit & MISSED) {
			uint64_t stored = layout->data + used + 8 <= layout->page_size && commit & MISSED_STORED;
			note(state, notes, note_room, PAGE_MISSED, index, stored ? lz_number(page + layout->data + used, 8) : 0);
		}
		if (one_page(state, layout, plans, plan_count, page, index * layout->page_size, used, cpu, rows))
			note(state, notes, note_room, PAGE_DAMAGED, index, 0);
	}
}
