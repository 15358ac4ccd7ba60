/* Guest state between the engine's CPU structure and a VMCS (SDM 3C 27.3.2 loading, 28.3 saving). */
#include "native.h"
#include "vmcs_fields.h"

struct segment {
    uint32_t selector, pad;
    uint64_t base;
    uint32_t limit, flags;
};

enum { UNUSABLE = 1 << 16, DESCRIPTOR_PRESENT = 1 << 15, DESCRIPTOR_DPL = 3 << 13 };
enum { SEGMENT_LDTR = 6, SEGMENT_TR = 7 };

static struct segment *segment(struct lz_machine *m, unsigned index)
{
    if (index == SEGMENT_LDTR)
        return (struct segment *)((char *)m->env + lz_layout.ldt);
    if (index == SEGMENT_TR)
        return (struct segment *)((char *)m->env + lz_layout.tr);
    return (struct segment *)((char *)m->env + lz_layout.segs + (int32_t)index * lz_layout.segment_stride);
}

uint64_t lz_read_rflags(struct lz_machine *m)
{
    uint32_t op = E32(cc_op);
    uint64_t status = op == CC_OP_EFLAGS ? E64(cc_src) : lz_engine.cpu_cc_compute_all(m->env, (int)op);
    return (E64(eflags) & ~(uint64_t)(CC_MASK | 0x400)) | (status & CC_MASK) | (E32(df) & 0x400) | 2;
}

void lz_write_rflags(struct lz_machine *m, uint64_t value)
{
    E64(cc_src) = value & CC_MASK;
    E32(cc_op) = CC_OP_EFLAGS;
    E32(df) = value & 0x400 ? 0xffffffffu : 1;
    E64(eflags) = (value & ~(uint64_t)(CC_MASK | 0x400)) | 2;
}

static void save_segments(struct lz_machine *m)
{
    uint64_t *v = m->vmcs;
    for (unsigned i = 0; i < 8; i++) {
        const struct segment *s = segment(m, i);
        bool usable = s->flags & DESCRIPTOR_PRESENT;
        if (i == SEGMENT_LDTR)
            usable = usable && (s->selector & ~3u);
        v[V_GUEST_ES_SELECTOR + i] = s->selector & 0xffff;
        v[V_GUEST_ES_BASE + i] = s->base;
        v[V_GUEST_ES_LIMIT + i] = s->limit;
        v[V_GUEST_ES_ACCESS_RIGHTS + i] = ((s->flags >> 8) & 0xf0ff) | (usable || i == SEGMENT_TR ? 0 : UNUSABLE);
    }
    v[V_GUEST_TR_ACCESS_RIGHTS] |= 2; /* busy, which the engine notes in the descriptor in memory only */
}

static void load_segments(struct lz_machine *m)
{
    const uint64_t *v = m->vmcs;
    for (unsigned i = 0; i < 8; i++) {
        struct segment *s = segment(m, i);
        uint32_t rights = (uint32_t)v[V_GUEST_ES_ACCESS_RIGHTS + i], flags = (rights & 0xf0ff) << 8;
        if (rights & UNUSABLE) /* the engine takes CPL from SS.DPL even then */
            flags &= DESCRIPTOR_DPL;
        if (i == SEGMENT_TR) /* its TSS is marked busy in memory only; see save_segments */
            flags &= ~(uint32_t)(2 << 8);
        s->selector = (uint32_t)v[V_GUEST_ES_SELECTOR + i];
        s->base = v[V_GUEST_ES_BASE + i];
        s->limit = (uint32_t)v[V_GUEST_ES_LIMIT + i];
        s->flags = flags;
    }
}

