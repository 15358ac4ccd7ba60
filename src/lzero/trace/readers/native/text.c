/*
 * The ordinary lines of perf script, trace-cmd report and ftrace, one pass over the bytes.
 *
 * Accepts what lzero.trace.readers.fastlines accepts; a line that differs in anything is left over for the slow parser, which
 * says what it is or what is wrong with it. The tests hold this and the slow parser equal on damaged lines.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "text.h"

enum { EXIT = 1, ENTRY, NESTED_VMEXIT, NESTED_INJECT, NESTED_VMENTER };
enum line_kind { LEFT_OVER, OTHER, EVENT };

static const struct { const char *name; uint8_t kind; } EVENTS[] = {
	{ "kvm_exit", EXIT },
	{ "kvm_entry", ENTRY },
	{ "kvm_nested_vmexit", NESTED_VMEXIT },
	{ "kvm_nested_vmexit_inject", NESTED_INJECT },
	{ "kvm_nested_vmenter", NESTED_VMENTER },
	{ "kvm_nested_vmrun", NESTED_VMENTER },
};

#define SLOTS 1024

struct reason {
	uint8_t name[32]; /* padded with zeros */
	uint32_t length;
	uint32_t code;
	uint32_t isa;
};

struct text_reasons {
	struct reason slot[SLOTS];
};

static int is_digit(uint8_t c)
{
	return (uint8_t)(c - '0') < 10;
}

static int is_name(uint8_t c)
{
	return (uint8_t)((c | 0x20) - 'a') < 26 || is_digit(c) || c == '_';
}

static uint32_t hash(const uint8_t *name, size_t length)
{
	uint32_t h = 2166136261u;

	for (size_t i = 0; i < length; i++)
		h = (h ^ name[i]) * 16777619u;
	return (h ^ h >> 15) % SLOTS;
}

struct text_reasons *lz_text_reasons(const uint8_t *names, const uint32_t *codes, const uint32_t *isas, uint64_t count)
{
	struct text_reasons *table = calloc(1, sizeof(*table));

	if (!table || count > SLOTS / 2) {
		free(table);
		return NULL;
	}
	for (uint64_t i = 0; i < count; i++) {
		const uint8_t *name = names + 32 * i;
		size_t length = strnlen((const char *)name, 32);
		uint32_t at = hash(name, length);

		while (table->slot[at].length)
			at = (at + 1) % SLOTS;
		memcpy(table->slot[at].name, name, 32);
		table->slot[at].length = (uint32_t)length;
		table->slot[at].code = codes[i];
		table->slot[at].isa = isas[i];
	}
	return table;
}

static const struct reason *find_reason(const struct text_reasons *table, const uint8_t *name, size_t length)
{
	for (uint32_t at = hash(name, length); table->slot[at].length; at = (at + 1) % SLOTS) {
		if (table->slot[at].length == length && !memcmp(table->slot[at].name, name, length))
			return &table->slot[at];
	}
	return NULL;
}

/* A place in a line and the line's end; what does not fit sets bad. */
struct cursor {
	const uint8_t *at;
	const uint8_t *end;
	int bad;
};

static int begins(const struct cursor *c, const char *text)
{
	size_t length = strlen(text);

	return (size_t)(c->end - c->at) >= length && !memcmp(c->at, text, length);
}

static void expect(struct cursor *c, const char *text)
{
	if (begins(c, text))
		c->at += strlen(text);
	else
		c->bad = 1;
}

/* A hexadecimal number of least to most digits. */
static uint64_t hex(struct cursor *c, int least, int most)
{
	uint64_t value = 0;
	int digits = 0;

	for (; c->at < c->end && digits <= most; c->at++, digits++) {
		uint8_t ch = *c->at, letter = (uint8_t)((ch | 0x20) - 'a');

		if (is_digit(ch))
			value = value << 4 | (uint64_t)(ch - '0');
		else if (letter < 6)
			value = value << 4 | (uint64_t)(letter + 10);
		else
			break;
	}
	if (digits < least || digits > most)
		c->bad = 1;
	return value;
}

