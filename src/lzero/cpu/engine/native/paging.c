/* Linear to host-physical translation: the guest's page tables (SDM 3A chapter 4) through EPT (3C 29.3). */
#include "native.h"
#include "vmcs_fields.h"

enum { READ = LZ_READ, WRITE = LZ_WRITE, FETCH = LZ_FETCH };
enum { PTE_P = 1, PTE_W = 2, PTE_U = 4, PTE_A = 0x20, PTE_D = 0x40, PTE_PS = 0x80 };
#define PTE_NX (1ull << 63)
#define PAGE_MASK (~0xfffull)
enum { MMU_KERNEL_SMAP = 0, MMU_USER = 1 };

enum fault { NO_FAULT, GUEST_PAGE_FAULT, GENERAL_PROTECTION, LEAVE };

struct access {
    struct lz_machine *m;
    uint64_t va;
    uint32_t kind;     /* READ, WRITE or FETCH */
    bool user;         /* made at CPL 3 */
    bool smap;         /* supervisor data access that SMAP restricts */
    uint32_t error;    /* page-fault error code */
    uint32_t trap;     /* trap code when the walk ends in LEAVE */
    uint64_t user_page; /* translation allows user accesses: selects the execute bit under MBEC */
};

struct ept_leaf {
    uint64_t hpa;
    uint32_t rights;
    bool dirty;
};

uint8_t *lz_host(const struct lz_machine *m, uint64_t hpa)
{
    for (uint32_t i = 0; i < m->region_count; i++)
        if (hpa - m->regions[i].base < m->regions[i].size)
            return m->regions[i].host + (hpa - m->regions[i].base);
    return 0;
}

static enum fault leave(struct access *a, uint32_t trap, uint64_t gpa, uint64_t qualification)
{
    a->trap = trap;
    a->m->s.gpa = gpa;
    a->m->s.gla = a->va;
    a->m->s.qualification = qualification;
    return LEAVE;
}

static uint64_t reserved_address_bits(const struct lz_machine *m)
{
    return 0x000fffffffffffffull & ~((1ull << m->s.maxphyaddr) - 1);
}

static bool ept_misconfigured(const struct lz_machine *m, uint64_t entry, int shift, bool leaf)
{
    uint32_t rights = entry & 7, type = (entry >> 3) & 7;
    if ((rights & 3) == 2)
        return true;
    if (entry & reserved_address_bits(m))
        return true;
    if (leaf)
        return type == 2 || type == 3 || type == 7 || (shift > 12 && (entry & ((1ull << shift) - 1) & PAGE_MASK));
    return (entry & 0x78) || (shift >= 39 && (entry & PTE_PS));
}

static bool on_apic_page(const struct lz_machine *m, uint64_t hpa)
{
    return m->s.apic_access && (hpa & PAGE_MASK) == (m->s.apic_access & PAGE_MASK);
}

static bool log_dirty_page(struct access *a, uint64_t gpa)
{
    struct lz_machine *m = a->m;
    uint64_t index = m->vmcs[V_PML_INDEX] & 0xffff;
    if (index > 511)
        return false;
    uint8_t *log = lz_host(m, m->s.pml & PAGE_MASK);
    if (log)
        ((uint64_t *)log)[index] = gpa & PAGE_MASK;
    m->vmcs[V_PML_INDEX] = (index - 1) & 0xffff;
    return true;
}

