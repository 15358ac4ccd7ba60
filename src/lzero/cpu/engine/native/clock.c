/* The guest's clock: blocks of guest code executed, or the host's clock. */
#include "native.h"

#include <time.h>

uint64_t lz_host_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t raw_tsc(const struct lz_machine *m)
{
    if (m->s.host_clock) {
        unsigned __int128 ns = lz_host_ns() - m->s.host_start_ns;
        return m->s.tsc_base + (uint64_t)(ns * m->s.host_tsc_per_ns >> 32);
    }
    unsigned __int128 blocks = m->s.blocks + m->s.armed - m->s.budget;
    return m->s.tsc_base + (uint64_t)(blocks * m->s.tsc_per_block >> 16);
}

/* As RDTSC reads it: scaled, then offset (SDM 3C 26.3). */
uint64_t lz_tsc(struct lz_machine *m)
{
    uint64_t tsc = raw_tsc(m);
    if (m->s.tsc_multiplier != 1ull << 48)
        tsc = (uint64_t)((unsigned __int128)tsc * m->s.tsc_multiplier >> 48);
    return tsc + m->s.tsc_offset;
}

static void expire(struct lz_machine *m)
{
    /* Only ask: the engine leaves its chain of blocks here, and x86_cpu_exec_interrupt finds out why. */
    C32(interrupt_request) |= LZ_REQUEST;
    C32(icount_decr) |= 0xffff0000u;
}

/* The block is left before it begins and is counted when it comes again: how often it is left must not be seen in the
 * guest's time. An empty budget stays empty, which is how the end of it is known.
 *
 * All calls here down to the engine's own function must be jumps: that reads its return address to find the guest's RIP. */
static __attribute__((noinline, cold)) void leave_chain(void *uc, uint32_t in_delay_slot, struct lz_machine *m)
{
    if ((int64_t)m->s.budget < 0)
        expire(m);
    else
        m->s.budget++;
    lz_engine.helper_check_exit_request(uc, in_delay_slot);
}

static __attribute__((noinline, cold)) void other_engine(void *uc, uint32_t in_delay_slot)
{
    struct lz_machine *m = lz_lookup(uc);
    if (!m) {
        lz_engine.helper_check_exit_request(uc, in_delay_slot);
    } else if ((int64_t)--m->s.budget < 0 || (int32_t)*m->icount_decr < 0) {
        leave_chain(uc, in_delay_slot, m);
    }
}

/* The engine calls this at the head of every translated block: as few instructions as can be, and no stack frame. */
void helper_check_exit_request_x86_64(void *uc, uint32_t in_delay_slot)
{
    struct lz_machine *m = lz_current;
    if (__builtin_expect(uc != lz_current_uc, 0)) {
        other_engine(uc, in_delay_slot);
        return;
    }
    if (__builtin_expect(((int64_t)--m->s.budget | (int64_t)(int32_t)*m->icount_decr) < 0, 0))
        leave_chain(uc, in_delay_slot, m);
}

/* Emitted after every memory access, where a stop would execute a read-modify-write instruction twice. */
void check_exit_request_x86_64(void *tcg_context)
{
    (void)tcg_context;
}

static void require_tsc_allowed(struct lz_machine *m, uintptr_t retaddr)
{
    if ((E64(cr4) & 4) && (E32(hflags) & HF_CPL))
        lz_engine.raise_exception_err_ra(m->env, 13, 0, retaddr);
}

void cpu_svm_check_intercept_param_x86_64(void *env, uint32_t type, uint64_t param, uintptr_t retaddr);

void helper_rdtsc_x86_64(void *env)
{
    struct lz_machine *m = lz_of_env(env);
    if (!m) {
        lz_engine.helper_rdtsc(env);
        return;
    }
    require_tsc_allowed(m, LZ_RETADDR);
    cpu_svm_check_intercept_param_x86_64(env, TRAP_RDTSC, 0, LZ_RETADDR);
    uint64_t tsc = lz_tsc(m);
    REG(0) = (uint32_t)tsc;
    REG(2) = tsc >> 32;
}

void helper_rdtscp_x86_64(void *env)
{
    struct lz_machine *m = lz_of_env(env);
    if (!m) {
        lz_engine.helper_rdtscp(env);
        return;
    }
    require_tsc_allowed(m, LZ_RETADDR);
    cpu_svm_check_intercept_param_x86_64(env, TRAP_RDTSC, 1, LZ_RETADDR);
    uint64_t tsc = lz_tsc(m);
    REG(0) = (uint32_t)tsc;
    REG(2) = tsc >> 32;
    REG(1) = (uint32_t)m->s.tsc_aux;
}
