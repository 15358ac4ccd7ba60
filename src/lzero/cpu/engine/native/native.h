/* lzero's native side: what must run inside the engine's execution loop.
 *
 * libunicorn binds its calls to its own exported functions through the dynamic symbol table, so a library loaded
 * before it with RTLD_GLOBAL takes their place. The functions here do so for the few that decide when guest code
 * traps, how an address is translated and how an event is delivered; for CPUs that are not lzero's they call the
 * engine's own. Policy stays in Python: this side knows which traps are wanted, not what they mean.
 */
#ifndef LZERO_NATIVE_H
#define LZERO_NATIVE_H
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lz_slots {
#define SLOT(name) uint64_t name;
#include "slots.def"
#undef SLOT
};

struct lz_layout {
#define E(name) int32_t name;
#define C(name) int32_t name;
#include "layout.def"
#undef E
#undef C
};

struct lz_region {
    uint64_t base, size;
    uint8_t *host;
};

enum { LZ_MAX_REGIONS = 8, LZ_MAX_MACHINES = 256 };

/* What the Python callback asks for after a trap. */
enum lz_action { LZ_ENTER = 0, LZ_STOP = 1 };

typedef uint32_t (*lz_trap_fn)(uint32_t code);

struct lz_machine {
    struct lz_slots s;
    void *uc, *cpu, *env;
    uint32_t *icount_decr;
    uint64_t *vmcs;
    lz_trap_fn trap;
    struct lz_region regions[LZ_MAX_REGIONS];
    uint32_t region_count;
    bool in_delivery, stepping, sti_shadow, mtf_pending;
    uint64_t int_eip;
    uint8_t *code_pages;
    uint64_t code_page_count, last_store_page;
    uint64_t loaded_space, dr6_before;
    uint64_t loaded_cr0, loaded_cr3, loaded_cr4, loaded_efer;
    bool look, running, watched, watch_ends;
    pthread_t watcher;
    pthread_mutex_t watch_lock;
    pthread_cond_t watch_end;
};

#define LZ_HIDDEN __attribute__((visibility("hidden")))
extern LZ_HIDDEN struct lz_layout lz_layout;
extern LZ_HIDDEN struct lz_machine *lz_current; /* the machine that runs, and its engine */
extern LZ_HIDDEN void *lz_current_uc;
LZ_HIDDEN struct lz_machine *lz_lookup(const void *pointer);

static inline struct lz_machine *lz_of_env(const void *env)
{
    struct lz_machine *m = lz_current;
    return m && m->env == env ? m : lz_lookup(env);
}

static inline struct lz_machine *lz_of_cpu(const void *cpu)
{
    struct lz_machine *m = lz_current;
    return m && m->cpu == cpu ? m : lz_lookup(cpu);
}

#define E64(name) (*(uint64_t *)((char *)m->env + lz_layout.name))
#define E32(name) (*(uint32_t *)((char *)m->env + lz_layout.name))
#define C32(name) (*(uint32_t *)((char *)m->cpu + lz_layout.name))
#define REG(n) (((uint64_t *)m->env)[n])

/* Trap codes: the engine's own intercept numbers where it has one, ours from 0x200. */
enum lz_trap_code {
    TRAP_CR_READ = 0x00, TRAP_CR_WRITE = 0x10, TRAP_DR_READ = 0x20, TRAP_DR_WRITE = 0x30, TRAP_EXCEPTION = 0x40,
    TRAP_INTERCEPT_BASE = 0x60, TRAP_RDTSC = 0x6e, TRAP_SOFTWARE_INTERRUPT = 0x75, TRAP_IO = 0x7b, TRAP_MSR = 0x7c, TRAP_SHUTDOWN = 0x7f,
    TRAP_EXPIRED = 0x200, TRAP_INTERRUPT_WINDOW, TRAP_NMI_WINDOW, TRAP_MTF, TRAP_EPT_VIOLATION, TRAP_EPT_MISCONFIG,
    TRAP_APIC_ACCESS, TRAP_PML_FULL, TRAP_UNBACKED, TRAP_RDRAND, TRAP_XSETBV, TRAP_SOFTWARE_EXCEPTION, TRAP_KICK,
    TRAP_LOOK, TRAP_NON_CANONICAL,
};

/* QEMU's hflags, checked by the self-test at start. */
enum { HF_CPL = 3, HF_INHIBIT_IRQ = 1 << 3, HF_TF = 1 << 8, HF_LMA = 1 << 14, HF_CS64 = 1 << 15, HF_CS32 = 1 << 4, HF_GUEST = 1 << 21,
       HF_SMAP = 1 << 23, HF2_GIF = 1 << 0, HF2_NMI = 1 << 2 };