/* Translate a guest-physical address; table says whether the access is to one of the guest's paging structures. */
static enum fault ept_walk(struct access *a, uint64_t gpa, uint32_t kind, bool table, struct ept_leaf *out)
{
    struct lz_machine *m = a->m;
    uint64_t eptp = m->s.eptp;
    if (!eptp) {
        *out = (struct ept_leaf){gpa, READ | WRITE | FETCH, true};
        if (on_apic_page(m, gpa))
            return leave(a, TRAP_APIC_ACCESS, gpa, kind | (table ? 0 : 0x100));
        return lz_host(m, gpa) ? NO_FAULT : leave(a, TRAP_UNBACKED, gpa, kind);
    }
    bool accessed_dirty = eptp & 0x40;
    if (table && accessed_dirty)
        kind |= WRITE;
    uint64_t wanted = kind == FETCH && m->s.mbec && a->user_page ? 0x400 : kind;
    uint64_t seen = ~0ull, address = eptp & 0x000ffffffffff000ull, *slots[5];
    int count = 0;
    for (int shift = (eptp >> 3 & 7) == 4 ? 48 : 39;; shift -= 9) {
        uint64_t *slot = (uint64_t *)lz_host(m, address + ((gpa >> shift) & 511) * 8);
        if (!slot)
            return leave(a, TRAP_UNBACKED, address, kind);
        uint64_t entry = *slot;
        bool leaf = shift == 12 || ((entry & PTE_PS) && shift <= 30);
        m->s.ept_entry = entry;
        if (!(entry & (m->s.mbec ? 0x407 : 7))) {
            seen = 0;
            goto violation;
        }
        if (ept_misconfigured(m, entry, shift, leaf))
            return leave(a, TRAP_EPT_MISCONFIG, gpa, 0);
        seen &= entry;
        slots[count++] = slot;
        if (leaf) {
            if ((seen & wanted) != wanted)
                goto violation;
            uint64_t offset = (1ull << shift) - 1;
            out->hpa = (entry & 0x000ffffffffff000ull & ~offset) | (gpa & offset);
            break;
        }
        address = entry & 0x000ffffffffff000ull;
    }
    out->rights = (seen & (READ | WRITE)) | ((m->s.mbec && a->user_page ? seen & 0x400 : seen & FETCH) ? FETCH : 0);
    out->dirty = true;
    if (accessed_dirty) {
        uint64_t *slot = slots[count - 1];
        if ((kind & WRITE) && !(*slot & 0x200)) {
            if (m->s.pml && !log_dirty_page(a, gpa))
                return leave(a, TRAP_PML_FULL, gpa, 0);
            *slot |= 0x200;
        }
        for (int i = 0; i < count; i++)
            *slots[i] |= 0x100;
        out->dirty = *slot & 0x200;
    }
    if (on_apic_page(m, out->hpa))
        return leave(a, TRAP_APIC_ACCESS, gpa, kind | (table ? 0 : 0x100));
    return lz_host(m, out->hpa) ? NO_FAULT : leave(a, TRAP_UNBACKED, out->hpa, kind);
violation:;
    uint64_t rights = (seen & 7) << 3 | (m->s.mbec && (seen & 0x400) ? 1u << 6 : 0);
    return leave(a, TRAP_EPT_VIOLATION, gpa, kind | rights | 0x80 | (table ? 0 : 0x100));
}

static enum fault read_entry(struct access *a, uint64_t gpa, int size, void **slot, uint64_t *entry)
{
    struct ept_leaf leaf;
    enum fault fault = ept_walk(a, gpa, READ, true, &leaf);
    if (fault)
        return fault;
    *slot = lz_host(a->m, leaf.hpa);
    *entry = size == 8 ? *(uint64_t *)*slot : *(uint32_t *)*slot;
    return NO_FAULT;
}

/* Set accessed or dirty bits; without EPT's own dirty bits this write needs write permission of its own. */
static enum fault mark_entry(struct access *a, uint64_t gpa, int size, void *slot, uint64_t bits)
{
    if (a->m->s.eptp && !(a->m->s.eptp & 0x40)) {
        struct ept_leaf leaf;
        enum fault fault = ept_walk(a, gpa, READ | WRITE, true, &leaf);
        if (fault)
            return fault;
    }
    if (size == 8)
        *(uint64_t *)slot |= bits;
    else
        *(uint32_t *)slot |= (uint32_t)bits;
    return NO_FAULT;
}

static enum fault note_walk(struct access *a, enum fault fault)
{
    a->m->s.walk_vector = fault == GUEST_PAGE_FAULT ? 14 : 13;
    a->m->s.walk_error = fault == GUEST_PAGE_FAULT ? a->error : 0;
    return fault;
}

