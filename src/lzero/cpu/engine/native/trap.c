/* When guest code leaves for Python, and how events are delivered on the way back. */
#include "native.h"
#include "vmcs_fields.h"

#include <stdlib.h>

enum { EVENT_VALID = 1u << 31, EVENT_HAS_ERROR = 1u << 11 };
enum { EXTERNAL_INTERRUPT = 0, NMI = 2, HARDWARE_EXCEPTION = 3, SOFTWARE_INTERRUPT = 4, PRIVILEGED_EXCEPTION = 5, SOFTWARE_EXCEPTION = 6 };
enum { ENGINE_VMEXIT = 0x100 };

static bool has_error_code(unsigned vector)
{
    return (0x00227d00u >> vector) & 1; /* #DF #TS #NP #SS #GP #PF #AC #CP */
}

bool lz_exception_exits(const struct lz_machine *m, unsigned vector, uint32_t error)
{
    bool selected = m->s.exception_bitmap >> vector & 1;
    if (vector == 14 && (error & m->s.pf_mask) != m->s.pf_match)
        selected = !selected;
    return selected;
}

_Noreturn void lz_leave(struct lz_machine *m, uint32_t code, uint64_t param, uintptr_t retaddr)
{
    if (retaddr)
        lz_engine.cpu_restore_state(m->cpu, retaddr, true);
    m->s.trap_param = param;
    C32(exception_index) = ENGINE_VMEXIT + code;
    E32(exception_is_int) = 0; /* else the engine moves RIP past an INT n whose delivery failed */
    E32(old_exception) = 0xffffffffu;
    lz_engine.cpu_loop_exit(m->cpu);
    __builtin_unreachable();
}

/* --- entry: load state, deliver the event --------------------------------------------------------------------- */

/* An error code of a fault met in delivery: the engine counts gates of 16 bytes and leaves EXT out (SDM 3A 6.13). */
static uint32_t delivery_error(const struct lz_machine *m, unsigned vector, uint32_t error)
{
    if (!m->in_delivery || vector < 10 || vector > 13)
        return error;
    uint32_t type = m->s.delivering >> 8 & 7;
    if ((error & 2) && (E32(hflags) & HF_LMA))
        error = ((error & ~7u) >> 1 & ~7u) | (error & 7);
    return error | (type != SOFTWARE_INTERRUPT && type != SOFTWARE_EXCEPTION);
}

/* Whether an exception is a fault, that is, leaves RIP on the instruction and sets RF in the saved RFLAGS. */
static bool is_fault(struct lz_machine *m, unsigned vector)
{
    if (vector == 1)
        return !(E64(dr6) & DR6_BS); /* instruction breakpoints and general detect */
    return vector != 2 && vector != 3 && vector != 4 && vector != 8 && vector != 18;
}

static void set_pending_exception(struct lz_machine *m, unsigned vector)
{
    bool contributory = vector == 0 || (vector >= 10 && vector <= 13) || vector == 14 || vector == 8;
    E32(old_exception) = contributory ? vector : 0xffffffffu;
}

/* Through the IDT, by the engine's own code; a fault on the way comes back as an exception of its own. */
static void deliver(struct lz_machine *m, uint32_t event, uint32_t error, uint64_t length)
{
    unsigned vector = event & 0xff, type = event >> 8 & 7;
    bool software = type == SOFTWARE_INTERRUPT || type == SOFTWARE_EXCEPTION;
    m->s.delivering = event;
    m->s.delivering_error = error;
    m->s.delivering_length = length;
    m->in_delivery = true;
    if (type == EXTERNAL_INTERRUPT || type == NMI) {
        E32(old_exception) = 0xffffffffu;
        if (type == NMI)
            E32(hflags2) |= HF2_NMI;
        lz_engine.do_interrupt_x86_hardirq(m->env, (int)vector, 1);
    } else {
        if (!software)
            set_pending_exception(m, vector);
        C32(exception_index) = vector;
        E32(error_code) = error;
        E32(exception_is_int) = software;
        E64(exception_next_eip) = E64(eip) + length;
        m->int_eip = E64(eip);
        if (type == PRIVILEGED_EXCEPTION) /* INT1: as software, but without the check of the gate's privilege */
            E64(eip) += length;
        lz_engine.x86_cpu_do_interrupt(m->cpu);
        E32(exception_is_int) = 0;
    }
    m->in_delivery = false;
    m->s.delivering = 0;
    E32(old_exception) = 0xffffffffu;
    E32(hflags) &= ~(uint32_t)HF_INHIBIT_IRQ;
    if (m->s.mtf) { /* SDM 3C 26.5.2: the exit comes before the handler's first instruction */
        m->mtf_pending = true;
        C32(interrupt_request) |= LZ_REQUEST;
        C32(icount_decr) |= 0xffff0000u;
    }
}

