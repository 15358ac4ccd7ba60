/*
 * Host trace events at the speed of memory: decode perf's records, order rows, add them up.
 *
 * Each function does what a Python module of lzero.trace does in numpy, faster; the tests hold the two equal. Nothing here trusts
 * its input further than the numbers that say how long the arrays are: a record that does not hold together ends a decode, and
 * the caller deals with it.
 */
#ifndef LZERO_EVENTS_H
#define LZERO_EVENTS_H

#include <stddef.h>
#include <stdint.h>

/* lzero.trace.readers.events.EVENT_FIELDS, packed. */
struct row {
	uint8_t kind;
	uint8_t isa;
	int16_t cpu;
	int32_t thread;
	int32_t vcpu;
	uint64_t time_ns;
	uint32_t reason;
	uint64_t rip;
	uint64_t info1;
	uint64_t info2;
	uint32_t intr_info;
	uint32_t error_code;
} __attribute__((packed));

enum { COLUMN_VCPU, COLUMN_REASON, COLUMN_ISA, COLUMN_RIP, COLUMN_INFO1, COLUMN_INFO2, COLUMN_INTR_INFO,
       COLUMN_ERROR_CODE, COLUMNS };

/* How one tracepoint's bytes become columns: place and size by column, size 0 for a column it does not have. */
struct plan {
	uint32_t event;
	uint32_t kind;
	uint32_t size;
	uint32_t offset[COLUMNS];
	uint32_t width[COLUMNS];
};

/* Where the parts of a sample are, in words from the record's start; -1 for parts it does not have. */
struct layout {
	int32_t tid;
	int32_t time;
	int32_t cpu;
	int32_t variable;
	uint32_t has_read;
	uint32_t read_format;
	uint32_t has_callchain;
};

/* Where a decode stands. The first part lives on from block to block. */
struct decode {
	uint64_t newest;          /* time of the newest event */
	uint64_t newest_at_round; /* what that was at the end of the last round */
	uint64_t safe_until;      /* no event before this time can come any more */
	/* The rest is set by each call. */
	uint64_t end;             /* word at which decoding stopped */
	uint64_t rows;            /* rows written */
	uint64_t others;          /* samples of events that nothing is known about */
	uint64_t notes;           /* records noted for the caller: their words are in the array of notes */
	uint32_t stopped;         /* 1: the record at `end` does not hold together, or is for the caller; 0: the block ended */
};

void lz_decode(const uint64_t *words, uint64_t count, const struct layout *layout, const struct plan *plans, uint32_t plan_count,
	       struct row *rows, uint64_t *notes, uint64_t note_room, struct decode *state);

/* Where the parts of a ring-buffer page are, in bytes. */
struct page_layout {
	uint32_t page_size;
	uint32_t timestamp;
	uint32_t commit;
	uint32_t data;
};

enum { PAGE_DAMAGED = 1, PAGE_MISSED = 2 };

struct page_note {
	uint64_t page;
	uint64_t number; /* events missed before the page, 0 if the kernel did not say */
	uint32_t kind;
	uint32_t unused;
};

struct page_decode {
	uint64_t reached; /* time stamp of the last event */
	uint64_t rows;
	uint64_t others;
	uint64_t shorts;      /* events with fewer bytes than their format says; counted as others too */
	uint64_t first_short; /* byte of the first of them */
	uint64_t notes;       /* notes there were; those beyond the room are not written */
};

void lz_pages(const uint8_t *pages, uint64_t count, const struct page_layout *layout, const struct plan *plans, uint32_t plan_count,
	      int32_t cpu, struct row *rows, struct page_note *notes, uint64_t note_room, struct page_decode *state);

/* Rows in order of time, equal times as they came. Returns 0, or -1 without memory. */
int lz_order(const struct row *rows, uint64_t count, struct row *ordered);

struct totals;
struct exit_totals {
	uint32_t level;
	uint32_t code; /* reason, bit 16 for SVM */
	uint64_t count;
	uint64_t timed;
	uint64_t total_ns;
	uint64_t min_ns;
	uint64_t max_ns;
	uint64_t reflected;
	double squares;
};
struct caused_totals {
	uint32_t parent;
	uint32_t code;
	uint64_t count;
};

struct totals *lz_totals_new(void);
void lz_totals_free(struct totals *totals);
int lz_totals_feed(struct totals *totals, const struct row *rows, uint64_t count);
int lz_totals_finish(struct totals *totals);
uint64_t lz_totals_exits(const struct totals *totals, struct exit_totals *out, uint64_t room);
uint64_t lz_totals_caused(const struct totals *totals, struct caused_totals *out, uint64_t room);
uint64_t lz_totals_backwards(const struct totals *totals, uint64_t *first_time);

/* Digest of the sources that the library was built from. */
const char *lz_digest(void);

#endif