void lz_save_guest(struct lz_machine *m)
{
    uint64_t *v = m->vmcs;
    const struct segment *gdt = (struct segment *)((char *)m->env + lz_layout.gdt);
    const struct segment *idt = (struct segment *)((char *)m->env + lz_layout.idt);
    save_segments(m);
    v[V_GUEST_GDTR_BASE] = gdt->base;
    v[V_GUEST_GDTR_LIMIT] = gdt->limit;
    v[V_GUEST_IDTR_BASE] = idt->base;
    v[V_GUEST_IDTR_LIMIT] = idt->limit;
    v[V_GUEST_CR0] = E64(cr0);
    v[V_GUEST_CR3] = E64(cr3);
    v[V_GUEST_CR4] = E64(cr4);
    v[V_GUEST_RSP] = REG(4);
    v[V_GUEST_RIP] = E64(eip);
    v[V_GUEST_RFLAGS] = lz_read_rflags(m);
    v[V_GUEST_DR7] = E64(dr7);
    v[V_GUEST_IA32_EFER] = E64(efer);
    v[V_GUEST_IA32_PAT] = E64(pat);
    v[V_GUEST_IA32_SYSENTER_CS] = E32(sysenter_cs);
    v[V_GUEST_IA32_SYSENTER_ESP] = E64(sysenter_esp);
    v[V_GUEST_IA32_SYSENTER_EIP] = E64(sysenter_eip);
    v[V_GUEST_PDPTE0] = m->s.pdpte0;
    v[V_GUEST_PDPTE1] = m->s.pdpte1;
    v[V_GUEST_PDPTE2] = m->s.pdpte2;
    v[V_GUEST_PDPTE3] = m->s.pdpte3;
    v[V_GUEST_INTERRUPTIBILITY_STATE] =
        (E32(hflags) & HF_INHIBIT_IRQ ? (m->sti_shadow ? 1 : 2) : 0) | (E32(hflags2) & HF2_NMI ? 8 : 0);
    v[V_GUEST_ACTIVITY_STATE] = 0;
    m->loaded_cr0 = E64(cr0);
    m->loaded_cr3 = E64(cr3);
    m->loaded_cr4 = E64(cr4);
    m->loaded_efer = E64(efer);
}

static bool translation_changed(const struct lz_machine *m, const uint64_t *v)
{
    const uint64_t cr0_bits = 0x80010001, cr4_bits = 0x3010b0 | (1u << 12) | (1u << 22), efer_bits = 0xc00;
    return m->s.space != m->loaded_space || m->loaded_cr3 != v[V_GUEST_CR3] ||
           ((m->loaded_cr0 ^ v[V_GUEST_CR0]) & cr0_bits) || ((m->loaded_cr4 ^ v[V_GUEST_CR4]) & cr4_bits) ||
           ((m->loaded_efer ^ v[V_GUEST_IA32_EFER]) & efer_bits);
}

void lz_load_guest(struct lz_machine *m)
{
    const uint64_t *v = m->vmcs;
    struct segment *gdt = (struct segment *)((char *)m->env + lz_layout.gdt);
    struct segment *idt = (struct segment *)((char *)m->env + lz_layout.idt);
    bool flush = translation_changed(m, v);
    load_segments(m);
    gdt->base = v[V_GUEST_GDTR_BASE];
    gdt->limit = (uint32_t)v[V_GUEST_GDTR_LIMIT];
    idt->base = v[V_GUEST_IDTR_BASE];
    idt->limit = (uint32_t)v[V_GUEST_IDTR_LIMIT];
    E64(cr0) = v[V_GUEST_CR0];
    E64(cr3) = v[V_GUEST_CR3];
    E64(cr4) = v[V_GUEST_CR4];
    E64(efer) = v[V_GUEST_IA32_EFER];
    E64(pat) = v[V_GUEST_IA32_PAT];
    E32(sysenter_cs) = (uint32_t)v[V_GUEST_IA32_SYSENTER_CS];
    E64(sysenter_esp) = v[V_GUEST_IA32_SYSENTER_ESP];
    E64(sysenter_eip) = v[V_GUEST_IA32_SYSENTER_EIP];
    m->s.pdpte0 = v[V_GUEST_PDPTE0];
    m->s.pdpte1 = v[V_GUEST_PDPTE1];
    m->s.pdpte2 = v[V_GUEST_PDPTE2];
    m->s.pdpte3 = v[V_GUEST_PDPTE3];
    if (E64(dr7) != v[V_GUEST_DR7])
        lz_engine.cpu_x86_update_dr7(m->env, (uint32_t)v[V_GUEST_DR7]);
    REG(4) = v[V_GUEST_RSP];
    E64(eip) = v[V_GUEST_RIP];
    lz_write_rflags(m, v[V_GUEST_RFLAGS]);
    E32(hflags) &= ~(uint32_t)(HF_SMAP | HF_INHIBIT_IRQ);
    lz_engine.x86_update_hflags(m->env);
    uint64_t blocking = v[V_GUEST_INTERRUPTIBILITY_STATE];
    m->sti_shadow = blocking & 1;
    E32(hflags) |= HF_GUEST | (v[V_GUEST_CR4] >> 21 & 1 ? HF_SMAP : 0) | (blocking & 3 ? HF_INHIBIT_IRQ : 0) |
                   (m->s.mtf ? HF_TF : 0);
    E32(hflags2) = (E32(hflags2) & ~(uint32_t)HF2_NMI) | HF2_GIF | (blocking & 8 ? HF2_NMI : 0);
    if (flush)
        lz_engine.tlb_flush(m->cpu);
    m->loaded_space = m->s.space;
}
