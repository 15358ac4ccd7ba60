/* Stores into pages that hold translated code.
 *
 * The engine lets later stores skip its check after the first store to a page that is not mapped executable, although
 * translated code may remain on it. Here the check stays on while any does.
 */
#include "native.h"

#include <stdlib.h>
#include <string.h>

static void set_code(struct lz_machine *m, uint64_t ram_address, uint8_t value)
{
    uint64_t page = ram_address >> 12;
    if (page >= m->code_page_count) {
        uint64_t wanted = (page | 0xffff) + 1;
        uint8_t *grown = realloc(m->code_pages, wanted);
        if (!grown)
            abort();
        memset(grown + m->code_page_count, 0, wanted - m->code_page_count);
        m->code_pages = grown;
        m->code_page_count = wanted;
    }
    m->code_pages[page] = value;
}

static bool holds_code(const struct lz_machine *m, uint64_t first, uint64_t last)
{
    for (uint64_t page = first >> 12; page <= last >> 12 && page < m->code_page_count; page++)
        if (m->code_pages[page])
            return true;
    return false;
}

/* Physical memory was written from outside the guest: forget what was translated from there. The range lies in one
 * region. */
void lz_code_changed(struct lz_machine *m, uint64_t hpa, uint64_t size)
{
    uint8_t *host = lz_host(m, hpa);
    if (!host || !size)
        return;
    uint64_t start = lz_engine.qemu_ram_addr_from_host(m->uc, host);
    if (start != ~0ull && holds_code(m, start, start + size - 1))
        lz_engine.tb_invalidate_phys_range(m->uc, start, start + size);
}

void tlb_protect_code_x86_64(void *uc, uint64_t ram_address)
{
    struct lz_machine *m = lz_lookup(uc);
    if (m)
        set_code(m, ram_address, 1);
    lz_engine.tlb_protect_code(uc, ram_address);
}

void tlb_unprotect_code_x86_64(void *uc, uint64_t ram_address)
{
    struct lz_machine *m = lz_lookup(uc);
    if (m)
        set_code(m, ram_address, 0);
    lz_engine.tlb_unprotect_code(uc, ram_address);
}

void tb_invalidate_phys_page_fast_x86_64(void *uc, void *collection, uint64_t start, int length, uintptr_t retaddr)
{
    struct lz_machine *m = lz_lookup(uc);
    if (m)
        m->last_store_page = start >> 12;
    lz_engine.tb_invalidate_phys_page_fast(uc, collection, start, length, retaddr);
}

void tlb_set_dirty_x86_64(void *cpu, uint64_t address)
{
    const struct lz_machine *m = lz_of_cpu(cpu);
    if (m && m->last_store_page < m->code_page_count && m->code_pages[m->last_store_page])
        return;
    lz_engine.tlb_set_dirty(cpu, address);
}