static enum fault page_fault(struct access *a, uint32_t present_or_reserved)
{
    struct lz_machine *m = a->m;
    bool instruction_bit = (E64(efer) & 0x800 && E64(cr4) & 0x20) || E64(cr4) & (1u << 20);
    a->error = present_or_reserved | (a->kind == WRITE ? 2 : 0) | (a->user ? 4 : 0) |
               (a->kind == FETCH && instruction_bit ? 16 : 0);
    return note_walk(a, GUEST_PAGE_FAULT);
}

struct translation {
    uint64_t gpa;
    uint64_t size;
    uint32_t rights;
};

static uint32_t allowed_by_tables(struct access *a, uint64_t flags, uint64_t nx)
{
    struct lz_machine *m = a->m;
    bool user_page = flags & PTE_U;
    uint32_t rights = 0;
    if (a->user ? user_page : !(a->smap && user_page))
        rights |= READ;
    if ((rights & READ) && ((flags & PTE_W) || (!a->user && !(E64(cr0) & 0x10000))))
        rights |= WRITE;
    if (!nx && (a->user ? user_page : !(user_page && (E64(cr4) & (1u << 20)))))
        rights |= FETCH;
    return rights;
}

/* Walk 4-level, 5-level, PAE or 32-bit tables. */
static enum fault guest_walk(struct access *a, struct translation *t)
{
    struct lz_machine *m = a->m;
    bool long_mode = E64(efer) & 0x400, pae = E64(cr4) & 0x20, nxe = E64(efer) & 0x800;
    int size = pae ? 8 : 4, bits = pae ? 9 : 10, shift;
    uint64_t base, reserved = pae ? reserved_address_bits(m) | (nxe ? 0 : PTE_NX) : 0;
    if (long_mode) {
        shift = E64(cr4) & (1u << 12) ? 48 : 39;
        int64_t sign = (int64_t)a->va >> (shift + 8);
        if (sign != 0 && sign != -1)
            return note_walk(a, GENERAL_PROTECTION);
        base = E64(cr3) & 0x000ffffffffff000ull;
    } else if (pae) {
        uint64_t pdpte = (&m->s.pdpte0)[(a->va >> 30) & 3];
        if (!(pdpte & PTE_P))
            return page_fault(a, 0);
        base = pdpte & 0x000ffffffffff000ull;
        shift = 21;
        reserved |= 0x7ff0000000000000ull;
    } else {
        base = E64(cr3) & 0xfffff000;
        shift = 22;
    }
    uint64_t flags = PTE_W | PTE_U, nx = 0, entry, leaf_gpa;
    void *slot;
    for (;; shift -= bits) {
        leaf_gpa = base + ((a->va >> shift) & ((1u << bits) - 1)) * (unsigned)size;
        enum fault fault = read_entry(a, leaf_gpa, size, &slot, &entry);
        if (fault)
            return fault;
        if (!(entry & PTE_P))
            return page_fault(a, 0);
        bool large = (entry & PTE_PS) && shift > 12 && shift <= 30 && (pae || (E64(cr4) & 0x10));
        uint64_t bad = reserved;
        if (shift >= 39)
            bad |= PTE_PS;
        if (large && pae)
            bad |= ((1ull << shift) - 1) & 0x000fffffffffe000ull;
        if (large && !pae)
            bad |= 1u << 21;
        if (entry & bad)
            return page_fault(a, 9);
        flags &= entry;
        nx |= entry & PTE_NX;
        if (shift == 12 || large)
            break;
        if (!(entry & PTE_A) && (fault = mark_entry(a, leaf_gpa, size, slot, PTE_A)))
            return fault;
        base = entry & (pae ? 0x000ffffffffff000ull : 0xfffff000ull);
    }
    t->rights = allowed_by_tables(a, flags, pae ? nx : 0);
    if (!(t->rights & a->kind))
        return page_fault(a, 1);
    uint64_t wanted = PTE_A | (a->kind == WRITE ? PTE_D : 0);
    if ((entry & wanted) != wanted) {
        enum fault fault = mark_entry(a, leaf_gpa, size, slot, wanted);
        if (fault)
            return fault;
        entry |= wanted;
    }
    if (!(entry & PTE_D))
        t->rights &= ~(uint32_t)WRITE;
    uint64_t offset = (1ull << shift) - 1, frame = entry & 0x000ffffffffff000ull & ~offset;
    if (!pae) {
        frame = entry & 0xfffff000ull & ~offset;
        if (shift == 22)
            frame |= (entry & 0x1fe000ull) << 19;
    }
    t->gpa = frame | (a->va & offset);
    t->size = 1ull << shift;
    a->user_page = flags & PTE_U;
    return NO_FAULT;
}