static void request_windows(struct lz_machine *m)
{
    if (m->s.want_interrupt_window || m->s.want_nmi_window || m->s.kick || (int64_t)m->s.budget < 0) {
        C32(interrupt_request) |= LZ_REQUEST;
        C32(icount_decr) |= 0xffff0000u;
    }
}

static void enter(struct lz_machine *m)
{
    lz_load_guest(m);
    uint32_t event = (uint32_t)m->s.entry_event;
    request_windows(m);
    if (event & EVENT_VALID) {
        m->s.entry_event = 0;
        deliver(m, event, (uint32_t)m->s.entry_error, m->s.entry_length);
    } else if (!(E64(dr7) & 0xff)) {
        E64(eflags) &= ~RFLAGS_RF; /* without breakpoints it does nothing, but code would be translated anew for it */
    }
}

/* The bytes at RIP, for the decoder; what cannot be fetched reads as zero. */
static void fetch_instruction(struct lz_machine *m)
{
    const char *cs = (char *)m->env + lz_layout.segs + lz_layout.segment_stride;
    uint32_t hflags = E32(hflags);
    uint64_t linear = E64(eip) + (hflags & HF_CS64 ? 0 : *(const uint64_t *)(cs + 8));
    if (!(hflags & HF_CS64))
        linear = (uint32_t)linear;
    uint8_t bytes[16] = {0};
    uint32_t kind = LZ_FETCH | ((hflags & HF_CPL) == 3 ? LZ_AS_USER : 0);
    const uint8_t *first = lz_peek(m, linear, kind);
    unsigned in_page = 0x1000 - (linear & 0xfff);
    if (first) {
        unsigned count = in_page < 15 ? in_page : 15;
        __builtin_memcpy(bytes, first, count);
        const uint8_t *second = count < 15 ? lz_peek(m, linear + count, kind) : 0;
        if (second)
            __builtin_memcpy(bytes + count, second, 15 - count);
    }
    __builtin_memcpy(&m->s.instruction_low, bytes, 16);
    m->s.code_bits = hflags & HF_CS64 ? 64 : hflags & HF_CS32 ? 32 : 16;
}

static void trap(struct lz_machine *m, uint32_t code)
{
    m->s.traps++;
    m->in_delivery = m->mtf_pending = false;
    if ((m->s.delivering >> 8 & 7) == PRIVILEGED_EXCEPTION)
        E64(eip) = m->int_eip;
    lz_save_guest(m);
    if (code < TRAP_EXPIRED || code == TRAP_EPT_VIOLATION || code == TRAP_EPT_MISCONFIG || code == TRAP_APIC_ACCESS ||
        code >= TRAP_RDRAND)
        fetch_instruction(m);
    uint32_t action = m->trap(code);
    m->s.delivering = 0;
    if (action == LZ_ENTER) {
        enter(m);
    } else {
        m->s.entry_pending = 1;
        lz_engine.uc_emu_stop(m->uc);
    }
}

/* --- what the engine reports ------------------------------------------------------------------------------------ */

