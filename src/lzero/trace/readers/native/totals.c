/*
 * Totals of exits, as lzero.trace.assemble and lzero.trace.aggregates make them from the same events.
 *
 * One VCPU is one host thread (or one VCPU number where the recording has no threads). An exit's level is known when the next one
 * comes, and whether it was reflected when the next one's level is.
 */
#include <stdlib.h>
#include <string.h>

#include "events.h"

enum { KIND_EXIT = 1, KIND_ENTRY, KIND_NESTED_VMEXIT, KIND_NESTED_INJECT, KIND_NESTED_VMENTER };
enum { RUNS_UNKNOWN, RUNS_L1, RUNS_L2 };
enum { ISA_VMX = 1, ISA_SVM = 2, SVM_BIT = 0x10000 };

struct exit {
	uint64_t time;
	uint64_t duration;
	uint32_t code;
	uint8_t runs_before; /* what ran when it happened, by the nested events before it */
	uint8_t instruction; /* a VMX or SVM instruction, which only L1 executes while L2 may be thought to run */
	uint8_t nested;
	uint8_t injected;
	uint8_t entered;
	uint8_t valid;
};

struct vcpu {
	int64_t key;
	uint64_t last_time;
	struct exit now;
	int64_t parent; /* reason of the last exit of L2, -1 without one */
	uint32_t unsure; /* 1 + index of the exit totals of an L2 exit whose reflection is not known yet */
	uint8_t runs;
};

/* An open-addressing map from a 64-bit key to an index. */
struct map {
	uint64_t *keys;
	uint32_t *values; /* index + 1, 0: empty */
	uint64_t size;
	uint64_t used;
};

struct totals {
	struct map vcpu_of;
	struct vcpu *vcpus;
	uint64_t vcpu_count, vcpu_room;
	struct map exit_of;
	struct exit_totals *exits;
	uint64_t exit_count, exit_room;
	struct map caused_of;
	struct caused_totals *caused;
	uint64_t caused_count, caused_room;
	uint64_t backwards, backwards_at;
};

static uint64_t slot_of(const struct map *map, uint64_t key)
{
	uint64_t slot = key * 0x9e3779b97f4a7c15u >> 20 & (map->size - 1);

	while (map->values[slot] && map->keys[slot] != key)
		slot = (slot + 1) & (map->size - 1);
	return slot;
}

static int grow_map(struct map *map)
{
	struct map larger = {.size = map->size ? map->size * 2 : 256, .used = map->used};

	larger.keys = calloc(larger.size, sizeof(*larger.keys));
	larger.values = calloc(larger.size, sizeof(*larger.values));
	if (!larger.keys || !larger.values) {
		free(larger.keys);
		free(larger.values);
		return -1;
	}
	for (uint64_t old = 0; old < map->size; old++) {
		if (!map->values[old])
			continue;
		uint64_t slot = slot_of(&larger, map->keys[old]);
		larger.keys[slot] = map->keys[old];
		larger.values[slot] = map->values[old];
	}
	free(map->keys);
	free(map->values);
	*map = larger;
	return 0;
}

/* Index of a key, adding it with the next index when it is new; -1 without memory. */
static int64_t index_of(struct map *map, uint64_t key, uint64_t next)
{
	uint64_t slot;

	if (map->used * 2 >= map->size && grow_map(map))
		return -1;
	slot = slot_of(map, key);
	if (!map->values[slot]) {
		map->keys[slot] = key;
		map->values[slot] = (uint32_t)next + 1;
		map->used++;
	}
	return (int64_t)map->values[slot] - 1;
}

/* Make room for one more element of an array; -1 without memory. */
static int reserve(void **array, uint64_t count, uint64_t *room, size_t size)
{
	void *larger;

	if (count < *room)
		return 0;
	larger = realloc(*array, (*room ? *room * 2 : 64) * size);
	if (!larger)
		return -1;
	*array = larger;
	*room = *room ? *room * 2 : 64;
	return 0;
}

static struct vcpu *find_vcpu(struct totals *totals, const struct row *row)
{
	int64_t key = row->thread >= 0 ? row->thread : -1 - (int64_t)row->vcpu;
	int64_t index;

	if (reserve((void **)&totals->vcpus, totals->vcpu_count, &totals->vcpu_room, sizeof(*totals->vcpus)))
		return NULL;
	index = index_of(&totals->vcpu_of, (uint64_t)key, totals->vcpu_count);
	if (index < 0)
		return NULL;
	if ((uint64_t)index == totals->vcpu_count) {
		totals->vcpus[index] = (struct vcpu){.key = key, .parent = -1};
		totals->vcpu_count++;
	}
	return &totals->vcpus[index];
}

static int64_t find_exit(struct totals *totals, uint32_t level, uint32_t code)
{
	int64_t index;

	if (reserve((void **)&totals->exits, totals->exit_count, &totals->exit_room, sizeof(*totals->exits)))
		return -1;
	index = index_of(&totals->exit_of, (uint64_t)level << 32 | code, totals->exit_count);
	if (index >= 0 && (uint64_t)index == totals->exit_count) {
		totals->exits[index] = (struct exit_totals){.level = level, .code = code};
		totals->exit_count++;
	}
	return index;
}