#define RFLAGS_RF 0x10000ull
enum { DR6_CAUSES = 0x600f, DR6_BS = 0x4000, DR7_GD = 0x2000 };
/* Kinds of access, and how a walk on somebody's behalf is made: at CPL 3, restricted by SMAP, telling why it failed. */
enum { LZ_READ = 1, LZ_WRITE = 2, LZ_FETCH = 4, LZ_AS_USER = 8, LZ_UNDER_SMAP = 16, LZ_REPORT = 32 };
enum { LZ_REQUEST = 2 /* CPU_INTERRUPT_HARD: a bit that no other part of the engine sets by itself */ };
enum { CC_MASK = 0x8d5, CC_OP_EFLAGS = 1 };

/* The engine's own functions, resolved when a machine is made. */
#define ORIGINALS \
    X(void, cpu_restore_state, void *, uintptr_t, bool) X(void, cpu_loop_exit, void *) \
    X(void, cpu_loop_exit_restore, void *, uintptr_t) X(void, raise_exception_err_ra, void *, int, int, uintptr_t) \
    X(void, x86_cpu_do_interrupt, void *) X(void, do_interrupt_x86_hardirq, void *, int, int) \
    X(void, x86_update_hflags, void *) X(uint32_t, cpu_cc_compute_all, void *, int) X(void, tlb_flush, void *) \
    X(void, tlb_set_page, void *, uint64_t, uint64_t, int, int, uint64_t) \
    X(void, helper_check_exit_request, void *, uint32_t) X(void, check_exit_request, void *) \
    X(void, helper_syscall, void *, int) X(bool, x86_cpu_tlb_fill, void *, uint64_t, int, int, int, bool, uintptr_t) \
    X(bool, x86_cpu_exec_interrupt, void *, int) X(void, cpu_svm_check_intercept_param, void *, uint32_t, uint64_t, uintptr_t) \
    X(void, helper_rdtsc, void *) X(void, helper_rdtscp, void *) X(void, helper_single_step, void *) \
    X(uint64_t, helper_read_crN, void *, int) X(void, helper_write_crN, void *, int, uint64_t) \
    X(uint64_t, helper_rdrand, void *) X(void, helper_xsetbv, void *, uint32_t, uint64_t) X(void, helper_sti, void *) \
    X(uint64_t, helper_inb, void *, uint32_t) X(uint64_t, helper_inw, void *, uint32_t) X(uint64_t, helper_inl, void *, uint32_t) \
    X(void, helper_outb, void *, uint32_t, uint32_t) X(void, helper_outw, void *, uint32_t, uint32_t) \
    X(void, helper_outl, void *, uint32_t, uint32_t) \
    X(uint32_t, x86_ldl_phys, void *, uint64_t) X(void, x86_stl_phys, void *, uint64_t, uint32_t) \
    X(void, tlb_set_dirty, void *, uint64_t) X(void, tb_invalidate_phys_page_fast, void *, void *, uint64_t, int, uintptr_t) \
    X(void, tlb_protect_code, void *, uint64_t) X(void, tlb_unprotect_code, void *, uint64_t) \
    X(void, cpu_x86_update_dr7, void *, uint32_t) X(void, breakpoint_handler, void *) \
    X(void, helper_bpt_io, void *, uint32_t, uint32_t, uint64_t) \
    X(void, helper_wrmsr, void *) X(void, helper_rechecking_single_step, void *) X(uint64_t, qemu_ram_addr_from_host, void *, void *) X(void, tb_invalidate_phys_range, void *, uint64_t, uint64_t)

struct lz_originals {
#define X(result, name, ...) result (*name)(__VA_ARGS__);
    ORIGINALS
#undef X
    int (*uc_emu_start)(void *, uint64_t, uint64_t, uint64_t, size_t);
    int (*uc_emu_stop)(void *);
};
extern LZ_HIDDEN struct lz_originals lz_engine;

/* state.c */
uint64_t lz_read_rflags(struct lz_machine *m);
void lz_write_rflags(struct lz_machine *m, uint64_t value);
void lz_save_guest(struct lz_machine *m);
void lz_load_guest(struct lz_machine *m);
/* trap.c */
_Noreturn void lz_leave(struct lz_machine *m, uint32_t code, uint64_t param, uintptr_t retaddr);
bool lz_exception_exits(const struct lz_machine *m, unsigned vector, uint32_t error);
/* paging.c */
uint8_t *lz_host(const struct lz_machine *m, uint64_t hpa);
uint8_t *lz_peek(struct lz_machine *m, uint64_t linear, uint32_t kind);
/* watch.c */
LZ_HIDDEN void lz_watch(struct lz_machine *m);
LZ_HIDDEN void lz_unwatch(struct lz_machine *m);
/* clock.c */
uint64_t lz_tsc(struct lz_machine *m);
uint64_t lz_host_ns(void);

#define LZ_RETADDR ((uintptr_t)__builtin_return_address(0))
#endif