static bool is_software_exception(const struct lz_machine *m, uint32_t vector)
{
    uint64_t length = E64(exception_next_eip) - m->int_eip;
    return (vector == 3 || vector == 4) && length == 1;
}

static void software_interrupt(struct lz_machine *m, uint32_t vector)
{
    uint64_t length = E64(exception_next_eip) - m->int_eip;
    bool exception = is_software_exception(m, vector);
    E64(eip) = m->int_eip; /* the engine moved it past the instruction; a fault in delivery is reported at it */
    uint32_t type = exception ? SOFTWARE_EXCEPTION : SOFTWARE_INTERRUPT;
    uint32_t event = EVENT_VALID | type << 8 | vector;
    if (exception && (m->s.exception_bitmap >> vector & 1)) {
        m->s.trap_param = event | length << 32;
        trap(m, TRAP_SOFTWARE_EXCEPTION);
        return;
    }
    deliver(m, event, 0, length);
}

static void exception(struct lz_machine *m, uint32_t vector)
{
    if (E32(exception_is_int)) {
        E32(exception_is_int) = 0;
        software_interrupt(m, vector);
        return;
    }
    if (vector == 8 && (m->s.exception_bitmap >> 8 & 1)) {
        m->s.delivering = 0; /* SDM 3C 28.2.4: a double fault that exits is not recorded as met in delivery */
        m->s.trap_param = 0;
        trap(m, TRAP_EXCEPTION + 8);
        return;
    }
    m->s.native_exceptions++;
    uint32_t event = EVENT_VALID | HARDWARE_EXCEPTION << 8 | vector | (has_error_code(vector) ? EVENT_HAS_ERROR : 0);
    uint32_t error = delivery_error(m, vector, E32(error_code));
    if (is_fault(m, vector))
        E64(eflags) |= RFLAGS_RF;
    deliver(m, event, error, 0);
}

/* UC_HOOK_INTR: every exception, and every intercept as 0x100 + code. */
void lz_on_interrupt(void *uc, uint32_t number, void *user)
{
    struct lz_machine *m = user;
    (void)uc;
    if (m->stepping) {
        m->stepping = false;
        if (!(E64(eflags) & HF_TF) && !m->s.mtf)
            E32(hflags) &= ~(uint32_t)HF_TF;
    }
    if (number < ENGINE_VMEXIT)
        exception(m, number);
    else
        trap(m, number - ENGINE_VMEXIT);
}

bool x86_cpu_exec_interrupt_x86_64(void *cpu, int request)
{
    struct lz_machine *m = lz_of_cpu(cpu);
    if (!m)
        return lz_engine.x86_cpu_exec_interrupt(cpu, request);
    C32(interrupt_request) &= ~(uint32_t)LZ_REQUEST;
    if (m->s.entry_pending) {
        m->s.entry_pending = 0;
        enter(m);
        return true;
    }
    if (m->mtf_pending) {
        trap(m, TRAP_MTF);
        return true;
    }
    if (__atomic_exchange_n(&m->look, false, __ATOMIC_ACQUIRE) && m->trap(TRAP_LOOK) != LZ_ENTER) {
        trap(m, TRAP_LOOK);
        return true;
    }
    bool inhibited = E32(hflags) & HF_INHIBIT_IRQ;
    if (m->s.kick) {   /* first: a kick arms an empty budget, and what expires then would only kick again */
        trap(m, TRAP_KICK);
    } else if ((int64_t)m->s.budget < 0) {
        trap(m, TRAP_EXPIRED);
    } else if (m->s.want_nmi_window && !inhibited && !(E32(hflags2) & HF2_NMI)) {
        trap(m, TRAP_NMI_WINDOW);
    } else if (m->s.want_interrupt_window && !inhibited && (E64(eflags) & 0x200)) {
        trap(m, TRAP_INTERRUPT_WINDOW);
    } else {
        /* Keep the request: the engine looks again whenever an instruction may have opened the window. */
        if (m->s.want_nmi_window || m->s.want_interrupt_window)
            C32(interrupt_request) |= LZ_REQUEST;
        return false;
    }
    return true;
}

