/* The text parser's results; see text.c. */
#ifndef LZERO_TEXT_H
#define LZERO_TEXT_H

#include "events.h"

struct text_reasons;

/* Arrays with a place for every line of the text, and how many of each were filled. */
struct text_result {
	struct row *rows;
	uint64_t *event_lines; /* number of the line, from 0, of each row */
	uint64_t *leftovers;   /* three each: number of the line, where it starts, where it ends */
	uint64_t events;
	uint64_t others;
	uint64_t left;
	uint64_t lines;
};

struct text_reasons *lz_text_reasons(const uint8_t *names, const uint32_t *codes, const uint32_t *isas, uint64_t count);
void lz_text(const uint8_t *text, uint64_t size, const struct text_reasons *reasons, struct text_result *result);

#endif
