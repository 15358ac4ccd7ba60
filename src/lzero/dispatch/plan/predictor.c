/*
 * Counts the mispredicted conditional branches of one dispatcher over a recorded order of exits.
 *
 * Built on demand by predictor.py.  The Python side flattens the dispatcher to one path of (branch, taken) per distinct
 * reason; this side only replays them.  Two predictors: gshare (also in Python, where the two are tested equal) and a
 * small TAGE: a bimodal base and six tagged tables with geometric history lengths.  Neither is any real CPU's predictor.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define GSHARE_BITS 14
#define HANDLER_BITS 2

static uint32_t branch_hash(uint32_t branch)
{
	return branch * 2654435761u;
}

struct gshare {
	uint8_t counter[1 << GSHARE_BITS];
	uint32_t history;
};

static int gshare_step(struct gshare *g, uint32_t branch, int taken)
{
	uint32_t slot = ((branch_hash(branch) >> 16) ^ g->history) & ((1 << GSHARE_BITS) - 1);
	uint8_t *counter = &g->counter[slot];
	int wrong = (*counter >= 2) != taken;

	if (taken && *counter < 3)
		++*counter;
	if (!taken && *counter > 0)
		--*counter;
	g->history = g->history << 1 | (uint32_t)taken;
	return wrong;
}

#define TABLES 6
#define ROW_BITS 10
#define TAG_BITS 9
#define BASE_BITS 12
#define RING 256

static const int history_length[TABLES] = { 4, 9, 18, 36, 72, 144 };

struct folded {
	uint32_t value;
	int bits, length;
};

struct entry {
	uint16_t tag;
	int8_t counter;
	uint8_t useful;
};

struct tage {
	uint8_t base[1 << BASE_BITS];
	struct entry table[TABLES][1 << ROW_BITS];
	struct folded row[TABLES], tag_a[TABLES], tag_b[TABLES];
	uint8_t ring[RING];
	uint32_t head, random;
};

static void fold_push(struct folded *f, uint32_t in, uint32_t out)
{
	f->value = f->value << 1 | in;
	f->value ^= out << (f->length % f->bits);
	f->value ^= f->value >> f->bits;
	f->value &= (1u << f->bits) - 1;
}

static void tage_push(struct tage *t, uint32_t bit)
{
	t->head = (t->head + 1) % RING;
	t->ring[t->head] = (uint8_t)bit;
	for (int i = 0; i < TABLES; i++) {
		uint32_t out = t->ring[(t->head + RING - (uint32_t)history_length[i]) % RING];

		fold_push(&t->row[i], bit, out);
		fold_push(&t->tag_a[i], bit, out);
		fold_push(&t->tag_b[i], bit, out);
	}
}

static void tage_init(struct tage *t)
{
	memset(t, 0, sizeof(*t));
	memset(t->base, 1, sizeof(t->base));
	for (int i = 0; i < TABLES; i++) {
		t->row[i] = (struct folded){ 0, ROW_BITS, history_length[i] };
		t->tag_a[i] = (struct folded){ 0, TAG_BITS, history_length[i] };
		t->tag_b[i] = (struct folded){ 0, TAG_BITS - 1, history_length[i] };
	}
	t->random = 12345;
}

static int tage_step(struct tage *t, uint32_t branch, int taken)
{
	uint32_t pc = branch_hash(branch) >> 8, row[TABLES], tag[TABLES];
	int provider = -1, alternate = -1;
	uint8_t *base = &t->base[pc & ((1 << BASE_BITS) - 1)];

	for (int i = 0; i < TABLES; i++) {
		row[i] = (pc ^ pc >> (ROW_BITS - i) ^ t->row[i].value) & ((1 << ROW_BITS) - 1);
		tag[i] = (pc ^ t->tag_a[i].value ^ t->tag_b[i].value << 1) & ((1 << TAG_BITS) - 1);
	}
	for (int i = TABLES - 1; i >= 0; i--) {
		if (t->table[i][row[i]].tag != tag[i])
			continue;
		if (provider < 0) {
			provider = i;
		} else {
			alternate = i;
			break;
		}
	}
	int other = alternate >= 0 ? t->table[alternate][row[alternate]].counter >= 0 : *base >= 2;
	int guess = provider >= 0 ? t->table[provider][row[provider]].counter >= 0 : *base >= 2;
	int wrong = guess != taken;

	if (provider >= 0) {
		struct entry *e = &t->table[provider][row[provider]];

		if (taken && e->counter < 3)
			e->counter++;
		if (!taken && e->counter > -4)
			e->counter--;
		if (guess != other) {
			if (!wrong && e->useful < 3)
				e->useful++;
			if (wrong && e->useful > 0)
				e->useful--;
		}
	} else {
		if (taken && *base < 3)
			++*base;
		if (!taken && *base > 0)
			--*base;
	}
	if (wrong && provider < TABLES - 1) {
		t->random = t->random * 1664525u + 1013904223u;
		int first = provider + 1 + (t->random >> 30 == 0 && provider < TABLES - 2), done = 0;

		for (int i = first; i < TABLES && !done; i++) {
			struct entry *e = &t->table[i][row[i]];

			if (!e->useful) {
				*e = (struct entry){ (uint16_t)tag[i], (int8_t)(taken ? 0 : -1), 0 };
				done = 1;
			}
		}
		for (int i = first; i < TABLES && !done; i++)
			t->table[i][row[i]].useful--;
	}
	tage_push(t, (uint32_t)taken);
	return wrong;
}

/*
 * order[n]: index of each exit's path.  Path i is branch[start[i]..start[i + 1]), each 2 * number + taken.
 * label[i] is pushed into the history after path i: the handler's address is part of the path that CPUs remember.
 * Returns mispredictions of the exits from `warm` on, or -1 without memory.
 */
int64_t lzero_replay(int model, const int32_t *order, int64_t n, int64_t warm, const int32_t *start,
		     const int32_t *branch, const int32_t *label)
{
	int64_t wrong = 0;
	struct tage *t = model == 1 ? malloc(sizeof(*t)) : NULL;
	struct gshare *g = model == 0 ? calloc(1, sizeof(*g)) : NULL;

	if (!t && !g)
		return -1;
	if (t)
		tage_init(t);
	for (int64_t i = 0; i < n; i++) {
		int32_t path = order[i];

		for (int32_t k = start[path]; k < start[path + 1]; k++) {
			uint32_t number = (uint32_t)branch[k] >> 1;
			int miss = t ? tage_step(t, number, branch[k] & 1) : gshare_step(g, number, branch[k] & 1);

			wrong += miss & (i >= warm);
		}
		for (int bit = 0; bit < HANDLER_BITS; bit++) {
			uint32_t in = branch_hash((uint32_t)label[path]) >> (20 + bit) & 1;

			if (t)
				tage_push(t, in);
			else
				g->history = g->history << 1 | in;
		}
	}
	free(t);
	free(g);
	return wrong;
}