/* The engine gives up on a task register that holds no TSS; the processor raises #TS (SDM 3A 6.15). */
void cpu_abort_x86_64(void *cpu, const char *format, ...)
{
    struct lz_machine *m = lz_of_cpu(cpu);
    if (!m)
        abort();
    (void)format;
    const uint32_t *tr = (const uint32_t *)((char *)m->env + lz_layout.tr);
    lz_engine.raise_exception_err_ra(m->env, 10, (int)(*tr & 0xfffc), 0);
}

/* --- instructions ------------------------------------------------------------------------------------------------ */

static bool msr_exits(const struct lz_machine *m, uint32_t index, uint64_t write)
{
    const uint8_t *bitmap = m->s.msr_bitmap == ~0ull ? 0 : lz_host(m, m->s.msr_bitmap);
    if (!bitmap || (index >= 0x2000 && (index < 0xc0000000u || index >= 0xc0002000u)))
        return true;
    uint32_t offset = (write ? 0x800 : 0) + (index >= 0xc0000000u ? 0x400 : 0) + (index & 0x1fff) / 8;
    return bitmap[offset] >> (index & 7) & 1;
}

static bool intercepted(struct lz_machine *m, uint32_t type, uint64_t param)
{
    if (type < 0x10)
        return m->s.cr_read >> type & 1;
    if (type < 0x20)
        return m->s.cr_write >> (type - 0x10) & 1;
    if (type < 0x40) {
        uint64_t exiting = type < 0x30 ? m->s.dr_read : m->s.dr_write;
        return (exiting >> (type & 7) & 1) || (E64(dr7) & DR7_GD);
    }
    if (type < 0x60) {
        uint32_t vector = type - TRAP_EXCEPTION;
        if (vector == 6)
            return true; /* instructions the engine does not know, the VMX ones among them */
        if (vector == 14 || vector > 31)
            return false; /* decided where the page fault was found */
        if (vector == 13 && m->s.dr_read && !m->in_delivery)
            return true; /* MOV DR exits before its privilege check: SDM 3C 26.1.3 */
        return lz_exception_exits(m, vector, (uint32_t)param);
    }
    if (type == TRAP_SOFTWARE_INTERRUPT) {
        m->int_eip = E64(eip);
        return false;
    }
    if (type == TRAP_MSR)
        return msr_exits(m, (uint32_t)REG(1), param);
    if (type >= 0x60 && type < 0xa0)
        return m->s.intercept >> (type - 0x60) & 1;
    return true;
}

/* The causes of a debug exception. A VM exit leaves DR6 alone (SDM 3C 28.1); delivery adds them and clears DR7.GD. */
static uint64_t take_debug_causes(struct lz_machine *m, bool exits)
{
    uint64_t causes = E64(dr6) & DR6_CAUSES;
    if (exits)
        E64(dr6) = m->dr6_before;
    else
        E64(dr6) |= m->dr6_before & DR6_CAUSES & ~0xfull;
    return causes;
}

/* INVEPT, INVVPID or INVPCID at RIP: the engine takes the whole opcode range for SSE and raises #NM for it under CR0.TS. */
static bool at_invalidation(struct lz_machine *m)
{
    const char *cs = (char *)m->env + lz_layout.segs + lz_layout.segment_stride;
    uint64_t linear = E64(eip) + (E32(hflags) & HF_CS64 ? 0 : *(const uint64_t *)(cs + 8));
    const uint8_t *byte = lz_peek(m, linear, LZ_FETCH);
    while (byte && (*byte == 0x66 || *byte == 0x67 || (*byte & 0xe7) == 0x26 || (*byte & 0xfe) == 0x64 ||
                    ((E32(hflags) & HF_CS64) && (*byte & 0xf0) == 0x40)))
        byte = lz_peek(m, ++linear, LZ_FETCH);
    const uint8_t *second = byte ? lz_peek(m, linear + 1, LZ_FETCH) : 0, *third = second ? lz_peek(m, linear + 2, LZ_FETCH) : 0;
    return third && *byte == 0x0f && *second == 0x38 && *third >= 0x80 && *third <= 0x82;
}