/* The digits that end just before *end, at most `most`; moves *end to the first of them. */
static uint64_t digits_before(const uint8_t *start, const uint8_t **end, int most, int *bad)
{
	const uint8_t *last = *end;
	uint64_t value = 0, scale = 1;
	int digits = 0;

	while (last > start && is_digit(last[-1]) && digits <= most) {
		value += scale * (uint64_t)(*--last - '0');
		scale *= 10;
		digits++;
	}
	if (!digits || digits > most)
		*bad = 1;
	*end = last;
	return value;
}

static const uint8_t *spaces_before(const uint8_t *start, const uint8_t *end, int *bad)
{
	const uint8_t *last = end;

	while (last > start && last[-1] == ' ')
		last--;
	if (last == end)
		*bad = 1;
	return last;
}

/* "comm-12 [003] d..1 5.123456" that ends at `end`: time, CPU and thread. 0: not a time at all; -1: a time, but not this shape. */
static int parse_prefix(const uint8_t *start, const uint8_t *end, struct row *row)
{
	const uint8_t *at = end;
	int bad = 0;
	uint64_t fraction = digits_before(start, &at, 9, &bad);
	long digits = end - at;

	if (bad || digits < 3 || at == start || at[-1] != '.')
		return 0;
	if (digits != 6 && digits != 9)
		return -1;
	at--;
	row->time_ns = digits_before(start, &at, 7, &bad) * 1000000000u + (digits == 6 ? fraction * 1000 : fraction);
	at = spaces_before(start, at, &bad);
	if (bad || at == start)
		return -1;
	if (at[-1] != ']') {
		const uint8_t *flags = at;

		while (at > start && at[-1] != ' ')
			at--;
		if (flags - at > 7)
			return -1;
		at = spaces_before(start, at, &bad);
		if (bad || at == start || at[-1] != ']')
			return -1;
	}
	at--;
	row->cpu = (int16_t)digits_before(start, &at, 4, &bad);
	if (bad || at == start || at[-1] != '[')
		return -1;
	at = spaces_before(start, at - 1, &bad);
	row->thread = (int32_t)digits_before(start, &at, 7, &bad);
	if (bad || at == start || (at[-1] != ' ' && at[-1] != '-' && at[-1] != '/'))
		return -1;
	return 1;
}

static void parse_info(struct cursor *c, struct row *row)
{
	if (begins(c, " info1 ")) {
		expect(c, " info1 0x");
		row->info1 = hex(c, 16, 16);
		expect(c, " info2 0x");
		row->info2 = hex(c, 16, 16);
		expect(c, " intr_info 0x");
		row->intr_info = (uint32_t)hex(c, 8, 8);
		expect(c, " error_code 0x");
		row->error_code = (uint32_t)hex(c, 8, 8);
		if (c->at < c->end) {
			expect(c, " requests 0x");
			hex(c, 16, 16);
		}
	} else {
		expect(c, " info ");
		row->info1 = hex(c, 1, 16);
		expect(c, " ");
		row->intr_info = (uint32_t)hex(c, 1, 16);
	}
}

static void parse_exit(struct cursor *c, const struct text_reasons *reasons, struct row *row)
{
	const uint8_t *name;
	const struct reason *reason;

	expect(c, "reason ");
	for (name = c->at; c->at < c->end && *c->at != ' '; c->at++)
		;
	reason = c->bad || c->at - name > 31 ? NULL : find_reason(reasons, name, (size_t)(c->at - name));
	if (!reason) {
		c->bad = 1;
		return;
	}
	row->reason = reason->code;
	row->isa = (uint8_t)reason->isa;
	if (begins(c, " FAILED_VMENTRY")) {
		c->at += 15;
		row->reason |= 1u << 31;
	}
	expect(c, " rip 0x");
	row->rip = hex(c, 1, 16);
	parse_info(c, row);
	if (c->at != c->end)
		c->bad = 1;
}