static int add_caused(struct totals *totals, uint32_t parent, uint32_t code)
{
	int64_t index;

	if (reserve((void **)&totals->caused, totals->caused_count, &totals->caused_room, sizeof(*totals->caused)))
		return -1;
	index = index_of(&totals->caused_of, (uint64_t)parent << 32 | code, totals->caused_count);
	if (index < 0)
		return -1;
	if ((uint64_t)index == totals->caused_count) {
		totals->caused[index] = (struct caused_totals){.parent = parent, .code = code};
		totals->caused_count++;
	}
	totals->caused[index].count++;
	return 0;
}

/* Count the exit that is complete now. */
static int settle(struct totals *totals, struct vcpu *vcpu)
{
	struct exit *exit = &vcpu->now;
	uint32_t level = exit->nested || (exit->runs_before == RUNS_L2 && !exit->instruction) ? 2 : 1;
	int64_t index = find_exit(totals, level, exit->code);
	struct exit_totals *sum;

	if (index < 0)
		return -1;
	sum = &totals->exits[index];
	sum->count++;
	if (exit->duration) {
		if (!sum->timed || exit->duration < sum->min_ns)
			sum->min_ns = exit->duration;
		if (exit->duration > sum->max_ns)
			sum->max_ns = exit->duration;
		sum->timed++;
		sum->total_ns += exit->duration;
		sum->squares += (double)exit->duration * (double)exit->duration;
	}
	if (vcpu->unsure && level == 1)
		totals->exits[vcpu->unsure - 1].reflected++;
	vcpu->unsure = 0;
	if (level == 2) {
		if (exit->injected)
			sum->reflected++;
		else
			vcpu->unsure = (uint32_t)index + 1;
		vcpu->parent = exit->code & 0xffff;
	} else if (vcpu->parent >= 0) {
		return add_caused(totals, (uint32_t)vcpu->parent | (exit->code & SVM_BIT), exit->code);
	}
	return 0;
}

static int is_vmx_instruction(uint32_t reason)
{
	return (reason >= 19 && reason <= 27) || reason == 50 || reason == 53;
}

static int is_svm_instruction(uint32_t reason)
{
	return reason == 0x80 || (reason >= 0x82 && reason <= 0x85);
}

static int one(struct totals *totals, const struct row *row)
{
	struct vcpu *vcpu = find_vcpu(totals, row);

	if (!vcpu)
		return -1;
	if (row->time_ns < vcpu->last_time && !totals->backwards++)
		totals->backwards_at = row->time_ns;
	vcpu->last_time = row->time_ns;
	switch (row->kind) {
	case KIND_EXIT:
		if (vcpu->now.valid && settle(totals, vcpu))
			return -1;
		vcpu->now = (struct exit){
			.time = row->time_ns,
			.code = (row->reason & 0xffff) | (row->isa == ISA_SVM ? SVM_BIT : 0),
			.runs_before = vcpu->runs,
			.instruction = row->isa == ISA_VMX ? is_vmx_instruction(row->reason & 0xffff) : is_svm_instruction(row->reason & 0xffff),
			.valid = 1,
		};
		break;
	case KIND_ENTRY:
		if (!vcpu->now.entered && row->time_ns > vcpu->now.time)
			vcpu->now.duration = row->time_ns - vcpu->now.time;
		vcpu->now.entered = 1;
		break;
	case KIND_NESTED_VMEXIT:
		vcpu->now.nested = 1;
		break;
	case KIND_NESTED_INJECT:
		vcpu->now.injected = 1;
		vcpu->runs = RUNS_L1;
		break;
	case KIND_NESTED_VMENTER:
		vcpu->runs = RUNS_L2;
		break;
	}
	return 0;
}

struct totals *lz_totals_new(void)
{
	return calloc(1, sizeof(struct totals));
}

void lz_totals_free(struct totals *totals)
{
	struct map *maps[] = {&totals->vcpu_of, &totals->exit_of, &totals->caused_of};

	for (unsigned i = 0; i < 3; i++) {
		free(maps[i]->keys);
		free(maps[i]->values);
	}
	free(totals->vcpus);
	free(totals->exits);
	free(totals->caused);
	free(totals);
}

int lz_totals_feed(struct totals *totals, const struct row *rows, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		if (one(totals, &rows[i]))
			return -1;
	return 0;
}

int lz_totals_finish(struct totals *totals)
{
	for (uint64_t i = 0; i < totals->vcpu_count; i++) {
		struct vcpu *vcpu = &totals->vcpus[i];
		if (vcpu->now.valid && settle(totals, vcpu))
			return -1;
		vcpu->now.valid = 0;
	}
	return 0;
}

uint64_t lz_totals_exits(const struct totals *totals, struct exit_totals *out, uint64_t room)
{
	if (room >= totals->exit_count && totals->exit_count)
		memcpy(out, totals->exits, totals->exit_count * sizeof(*out));
	return totals->exit_count;
}

uint64_t lz_totals_caused(const struct totals *totals, struct caused_totals *out, uint64_t room)
{
	if (room >= totals->caused_count && totals->caused_count)
		memcpy(out, totals->caused, totals->caused_count * sizeof(*out));
	return totals->caused_count;
}

uint64_t lz_totals_backwards(const struct totals *totals, uint64_t *first_time)
{
	*first_time = totals->backwards_at;
	return totals->backwards;
}