void cpu_svm_check_intercept_param_x86_64(void *env, uint32_t type, uint64_t param, uintptr_t retaddr)
{
    struct lz_machine *m = lz_of_env(env);
    if (!m) {
        lz_engine.cpu_svm_check_intercept_param(env, type, param, retaddr);
        return;
    }
    if (type == TRAP_EXCEPTION + 14)
        return;
    if (type == TRAP_EXCEPTION + 7 && at_invalidation(m))
        type = TRAP_EXCEPTION + 6;
    bool exits = intercepted(m, type, param);
    if (type >= TRAP_EXCEPTION && type < TRAP_EXCEPTION + 32)
        param = delivery_error(m, type - TRAP_EXCEPTION, (uint32_t)param);
    if (type == TRAP_EXCEPTION + 1)
        param = take_debug_causes(m, exits);
    if (exits)
        lz_leave(m, type, param, retaddr);
}

/* The engine is about to note the causes of a debug exception in DR6. */
static void expect_debug_causes(struct lz_machine *m)
{
    m->dr6_before = E64(dr6);
    E64(dr6) &= ~(uint64_t)DR6_CAUSES;
}

void breakpoint_handler_x86_64(void *cpu)
{
    struct lz_machine *m = lz_of_cpu(cpu);
    if (m)
        expect_debug_causes(m);
    lz_engine.breakpoint_handler(cpu);
    if (m)
        E64(dr6) = m->dr6_before;
}

void helper_bpt_io_x86_64(void *env, uint32_t port, uint32_t size, uint64_t next)
{
    struct lz_machine *m = lz_of_env(env);
    if (m)
        expect_debug_causes(m);
    lz_engine.helper_bpt_io(env, port, size, next);
    if (m)
        E64(dr6) = m->dr6_before;
}

void helper_single_step_x86_64(void *env)
{
    struct lz_machine *m = lz_of_env(env);
    if (!m || !(m->stepping || m->s.mtf)) {
        if (m)
            expect_debug_causes(m);
        lz_engine.helper_single_step(env);
        return;
    }
    if (m->s.mtf)
        lz_leave(m, TRAP_MTF, 0, 0);
    m->stepping = false;
    if (E64(eflags) & HF_TF) {
        expect_debug_causes(m);
        lz_engine.helper_single_step(env);
        return;
    }
    E32(hflags) &= ~(uint32_t)HF_TF;
    C32(exception_index) = 0xffffffffu;
    lz_engine.cpu_loop_exit(m->cpu);
}

/* After SYSCALL and SYSRET the engine looks at RFLAGS.TF anew. */
void helper_rechecking_single_step_x86_64(void *env)
{
    struct lz_machine *m = lz_of_env(env);
    if (m && m->s.mtf)
        lz_leave(m, TRAP_MTF, 0, 0);
    lz_engine.helper_rechecking_single_step(env);
}

void helper_sti_x86_64(void *env)
{
    struct lz_machine *m = lz_of_env(env);
    if (m)
        m->sti_shadow = true;
    if (lz_engine.helper_sti)
        lz_engine.helper_sti(env);
}

uint64_t helper_read_crN_x86_64(void *env, int reg)
{
    struct lz_machine *m = lz_of_env(env);
    if (!m)
        return lz_engine.helper_read_crN(env, reg);
    cpu_svm_check_intercept_param_x86_64(env, TRAP_CR_READ + (uint32_t)reg, 0, LZ_RETADDR);
    switch (reg) {
    case 0:
        return (E64(cr0) & ~m->s.cr0_mask) | (m->s.cr0_shadow & m->s.cr0_mask);
    case 2:
        return E64(cr2);
    case 3:
        return E64(cr3);
    case 4:
        return (E64(cr4) & ~m->s.cr4_mask) | (m->s.cr4_shadow & m->s.cr4_mask);
    default:
        return lz_engine.helper_read_crN(env, reg);
    }
}

