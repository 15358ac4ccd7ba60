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