static enum fault translate(struct access *a, struct translation *t, struct ept_leaf *leaf)
{
    struct lz_machine *m = a->m;
    if (E64(cr0) >> 31 & 1) {
        enum fault fault = guest_walk(a, t);
        if (fault)
            return fault;
    } else {
        *t = (struct translation){(uint32_t)a->va, 4096, READ | WRITE | FETCH};
    }
    return ept_walk(a, t->gpa, a->kind, false, leaf);
}

static _Noreturn void deliver_fault(struct access *a, enum fault fault, uintptr_t retaddr)
{
    struct lz_machine *m = a->m;
    if (fault == LEAVE)
        lz_leave(m, a->trap, m->s.qualification, retaddr);
    unsigned vector = fault == GUEST_PAGE_FAULT ? 14 : 13;
    if (fault == GENERAL_PROTECTION) {
        if (m->in_delivery) {
            vector = 12; /* of what delivery touches only the stack may lie at a non-canonical address */
        } else if (a->kind != FETCH) {
            m->s.fault_address = a->va;
            lz_leave(m, TRAP_NON_CANONICAL, 0, retaddr); /* #SS or #GP: the instruction decides */
        }
    }
    if (fault == GUEST_PAGE_FAULT) {
        m->s.fault_address = a->va;
        if (lz_exception_exits(m, 14, a->error))
            lz_leave(m, TRAP_EXCEPTION + 14, a->error, retaddr); /* CR2 keeps its value: SDM 3C 28.1 */
        E64(cr2) = a->va;
    }
    lz_engine.raise_exception_err_ra(m->env, (int)vector, fault == GUEST_PAGE_FAULT ? (int)a->error : 0, retaddr);
    __builtin_unreachable();
}

/* While translating a block the engine may fetch from the next page although the guest would not get there:
 * run one instruction at a time until the fetch is of the instruction at RIP itself. */
static void retry_single_step(struct lz_machine *m, uint64_t va, uintptr_t retaddr)
{
    uint64_t cs_base = *(uint64_t *)((char *)m->env + lz_layout.segs + lz_layout.segment_stride + 8);
    uint64_t rip = E64(eip) + (E32(hflags) & HF_CS64 ? 0 : cs_base);
    if (retaddr || m->stepping || ((va ^ rip) & PAGE_MASK) == 0)
        return;
    m->stepping = true;
    E32(hflags) |= HF_TF;
    C32(exception_index) = 0xffffffffu;
    lz_engine.cpu_loop_exit(m->cpu);
}

/* The engine reads the stack for a far return or IRET at CPL 3 as the supervisor would, which SMAP forbids: it is an
 * access of the user. Near RSP no descriptor table or TSS is looked for. */
static bool is_users_stack(struct lz_machine *m, uint64_t va)
{
    if (m->in_delivery || (E32(hflags) & HF_CPL) != 3)
        return false;
    uint64_t ss_base = *(uint64_t *)((char *)m->env + lz_layout.segs + 2 * lz_layout.segment_stride + 8);
    uint64_t top = REG(4) + (E32(hflags) & HF_CS64 ? 0 : ss_base);
    return va - top < 0x80;
}