void helper_write_crN_x86_64(void *env, int reg, uint64_t value)
{
    struct lz_machine *m = lz_of_env(env);
    if (!m) {
        lz_engine.helper_write_crN(env, reg, value);
        return;
    }
    if (reg == 2) {
        E64(cr2) = value;
        return;
    }
    if (reg == 3 && !(m->s.cr_write & 8) && (E64(efer) & 0x400)) {
        /* The common case of a guest that owns CR3, kept here because it is every process switch. */
        if (value & ~((1ull << m->s.maxphyaddr) - 1))
            lz_engine.raise_exception_err_ra(env, 13, 0, LZ_RETADDR);
        E64(cr3) = value;
        lz_engine.tlb_flush(m->cpu);
        return;
    }
    lz_leave(m, TRAP_CR_WRITE + (uint32_t)reg, value, LZ_RETADDR);
}

static bool holds_address(uint32_t msr)
{
    return msr == 0x175 || msr == 0x176 || msr == 0xc0000082u || msr == 0xc0000083u ||
           (msr >= 0xc0000100u && msr <= 0xc0000102u);
}

/* WRMSR that does not exit: the engine does not check addresses for being canonical. */
void helper_wrmsr_x86_64(void *env)
{
    struct lz_machine *m = lz_of_env(env);
    if (m && holds_address((uint32_t)REG(1))) {
        cpu_svm_check_intercept_param_x86_64(env, TRAP_MSR, 1, LZ_RETADDR);
        int64_t value = (int64_t)(REG(2) << 32 | (uint32_t)REG(0));
        if (value >> 47 != 0 && value >> 47 != -1)
            lz_engine.raise_exception_err_ra(env, 13, 0, LZ_RETADDR);
    }
    /* The call must be a jump, as in helper_check_exit_request. */
    lz_engine.helper_wrmsr(env);
}

uint64_t helper_rdrand_x86_64(void *env)
{
    struct lz_machine *m = lz_of_env(env);
    if (!m)
        return lz_engine.helper_rdrand(env);
    lz_leave(m, TRAP_RDRAND, 0, LZ_RETADDR);
}

void helper_xsetbv_x86_64(void *env, uint32_t index, uint64_t value)
{
    struct lz_machine *m = lz_of_env(env);
    if (!m) {
        lz_engine.helper_xsetbv(env, index, value);
        return;
    }
    lz_leave(m, TRAP_XSETBV, value, LZ_RETADDR);
}

/* IOPL and the I/O permission bitmap of the TSS (SDM 1 19.5): the engine checks neither. */
static bool port_allowed(struct lz_machine *m, uint32_t port, uint32_t size)
{
    uint32_t cpl = E32(hflags) & HF_CPL, iopl = E64(eflags) >> 12 & 3;
    bool v86 = E64(eflags) & (1u << 17), protected_mode = E64(cr0) & 1;
    if (!protected_mode || (cpl <= iopl && !v86))
        return true;
    const char *tr = (char *)m->env + lz_layout.tr;
    uint64_t base = *(const uint64_t *)(tr + 8);
    uint32_t limit = *(const uint32_t *)(tr + 16);
    if (limit < 103)
        return false;
    const uint8_t *low = lz_peek(m, base + 102, LZ_READ), *high = lz_peek(m, base + 103, LZ_READ);
    if (!low || !high)
        return false;
    uint32_t offset = (uint32_t)(*low | *high << 8) + port / 8;
    if (offset + 1 > limit)
        return false;
    const uint8_t *first = lz_peek(m, base + offset, LZ_READ), *second = lz_peek(m, base + offset + 1, LZ_READ);
    if (!first || !second)
        return false;
    return !((*first | *second << 8) >> (port & 7) & ((1u << size) - 1));
}

