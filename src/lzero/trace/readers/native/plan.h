/* A tracepoint's bytes to the columns of a row, by the recording's own format. */
#ifndef LZERO_PLAN_H
#define LZERO_PLAN_H

#include <string.h>

#include "events.h"

static inline uint64_t lz_number(const uint8_t *at, uint32_t width)
{
	uint64_t value = 0;

	switch (width) {
	case 4: {
		uint32_t word;
		memcpy(&word, at, 4);
		return word;
	}
	case 8:
		memcpy(&value, at, 8);
		return value;
	default:
		memcpy(&value, at, width);
		return value;
	}
}

/* Everything but time, thread and CPU, which the container tells. The event has at least plan->size bytes. */
static inline void lz_fill(struct row *row, const struct plan *plan, const uint8_t *data)
{
	uint64_t value[COLUMNS];

	for (int column = 0; column < COLUMNS; column++)
		value[column] = plan->width[column] ? lz_number(data + plan->offset[column], plan->width[column]) : 0;
	row->kind = (uint8_t)plan->kind;
	row->isa = plan->width[COLUMN_ISA] ? (uint8_t)value[COLUMN_ISA] : 1;
	row->vcpu = plan->width[COLUMN_VCPU] ? (int32_t)value[COLUMN_VCPU] : -1;
	row->reason = (uint32_t)value[COLUMN_REASON];
	row->rip = value[COLUMN_RIP];
	row->info1 = value[COLUMN_INFO1];
	row->info2 = value[COLUMN_INFO2];
	row->intr_info = (uint32_t)value[COLUMN_INTR_INFO];
	row->error_code = (uint32_t)value[COLUMN_ERROR_CODE];
}

#endif