bool x86_cpu_tlb_fill_x86_64(void *cpu, uint64_t va, int size, int kind, int mmu_idx, bool probe, uintptr_t retaddr)
{
    struct lz_machine *m = lz_of_cpu(cpu);
    if (!m)
        return lz_engine.x86_cpu_tlb_fill(cpu, va, size, kind, mmu_idx, probe, retaddr);
    struct access a = {.m = m, .va = va, .kind = 1u << kind, .user = mmu_idx == MMU_USER,
                       .smap = mmu_idx == MMU_KERNEL_SMAP};
    if (!a.user && is_users_stack(m, va))
        a.user = true, a.smap = false;
    struct translation t;
    struct ept_leaf leaf;
    enum fault fault = translate(&a, &t, &leaf);
    if (fault) {
        if (probe)
            return false;
        if (a.kind == FETCH)
            retry_single_step(m, va, retaddr);
        deliver_fault(&a, fault, retaddr);
    }
    m->s.tlb_fills++;
    uint32_t rights = t.rights & leaf.rights;
    if (!leaf.dirty && a.kind != WRITE)
        rights &= ~(uint32_t)WRITE;
    /* Pages that were only read or written stay non-executable in the engine's TLB: stores to them are ten times faster. */
    if (a.kind != FETCH)
        rights &= ~(uint32_t)FETCH;
    lz_engine.tlb_set_page(cpu, va & PAGE_MASK, leaf.hpa & PAGE_MASK, (int)rights, mmu_idx, t.size);
    return true;
}

/* Walks on behalf of L0 leave the description of the last failed access alone. */
struct kept_fault {
    uint64_t gpa, gla, qualification, ept_entry;
};

static struct kept_fault keep_fault(const struct lz_machine *m)
{
    return (struct kept_fault){m->s.gpa, m->s.gla, m->s.qualification, m->s.ept_entry};
}

static void restore_fault(struct lz_machine *m, struct kept_fault kept)
{
    m->s.gpa = kept.gpa;
    m->s.gla = kept.gla;
    m->s.qualification = kept.qualification;
    m->s.ept_entry = kept.ept_entry;
}

/* Translate as an access of this kind would, without faulting; ~0 where it would fault: walk_trap then says with which
 * trap, or if it is 0, walk_vector and walk_error with which exception. */
uint64_t lz_translate(struct lz_machine *m, uint64_t linear, uint32_t kind)
{
    struct access a = {.m = m, .va = linear, .kind = kind & (READ | WRITE | FETCH), .user = kind & LZ_AS_USER,
                       .smap = kind & LZ_UNDER_SMAP};
    struct translation t;
    struct ept_leaf leaf;
    struct kept_fault kept = keep_fault(m);
    enum fault fault = translate(&a, &t, &leaf);
    m->s.walk_trap = fault == LEAVE ? a.trap : 0;
    if (!fault || !(kind & LZ_REPORT))
        restore_fault(m, kept);
    return fault ? ~0ull : leaf.hpa;
}

/* The guest's own tables only: the guest-physical address, whatever EPT says about it; ~0 for a page fault. */
uint64_t lz_walk_guest(struct lz_machine *m, uint64_t linear, uint32_t kind)
{
    struct access a = {.m = m, .va = linear, .kind = kind};
    struct translation t = {.gpa = (uint32_t)linear};
    struct kept_fault kept = keep_fault(m);
    bool failed = (E64(cr0) >> 31 & 1) && guest_walk(&a, &t);
    restore_fault(m, kept);
    return failed ? ~0ull : t.gpa;
}

/* The byte at a linear address as this kind of access would find it; null where it would fault. */
uint8_t *lz_peek(struct lz_machine *m, uint64_t linear, uint32_t kind)
{
    uint64_t hpa = lz_translate(m, linear, kind);
    return hpa == ~0ull ? 0 : lz_host(m, hpa);
}

/* A guest-physical address through EPT, for a read; ~0 where EPT does not allow it. */
uint64_t lz_translate_physical(struct lz_machine *m, uint64_t gpa)
{
    struct access a = {.m = m, .va = gpa, .kind = READ};
    struct ept_leaf leaf;
    struct kept_fault kept = keep_fault(m);
    bool failed = ept_walk(&a, gpa, READ, false, &leaf);
    restore_fault(m, kept);
    return failed ? ~0ull : leaf.hpa;
}