static _Noreturn void port_access(struct lz_machine *m, uint32_t port, uint32_t size, bool in, uintptr_t retaddr)
{
    port &= 0xffff;
    if (!port_allowed(m, port, size))
        lz_engine.raise_exception_err_ra(m->env, 13, 0, retaddr);
    lz_leave(m, TRAP_IO, (uint64_t)port << 16 | (in ? 8 : 0) | (size - 1), retaddr);
}

#define PORT_IN(name, size) \
    uint64_t name##_x86_64(void *env, uint32_t port) \
    { \
        struct lz_machine *m = lz_of_env(env); \
        if (!m) \
            return lz_engine.name(env, port); \
        port_access(m, port, size, true, LZ_RETADDR); \
    }
#define PORT_OUT(name, size) \
    void name##_x86_64(void *env, uint32_t port, uint32_t data) \
    { \
        struct lz_machine *m = lz_of_env(env); \
        if (!m) { \
            lz_engine.name(env, port, data); \
            return; \
        } \
        port_access(m, port, size, false, LZ_RETADDR); \
    }
PORT_IN(helper_inb, 1)
PORT_IN(helper_inw, 2)
PORT_IN(helper_inl, 4)
PORT_OUT(helper_outb, 1)
PORT_OUT(helper_outw, 2)
PORT_OUT(helper_outl, 4)

/* SYSCALL (SDM 2B): the engine only calls hooks for it. */
void helper_syscall_x86_64(void *env, int length)
{
    struct lz_machine *m = lz_of_env(env);
    if (!m) {
        lz_engine.helper_syscall(env, length);
        return;
    }
    if (!(E64(efer) & 1))
        lz_engine.raise_exception_err_ra(env, 6, 0, LZ_RETADDR);
    uint64_t rflags = lz_read_rflags(m), star = E64(star), next = E64(eip) + (uint64_t)length;
    uint32_t selector = star >> 32 & 0xfffc;
    char *es = (char *)env + lz_layout.segs;
    char *cs = es + lz_layout.segment_stride, *ss = cs + lz_layout.segment_stride;
    bool long_mode = E32(hflags) & HF_LMA, code64 = E32(hflags) & HF_CS64;
    if (long_mode) {
        REG(1) = next;
        REG(11) = rflags & ~0x10000ull;
        lz_write_rflags(m, rflags & ~(E64(fmask) | 0x10000));
        E64(eip) = code64 ? E64(lstar) : E64(cstar);
    } else {
        REG(1) = (uint32_t)next;
        lz_write_rflags(m, rflags & ~0x30200ull);
        E64(eip) = (uint32_t)star;
    }
    *(uint32_t *)cs = selector;
    *(uint64_t *)(cs + 8) = 0;
    *(uint32_t *)(cs + 16) = 0xffffffffu;
    *(uint32_t *)(cs + 20) = long_mode ? 0x00af9b00 : 0x00cf9b00;
    *(uint32_t *)ss = selector + 8;
    *(uint64_t *)(ss + 8) = 0;
    *(uint32_t *)(ss + 16) = 0xffffffffu;
    *(uint32_t *)(ss + 20) = 0x00cf9300;
    lz_engine.x86_update_hflags(env);
    if (m->s.mtf)
        E32(hflags) |= HF_TF;
    m->s.native_syscalls++;
}

/* The engine keeps SVM's event-injection field in guest memory; there is no such page here. */
uint32_t x86_ldl_phys_x86_64(void *cpu, uint64_t address)
{
    struct lz_machine *m = lz_of_cpu(cpu);
    return m && m->in_delivery ? 0 : lz_engine.x86_ldl_phys(cpu, address);
}

void x86_stl_phys_x86_64(void *cpu, uint64_t address, uint32_t value)
{
    struct lz_machine *m = lz_of_cpu(cpu);
    if (!m || !m->in_delivery)
        lz_engine.x86_stl_phys(cpu, address, value);
}