static enum line_kind parse_body(struct cursor *c, const struct text_reasons *reasons, struct row *row)
{
	row->isa = 1;
	row->vcpu = -1;
	while (c->at < c->end && *c->at == ' ')
		c->at++;
	if (begins(c, "vcpu")) {
		const uint8_t *digits;

		expect(c, "vcpu ");
		row->vcpu = 0;
		for (digits = c->at; c->at < c->end && is_digit(*c->at) && c->at - digits < 5; c->at++)
			row->vcpu = 10 * row->vcpu + (*c->at - '0');
		if (c->at == digits || c->at - digits > 4)
			return LEFT_OVER;
		if (row->kind == EXIT)
			expect(c, " ");
		else if (c->at < c->end && *c->at != ' ' && *c->at != ',')
			return LEFT_OVER;
	}
	if (row->kind == EXIT)
		parse_exit(c, reasons, row);
	return c->bad ? LEFT_OVER : EVENT;
}

/* "name: body" or "system:name: body" after the time. */
static enum line_kind parse_event(struct cursor *c, const struct text_reasons *reasons, struct row *row)
{
	const uint8_t *first, *name, *last;
	int system = 0;

	for (first = c->at; c->at < c->end && *c->at == ' '; c->at++)
		;
	if (c->at == first)
		return LEFT_OVER;
	for (name = first = c->at; c->at < c->end && is_name(*c->at); c->at++)
		;
	if (c->at == first || is_digit(*first) || c->at == c->end || *c->at != ':')
		return LEFT_OVER;
	last = c->at++;
	if (c->at < c->end && *c->at != ' ') {
		system = 1;
		for (name = c->at; c->at < c->end && is_name(*c->at); c->at++)
			;
		if (c->at == name || is_digit(*name) || c->at == c->end || *c->at != ':')
			return LEFT_OVER;
		if (last - first != 3 || memcmp(first, "kvm", 3))
			system = 2;
		last = c->at++;
		if (c->at < c->end && *c->at != ' ')
			return LEFT_OVER;
	}
	if (!system && last - name == 3 && !memcmp(name, "kvm", 3))
		return LEFT_OVER; /* the name is cut */
	for (size_t i = 0; system != 2 && i < sizeof(EVENTS) / sizeof(*EVENTS); i++) {
		if (strlen(EVENTS[i].name) == (size_t)(last - name) && !memcmp(EVENTS[i].name, name, (size_t)(last - name))) {
			row->kind = EVENTS[i].kind;
			return parse_body(c, reasons, row);
		}
	}
	return memmem(first, (size_t)(c->end - first), "LOST", 4) ? LEFT_OVER : OTHER;
}

static enum line_kind parse_line(const uint8_t *start, const uint8_t *end, const struct text_reasons *reasons, struct row *row)
{
	const uint8_t *colon = start;

	while ((colon = memchr(colon, ':', (size_t)(end - colon))) != NULL) {
		int found = parse_prefix(start, colon, row);

		if (found < 0)
			return LEFT_OVER;
		if (found) {
			struct cursor body = { colon + 1, end, 0 };

			return parse_event(&body, reasons, row);
		}
		colon++;
	}
	return LEFT_OVER;
}

void lz_text(const uint8_t *text, uint64_t size, const struct text_reasons *reasons, struct text_result *result)
{
	const uint8_t *at = text, *end = text + size;

	result->events = result->others = result->left = result->lines = 0;
	while (at < end) {
		const uint8_t *newline = memchr(at, '\n', (size_t)(end - at));
		struct row row;

		if (!newline)
			newline = end;
		memset(&row, 0, sizeof(row));
		switch (parse_line(at, newline, reasons, &row)) {
		case EVENT:
			result->rows[result->events] = row;
			result->event_lines[result->events++] = result->lines;
			break;
		case OTHER:
			result->others++;
			break;
		case LEFT_OVER:
			result->leftovers[3 * result->left] = result->lines;
			result->leftovers[3 * result->left + 1] = (uint64_t)(at - text);
			result->leftovers[3 * result->left++ + 2] = (uint64_t)(newline - text);
			break;
		}
		result->lines++;
		at = newline + 1;
	}
}
