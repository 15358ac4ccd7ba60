/* perf's records to rows. See linux/perf_event.h for the records. */
#include <string.h>

#include "events.h"
#include "plan.h"

enum { RECORD_LOST = 2, RECORD_SAMPLE = 9, RECORD_LOST_SAMPLES = 13 };
enum { RECORD_HEADER_ATTR = 64, RECORD_TRACING_DATA = 66, RECORD_FINISHED_ROUND = 68, RECORD_AUXTRACE = 71,
       RECORD_COMPRESSED = 81, RECORD_COMPRESSED2 = 83 };
enum { READ_ENABLED = 1, READ_RUNNING = 2, READ_ID = 4, READ_GROUP = 8, READ_LOST = 16 };

/* Word of the raw data's size, or 0 when the parts before it do not fit. */
static uint64_t raw_word(const uint64_t *record, uint64_t size, const struct layout *layout)
{
	uint64_t word = (uint64_t)layout->variable;

	if (layout->has_read) {
		uint32_t format = layout->read_format;
		uint64_t times = !!(format & READ_ENABLED) + !!(format & READ_RUNNING);
		uint64_t each = 1 + !!(format & READ_ID) + !!(format & READ_LOST);

		if (format & READ_GROUP) {
			if (word >= size || record[word] >= 1 << 13)
				return 0;
			word += 1 + times + each * record[word];
		} else {
			word += times + each;
		}
	}
	if (layout->has_callchain) {
		if (word >= size || record[word] >= 1 << 16)
			return 0;
		word += 1 + record[word];
	}
	return word < size ? word : 0;
}

/* 1: a row was written; 0: an event that nothing is known about; -1: the sample does not hold together. */
static int sample(const uint64_t *record, uint64_t size, const struct layout *layout, const struct plan *plans,
		  uint32_t plan_count, struct row *row)
{
	uint64_t word = raw_word(record, size, layout);
	const uint8_t *data;
	uint32_t room;
	uint16_t event;

	if (!word)
		return -1;
	room = (uint32_t)record[word];
	data = (const uint8_t *)(record + word) + 4;
	if (room < 2 || room > (size - word) * 8 - 4)
		return -1;
	memcpy(&event, data, 2);
	for (uint32_t index = 0; index < plan_count; index++) {
		if (plans[index].event != event)
			continue;
		if (room < plans[index].size)
			return -1;
		lz_fill(row, &plans[index], data);
		row->time_ns = layout->time < 0 ? 0 : record[layout->time];
		row->thread = layout->tid < 0 ? -1 : (int32_t)(record[layout->tid] >> 32);
		row->cpu = layout->cpu < 0 ? -1 : (int16_t)record[layout->cpu];
		return 1;
	}
	return 0;
}

static int for_the_caller(uint32_t type)
{
	return type == RECORD_HEADER_ATTR || type == RECORD_TRACING_DATA || type == RECORD_AUXTRACE ||
	       type == RECORD_COMPRESSED || type == RECORD_COMPRESSED2;
}

void lz_decode(const uint64_t *words, uint64_t count, const struct layout *layout, const struct plan *plans, uint32_t plan_count,
	       struct row *rows, uint64_t *notes, uint64_t note_room, struct decode *state)
{
	uint64_t place = 0;

	state->rows = state->others = state->notes = 0;
	state->stopped = 0;
	while (place < count) {
		uint64_t header = words[place];
		uint32_t type = (uint32_t)header;
		uint64_t size = header >> 51;

		if (!size || (header >> 48 & 7) || for_the_caller(type)) {
			state->stopped = 1;
			break;
		}
		if (place + size > count)
			break;
		if (type == RECORD_SAMPLE) {
			struct row *row = &rows[state->rows];
			int found = sample(words + place, size, layout, plans, plan_count, row);

			if (found < 0) {
				state->stopped = 1;
				break;
			}
			if (found) {
				state->rows++;
				if (row->time_ns > state->newest)
					state->newest = row->time_ns;
			} else {
				state->others++;
			}
		} else if (type == RECORD_FINISHED_ROUND) {
			/* In each round perf empties every CPU's buffer once: nothing older than the round before can come now. */
			state->safe_until = state->newest_at_round;
			state->newest_at_round = state->newest;
		} else if (type == RECORD_LOST || type == RECORD_LOST_SAMPLES) {
			if (state->notes == note_room) {
				state->stopped = 1;
				break;
			}
			notes[state->notes++] = place;
		}
		place += size;
	}
	state->end = place;
}
