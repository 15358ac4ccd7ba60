/* Machines, and the engine's own functions. */
#include "native.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct lz_layout lz_layout;
struct lz_originals lz_engine;
struct lz_machine *lz_current;
void *lz_current_uc;
static struct lz_machine *machines[LZ_MAX_MACHINES];

const char lz_slot_names[] =
#define SLOT(name) #name "\0"
#include "slots.def"
#undef SLOT
    ;
const char lz_layout_names[] =
#define E(name) #name "\0"
#define C(name) #name "\0"
#include "layout.def"
#undef E
#undef C
    ;
const uint32_t lz_layout_count = sizeof(struct lz_layout) / sizeof(int32_t);

struct lz_machine *lz_lookup(const void *pointer)
{
    for (unsigned i = 0; i < LZ_MAX_MACHINES; i++) {
        struct lz_machine *m = machines[i];
        if (m && (m->uc == pointer || m->cpu == pointer || m->env == pointer))
            return m;
    }
    return 0;
}

/* Resolve the engine's functions; returns the first name that is missing, or null. */
const char *lz_bind(const char *library)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    if (!handle)
        return "the library itself";
#define X(result, name, ...) \
    *(void **)&lz_engine.name = dlsym(handle, #name "_x86_64"); \
    if (!lz_engine.name) \
        return #name;
    ORIGINALS
#undef X
    *(void **)&lz_engine.uc_emu_start = dlsym(handle, "uc_emu_start");
    *(void **)&lz_engine.uc_emu_stop = dlsym(handle, "uc_emu_stop");
    return lz_engine.uc_emu_start && lz_engine.uc_emu_stop ? 0 : "uc_emu_start";
}

void lz_set_layout(const int32_t *offsets)
{
    memcpy(&lz_layout, offsets, sizeof lz_layout);
}

struct lz_machine *lz_create(void *uc, void *cpu, void *env, lz_trap_fn trap)
{
    for (unsigned i = 0; i < LZ_MAX_MACHINES; i++) {
        if (machines[i])
            continue;
        struct lz_machine *m = calloc(1, sizeof *m);
        if (!m)
            return 0;
        m->uc = uc;
        m->cpu = cpu;
        m->env = env;
        m->trap = trap;
        m->icount_decr = &C32(icount_decr);
        m->s.msr_bitmap = ~0ull;
        machines[i] = m;
        return m;
    }
    return 0;
}

void lz_destroy(struct lz_machine *m)
{
    for (unsigned i = 0; i < LZ_MAX_MACHINES; i++)
        if (machines[i] == m)
            machines[i] = 0;
    if (lz_current == m)
        lz_current = 0, lz_current_uc = 0;
    lz_unwatch(m);
    free(m->code_pages);
    free(m);
}

int lz_add_region(struct lz_machine *m, uint64_t base, uint64_t size, void *host)
{
    if (m->region_count == LZ_MAX_REGIONS)
        return -1;
    m->regions[m->region_count++] = (struct lz_region){base, size, host};
    return 0;
}

void lz_set_vmcs(struct lz_machine *m, uint64_t *vmcs)
{
    m->vmcs = vmcs;
}

/* Enter the guest and stay until a trap handler asks to stop; returns the engine's error number. */
int lz_run(struct lz_machine *m)
{
    struct lz_machine *outer = lz_current;
    lz_current = m;
    lz_current_uc = m->uc;
    m->s.entry_pending = 1;
    C32(interrupt_request) |= LZ_REQUEST;
    lz_watch(m);
    __atomic_store_n(&m->running, true, __ATOMIC_RELEASE);
    int error = lz_engine.uc_emu_start(m->uc, E64(eip), 0, 0, 0);
    __atomic_store_n(&m->running, false, __ATOMIC_RELEASE);
    lz_current = outer;
    lz_current_uc = outer ? outer->uc : 0;
    return error;
}
