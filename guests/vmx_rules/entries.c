/* VM entries (SDM vol. 3, chapter 27): a VMCS that works, changed in one place.
 *
 * Each row changes up to three fields (clear these bits, then set those) and says
 * what the entry comes to.  A row whose control the processor does not allow is
 * skipped.
 */
#include "rules.h"

#define NOT_CANONICAL 0x8000000000000000ull
#define ALL           0xffffffffffffffffull
#define BEYOND        (1ull << 51)          /* above the physical-address width of most processors */
#define CONTROLS      FAIL_VALID(7)
#define HOST          FAIL_VALID(8)
#define GUEST         ENTRY_FAILED(33, 0)
#define LINK          ENTRY_FAILED(33, 4)
#define RUNS          ENTERED(EXIT_VMCALL)

/* Bits and fields that only these rules need. */
#define VIRTUAL_NMIS        (1u << 5)
#define NMI_WINDOW_EXITING  (1u << 22)
#define USE_TPR_SHADOW      (1u << 21)
#define VIRTUALIZE_X2APIC   (1u << 4)
#define APIC_REGISTERS      (1u << 8)
#define INTERRUPT_DELIVERY  (1u << 9)
#define SAVE_PREEMPTION     (1u << 22)
#define LOAD_DEBUG_CONTROLS (1u << 2)
#define ENTRY_TO_SMM        (1u << 10)
#define EXIT_MSR_STORE_ADDRESS  0x2006
#define EXIT_MSR_LOAD_ADDRESS   0x2008
#define ENTRY_MSR_LOAD_ADDRESS  0x200a
#define VIRTUAL_APIC_ADDRESS    0x2012
#define TPR_THRESHOLD           0x401c
#define SEGMENT(name, part)     (GUEST_ES_##part + 2 * (name))
#define VALID         INTERRUPTION_VALID
#define HARDWARE      (TYPE_HARDWARE_EXCEPTION << 8)
#define WITH_CODE     INTERRUPTION_ERROR_CODE

enum { ES, CS, SSEG, DS, FS, GS, LDTR, TR };
enum capability { ALWAYS, PIN, PROC, PROC2, EXIT, ENTRY };

struct edit {
	uint32_t field;
	uint64_t clear, set;
};

struct entry_rule {
	const char *name;
	uint64_t expected;
	struct edit edits[3];
	enum capability capability;   /* the control word … */
	uint32_t bits;                /* … that must allow these bits */
};

struct msr_entry {
	uint32_t index, reserved;
	uint64_t value;
};

static uint8_t apic_page[4096] __attribute__((aligned(4096)));
static uint8_t wrong_revision[4096] __attribute__((aligned(4096))) = { 0xff, 0xff, 0xff, 0x7f };
static struct msr_entry good_msr[1] __attribute__((aligned(16))) = { { IA32_KERNEL_GS_BASE, 0, 0 } };
static struct msr_entry fs_base_msr[1] __attribute__((aligned(16))) = { { 0xc0000100, 0, 0 } };
static struct msr_entry second_reserved[2] __attribute__((aligned(16))) = {
	{ IA32_KERNEL_GS_BASE, 0, 0 }, { IA32_KERNEL_GS_BASE, 1, 0 }
};
static struct msr_entry not_canonical_msr[1] __attribute__((aligned(16))) = { { IA32_KERNEL_GS_BASE, 0, NOT_CANONICAL } };

static const struct entry_rule rules[] = {
	{ "entry.unchanged", RUNS, { { 0 } } },

	/* 27.2.1: controls */
	{ "control.pin.reserved_0", CONTROLS, { { PIN_BASED_CONTROLS, ALL, 0 } } },
	{ "control.pin.reserved_1", CONTROLS, { { PIN_BASED_CONTROLS, 0, 1u << 31 } } },
	{ "control.proc.reserved_0", CONTROLS, { { PROC_BASED_CONTROLS, 1u << 1, 0 } } },
	{ "control.proc.reserved_1", CONTROLS, { { PROC_BASED_CONTROLS, 0, 1u << 0 } } },
	{ "control.exit.reserved_0", CONTROLS, { { EXIT_CONTROLS, 1u << 0, 0 } } },
	{ "control.entry.reserved_0", CONTROLS, { { ENTRY_CONTROLS, 1u << 0, 0 } } },
	{ "control.cr3_target_count", CONTROLS, { { CR3_TARGET_COUNT, 0, 0x1ff } } },
	{ "control.io_bitmap_a.aligned", CONTROLS, { { IO_BITMAP_A, 0, 1 } } },
	{ "control.io_bitmap_b.width", CONTROLS, { { IO_BITMAP_B, 0, BEYOND } } },
	{ "control.io_bitmap.unused", RUNS, { { PROC_BASED_CONTROLS, USE_IO_BITMAPS, 0 }, { IO_BITMAP_A, 0, 1 } } },
	{ "control.msr_bitmap.aligned", CONTROLS, { { MSR_BITMAPS, 0, 0x800 } } },
	{ "control.virtual_nmis.without_nmi_exiting", CONTROLS, { { PIN_BASED_CONTROLS, NMI_EXITING, VIRTUAL_NMIS } },
	  PIN, VIRTUAL_NMIS },
	{ "control.nmi_window.without_virtual_nmis", CONTROLS,
	  { { PIN_BASED_CONTROLS, VIRTUAL_NMIS, 0 }, { PROC_BASED_CONTROLS, 0, NMI_WINDOW_EXITING } }, PROC, NMI_WINDOW_EXITING },
	{ "control.tpr_shadow", RUNS,
	  { { PROC_BASED_CONTROLS, 0, USE_TPR_SHADOW }, { VIRTUAL_APIC_ADDRESS, ALL, (uint64_t)apic_page },
	    { TPR_THRESHOLD, ALL, 0 } }, PROC, USE_TPR_SHADOW },
	{ "control.virtual_apic_address.aligned", CONTROLS,
	  { { PROC_BASED_CONTROLS, 0, USE_TPR_SHADOW }, { VIRTUAL_APIC_ADDRESS, ALL, (uint64_t)apic_page + 8 },
	    { TPR_THRESHOLD, ALL, 0 } }, PROC, USE_TPR_SHADOW },
	{ "control.tpr_threshold.reserved", CONTROLS,
	  { { PROC_BASED_CONTROLS, 0, USE_TPR_SHADOW }, { VIRTUAL_APIC_ADDRESS, ALL, (uint64_t)apic_page },
	    { TPR_THRESHOLD, ALL, 0x10 } }, PROC, USE_TPR_SHADOW },
	{ "control.tpr_threshold.above_vtpr", CONTROLS,
	  { { PROC_BASED_CONTROLS, 0, USE_TPR_SHADOW }, { VIRTUAL_APIC_ADDRESS, ALL, (uint64_t)apic_page },
	    { TPR_THRESHOLD, ALL, 1 } }, PROC, USE_TPR_SHADOW },
	{ "control.x2apic.without_tpr_shadow", CONTROLS,
	  { { PROC_BASED_CONTROLS, USE_TPR_SHADOW, 0 }, { PROC_BASED_CONTROLS2, 0, VIRTUALIZE_X2APIC } },
	  PROC2, VIRTUALIZE_X2APIC },
	{ "control.apic_registers.without_tpr_shadow", CONTROLS,
	  { { PROC_BASED_CONTROLS, USE_TPR_SHADOW, 0 }, { PROC_BASED_CONTROLS2, 0, APIC_REGISTERS } }, PROC2, APIC_REGISTERS },
	{ "control.interrupt_delivery.without_tpr_shadow", CONTROLS,
	  { { PROC_BASED_CONTROLS, USE_TPR_SHADOW, 0 }, { PROC_BASED_CONTROLS2, 0, INTERRUPT_DELIVERY } },
	  PROC2, INTERRUPT_DELIVERY },
	{ "control.vpid.zero", CONTROLS, { { VIRTUAL_PROCESSOR_IDENTIFIER, ALL, 0 } }, PROC2, ENABLE_VPID },
	{ "control.eptp.memory_type", CONTROLS, { { EPT_POINTER, 7, 1 } } },
	{ "control.eptp.walk_length", CONTROLS, { { EPT_POINTER, 0x38, 1 << 3 } } },
	{ "control.eptp.reserved", CONTROLS, { { EPT_POINTER, 0, 0x100 } } },
	{ "control.eptp.width", CONTROLS, { { EPT_POINTER, 0, BEYOND } } },
	{ "control.unrestricted_guest.without_ept", CONTROLS, { { PROC_BASED_CONTROLS2, ENABLE_EPT, UNRESTRICTED_GUEST } },
	  PROC2, UNRESTRICTED_GUEST },
	{ "control.exit.save_preemption_timer.inactive", CONTROLS, { { EXIT_CONTROLS, 0, SAVE_PREEMPTION } },
	  EXIT, SAVE_PREEMPTION },
	{ "control.exit_msr_store.aligned", CONTROLS, { { EXIT_MSR_STORE_COUNT, ALL, 1 }, { EXIT_MSR_STORE_ADDRESS, ALL, 8 } } },
	{ "control.exit_msr_load.width", CONTROLS, { { EXIT_MSR_LOAD_COUNT, ALL, 1 }, { EXIT_MSR_LOAD_ADDRESS, ALL, BEYOND } } },
	{ "control.entry_msr_load.aligned", CONTROLS, { { ENTRY_MSR_LOAD_COUNT, ALL, 1 }, { ENTRY_MSR_LOAD_ADDRESS, ALL, 4 } } },
	{ "control.entry_msr_load.unused", RUNS, { { ENTRY_MSR_LOAD_ADDRESS, ALL, 4 } } },
	{ "control.entry.to_smm", CONTROLS, { { ENTRY_CONTROLS, 0, ENTRY_TO_SMM } } },
	{ "inject.type_reserved", CONTROLS, { { ENTRY_INTERRUPTION_INFORMATION, ALL, VALID | 1 << 8 | 3 } } },
	{ "inject.type_other", CONTROLS, { { ENTRY_INTERRUPTION_INFORMATION, ALL, VALID | 7 << 8 | 1 } } },
	{ "inject.nmi_vector", CONTROLS, { { ENTRY_INTERRUPTION_INFORMATION, ALL, VALID | 2 << 8 | 3 } } },
	{ "inject.exception_vector", CONTROLS, { { ENTRY_INTERRUPTION_INFORMATION, ALL, VALID | HARDWARE | 32 } } },
	{ "inject.error_code.not_wanted", CONTROLS, { { ENTRY_INTERRUPTION_INFORMATION, ALL, VALID | HARDWARE | WITH_CODE | 6 } } },
	{ "inject.error_code.high_bits", CONTROLS,
	  { { ENTRY_INTERRUPTION_INFORMATION, ALL, VALID | HARDWARE | WITH_CODE | 13 },
	    { ENTRY_EXCEPTION_ERROR_CODE, ALL, 0x80000000 } } },
	{ "inject.reserved", CONTROLS, { { ENTRY_INTERRUPTION_INFORMATION, ALL, VALID | HARDWARE | 1 << 20 | 6 } } },
	{ "inject.software.length", CONTROLS,
	  { { ENTRY_INTERRUPTION_INFORMATION, ALL, VALID | TYPE_SOFTWARE_INTERRUPT << 8 | 0x50 },
	    { ENTRY_INSTRUCTION_LENGTH, ALL, 16 } } },
	{ "inject.not_valid", RUNS, { { ENTRY_INTERRUPTION_INFORMATION, ALL, 0x7ffff7ff } } },

	/* 27.2.2 to 27.2.4: host state */
	{ "host.cr0.pg", HOST, { { HOST_CR0, CR0_PG, 0 } } },
	{ "host.cr0.ne", HOST, { { HOST_CR0, CR0_NE, 0 } } },
	{ "host.cr4.vmxe", HOST, { { HOST_CR4, CR4_VMXE, 0 } } },
	{ "host.cr4.pae", HOST, { { HOST_CR4, CR4_PAE, 0 } } },
	{ "host.cr4.reserved", HOST, { { HOST_CR4, 0, 1ull << 63 } } },
	{ "host.cr3.width", HOST, { { HOST_CR3, 0, BEYOND } } },
	{ "host.sysenter_esp.canonical", HOST, { { HOST_SYSENTER_ESP, ALL, NOT_CANONICAL } } },
	{ "host.sysenter_eip.canonical", HOST, { { HOST_SYSENTER_EIP, ALL, NOT_CANONICAL } } },
	{ "host.efer.lma", HOST, { { HOST_IA32_EFER, EFER_LMA, 0 } } },
	{ "host.efer.reserved", HOST, { { HOST_IA32_EFER, 0, 2 } } },
	{ "host.cs.zero", HOST, { { HOST_CS_SELECTOR, ALL, 0 } } },
	{ "host.cs.rpl", HOST, { { HOST_CS_SELECTOR, 0, 3 } } },
	{ "host.ds.table_indicator", HOST, { { HOST_DS_SELECTOR, 0, 4 } } },
	{ "host.tr.zero", HOST, { { HOST_TR_SELECTOR, ALL, 0 } } },
	{ "host.tr.rpl", HOST, { { HOST_TR_SELECTOR, 0, 1 } } },
	{ "host.fs_base.canonical", HOST, { { HOST_FS_BASE, ALL, NOT_CANONICAL } } },
	{ "host.gs_base.canonical", HOST, { { HOST_GS_BASE, ALL, NOT_CANONICAL } } },
	{ "host.tr_base.canonical", HOST, { { HOST_TR_BASE, ALL, NOT_CANONICAL } } },
	{ "host.gdtr_base.canonical", HOST, { { HOST_GDTR_BASE, ALL, NOT_CANONICAL } } },
	{ "host.idtr_base.canonical", HOST, { { HOST_IDTR_BASE, ALL, NOT_CANONICAL } } },
	{ "host.rip.canonical", HOST, { { HOST_RIP, ALL, NOT_CANONICAL } } },
	{ "host.address_space_size.in_64bit_mode", HOST, { { EXIT_CONTROLS, EXIT_HOST_ADDRESS_SPACE_SIZE, 0 } } },

	/* 27.3.1.1: guest control registers, debug registers, MSRs */
	{ "guest.cr0.pe", GUEST, { { GUEST_CR0, CR0_PE, 0 } } },
	{ "guest.cr0.ne", GUEST, { { GUEST_CR0, CR0_NE, 0 } } },
	{ "guest.cr4.vmxe", GUEST, { { GUEST_CR4, CR4_VMXE, 0 } } },
	{ "guest.cr4.pae", GUEST, { { GUEST_CR4, CR4_PAE, 0 } } },
	{ "guest.cr3.width", GUEST, { { GUEST_CR3, 0, BEYOND } } },
	{ "guest.debugctl.reserved", GUEST, { { ENTRY_CONTROLS, 0, LOAD_DEBUG_CONTROLS }, { GUEST_IA32_DEBUGCTL, 0, 1ull << 63 } } },
	{ "guest.dr7.high", GUEST, { { ENTRY_CONTROLS, 0, LOAD_DEBUG_CONTROLS }, { GUEST_DR7, 0, 1ull << 32 } } },
	{ "guest.sysenter_esp.canonical", GUEST, { { GUEST_SYSENTER_ESP, ALL, NOT_CANONICAL } } },
	{ "guest.sysenter_eip.canonical", GUEST, { { GUEST_SYSENTER_EIP, ALL, NOT_CANONICAL } } },
	{ "guest.efer.reserved", GUEST, { { GUEST_IA32_EFER, 0, 2 } } },
	{ "guest.efer.lma", GUEST, { { GUEST_IA32_EFER, EFER_LMA, 0 } } },
	{ "guest.efer.lme", GUEST, { { GUEST_IA32_EFER, EFER_LME, 0 } } },

	/* 27.3.1.2: guest segment registers */
	{ "guest.tr.table_indicator", GUEST, { { SEGMENT(TR, SELECTOR), 0, 4 } } },
	{ "guest.ldtr.table_indicator", GUEST, { { SEGMENT(LDTR, SELECTOR), ALL, 4 }, { SEGMENT(LDTR, ACCESS_RIGHTS), ALL, 0x82 } } },
	{ "guest.ldtr.usable", RUNS, { { SEGMENT(LDTR, ACCESS_RIGHTS), ALL, 0x82 } } },
	{ "guest.ldtr.type", GUEST, { { SEGMENT(LDTR, ACCESS_RIGHTS), ALL, 0x83 } } },
	{ "guest.ss.rpl", GUEST, { { SEGMENT(SSEG, SELECTOR), 0, 3 } } },
	{ "guest.tr.base_canonical", GUEST, { { SEGMENT(TR, BASE), ALL, NOT_CANONICAL } } },
	{ "guest.fs.base_canonical", GUEST, { { SEGMENT(FS, BASE), ALL, NOT_CANONICAL } } },
	{ "guest.gs.base_canonical", GUEST, { { SEGMENT(GS, BASE), ALL, NOT_CANONICAL } } },
	{ "guest.cs.base_high", GUEST, { { SEGMENT(CS, BASE), ALL, 1ull << 32 } } },
	{ "guest.ss.base_high", GUEST, { { SEGMENT(SSEG, BASE), ALL, 1ull << 32 } } },
	{ "guest.ds.base_high", GUEST, { { SEGMENT(DS, BASE), ALL, 1ull << 32 } } },
	{ "guest.cs.type_data", GUEST, { { SEGMENT(CS, ACCESS_RIGHTS), 15, 2 } } },
	{ "guest.cs.type_not_accessed", GUEST, { { SEGMENT(CS, ACCESS_RIGHTS), 1, 0 } } },
	{ "guest.cs.system", GUEST, { { SEGMENT(CS, ACCESS_RIGHTS), 1 << 4, 0 } } },
	{ "guest.cs.present", GUEST, { { SEGMENT(CS, ACCESS_RIGHTS), 1 << 7, 0 } } },
	{ "guest.cs.dpl", GUEST, { { SEGMENT(CS, ACCESS_RIGHTS), 0, 3 << 5 } } },
	{ "guest.cs.l_and_d", GUEST, { { SEGMENT(CS, ACCESS_RIGHTS), 0, 1 << 14 } } },
	{ "guest.cs.reserved", GUEST, { { SEGMENT(CS, ACCESS_RIGHTS), 0, 1 << 8 } } },
	{ "guest.cs.reserved_high", GUEST, { { SEGMENT(CS, ACCESS_RIGHTS), 0, 1 << 17 } } },
	{ "guest.cs.limit_needs_g", GUEST, { { SEGMENT(CS, ACCESS_RIGHTS), 1 << 15, 0 } } },
	{ "guest.cs.limit_low_bits", GUEST, { { SEGMENT(CS, LIMIT), 1, 0 } } },
	{ "guest.cs.conforming", RUNS, { { SEGMENT(CS, ACCESS_RIGHTS), 15, 15 } } },
	{ "guest.ss.type_read_only", GUEST, { { SEGMENT(SSEG, ACCESS_RIGHTS), 2, 0 } } },
	{ "guest.ss.expand_down", RUNS, { { SEGMENT(SSEG, ACCESS_RIGHTS), 15, 7 } } },
	{ "guest.ss.dpl", GUEST, { { SEGMENT(SSEG, ACCESS_RIGHTS), 0, 1 << 5 } } },
	{ "guest.ss.unusable", RUNS, { { SEGMENT(SSEG, ACCESS_RIGHTS), ALL, 1 << 16 } } },
	{ "guest.ds.not_accessed", GUEST, { { SEGMENT(DS, ACCESS_RIGHTS), 1, 0 } } },
	{ "guest.ds.execute_only", GUEST, { { SEGMENT(DS, ACCESS_RIGHTS), 15, 9 } } },
	{ "guest.es.present", GUEST, { { SEGMENT(ES, ACCESS_RIGHTS), 1 << 7, 0 } } },
	{ "guest.fs.unusable", RUNS, { { SEGMENT(FS, ACCESS_RIGHTS), ALL, 1 << 16 }, { SEGMENT(FS, LIMIT), ALL, 0x12345678 } } },
	{ "guest.tr.type_16bit", GUEST, { { SEGMENT(TR, ACCESS_RIGHTS), 15, 3 } } },
	{ "guest.tr.type_available", GUEST, { { SEGMENT(TR, ACCESS_RIGHTS), 15, 9 } } },
	{ "guest.tr.system", GUEST, { { SEGMENT(TR, ACCESS_RIGHTS), 0, 1 << 4 } } },
	{ "guest.tr.present", GUEST, { { SEGMENT(TR, ACCESS_RIGHTS), 1 << 7, 0 } } },
	{ "guest.tr.unusable", GUEST, { { SEGMENT(TR, ACCESS_RIGHTS), 0, 1 << 16 } } },
	{ "guest.tr.limit_needs_no_g", GUEST, { { SEGMENT(TR, ACCESS_RIGHTS), 0, 1 << 15 } } },

	/* 27.3.1.3: descriptor-table registers; 27.3.1.4: RIP, RFLAGS */
	{ "guest.gdtr.base_canonical", GUEST, { { GUEST_GDTR_BASE, ALL, NOT_CANONICAL } } },
	{ "guest.gdtr.limit", GUEST, { { GUEST_GDTR_LIMIT, 0, 1 << 16 } } },
	{ "guest.idtr.base_canonical", GUEST, { { GUEST_IDTR_BASE, ALL, NOT_CANONICAL } } },
	{ "guest.idtr.limit", GUEST, { { GUEST_IDTR_LIMIT, 0, 1 << 16 } } },
	{ "guest.rip.canonical", GUEST, { { GUEST_RIP, ALL, NOT_CANONICAL } } },
	{ "guest.rflags.bit_1", GUEST, { { GUEST_RFLAGS, 2, 0 } } },
	{ "guest.rflags.bit_15", GUEST, { { GUEST_RFLAGS, 0, 1 << 15 } } },
	{ "guest.rflags.bit_63", GUEST, { { GUEST_RFLAGS, 0, 1ull << 63 } } },
	{ "guest.rflags.vm_in_ia32e", GUEST, { { GUEST_RFLAGS, 0, 1 << 17 } } },
	{ "guest.rflags.if_for_injection", GUEST, { { ENTRY_INTERRUPTION_INFORMATION, ALL, VALID | VECTOR_TIMER } } },

	/* 27.3.1.5: non-register state */
	{ "guest.activity.unknown", GUEST, { { GUEST_ACTIVITY_STATE, ALL, 4 } } },
	{ "guest.activity.hlt_with_sti_blocking", GUEST,
	  { { GUEST_ACTIVITY_STATE, ALL, 1 }, { GUEST_INTERRUPTIBILITY, ALL, 1 }, { GUEST_RFLAGS, 0, RFLAGS_IF } } },
	{ "guest.activity.shutdown_with_exception", GUEST,
	  { { GUEST_ACTIVITY_STATE, ALL, 2 }, { ENTRY_INTERRUPTION_INFORMATION, ALL, VALID | HARDWARE | 6 } } },
	{ "guest.interruptibility.reserved", GUEST, { { GUEST_INTERRUPTIBILITY, ALL, 1 << 5 } } },
	{ "guest.interruptibility.sti_and_mov_ss", GUEST, { { GUEST_INTERRUPTIBILITY, ALL, 3 }, { GUEST_RFLAGS, 0, RFLAGS_IF } } },
	{ "guest.interruptibility.sti_without_if", GUEST, { { GUEST_INTERRUPTIBILITY, ALL, 1 } } },
	{ "guest.interruptibility.sti", RUNS, { { GUEST_INTERRUPTIBILITY, ALL, 1 }, { GUEST_RFLAGS, 0, RFLAGS_IF } } },
	{ "guest.interruptibility.mov_ss", RUNS, { { GUEST_INTERRUPTIBILITY, ALL, 2 } } },
	{ "guest.interruptibility.mov_ss_with_interrupt", GUEST,
	  { { GUEST_INTERRUPTIBILITY, ALL, 2 }, { GUEST_RFLAGS, 0, RFLAGS_IF },
	    { ENTRY_INTERRUPTION_INFORMATION, ALL, VALID | VECTOR_TIMER } } },
	{ "guest.interruptibility.smi", GUEST, { { GUEST_INTERRUPTIBILITY, ALL, 4 } } },
	{ "guest.pending_debug.reserved", GUEST, { { GUEST_PENDING_DEBUG_EXCEPTIONS, ALL, 1 << 4 } } },
	{ "guest.pending_debug.high", GUEST, { { GUEST_PENDING_DEBUG_EXCEPTIONS, ALL, 1ull << 63 } } },
	{ "guest.pending_debug.bs_with_tf_and_sti", GUEST,
	  { { GUEST_INTERRUPTIBILITY, ALL, 1 }, { GUEST_RFLAGS, 0, RFLAGS_IF | 1 << 8 } } },
	{ "guest.link_pointer.aligned", LINK, { { VMCS_LINK_POINTER, ALL, 0x1001 } } },
	{ "guest.link_pointer.width", LINK, { { VMCS_LINK_POINTER, ALL, BEYOND } } },
	{ "guest.link_pointer.revision", LINK, { { VMCS_LINK_POINTER, ALL, (uint64_t)wrong_revision } } },

	/* 27.4: MSR loading */
	{ "msr_load.good", RUNS, { { ENTRY_MSR_LOAD_COUNT, ALL, 1 }, { ENTRY_MSR_LOAD_ADDRESS, ALL, (uint64_t)good_msr } } },
	{ "msr_load.fs_base", ENTRY_FAILED(34, 1),
	  { { ENTRY_MSR_LOAD_COUNT, ALL, 1 }, { ENTRY_MSR_LOAD_ADDRESS, ALL, (uint64_t)fs_base_msr } } },
	{ "msr_load.reserved", ENTRY_FAILED(34, 2),
	  { { ENTRY_MSR_LOAD_COUNT, ALL, 2 }, { ENTRY_MSR_LOAD_ADDRESS, ALL, (uint64_t)second_reserved } } },
	{ "msr_load.value", ENTRY_FAILED(34, 1),
	  { { ENTRY_MSR_LOAD_COUNT, ALL, 1 }, { ENTRY_MSR_LOAD_ADDRESS, ALL, (uint64_t)not_canonical_msr } } },
};

extern const char vmx_rules_guest[];
asm(
	"	.section .guest, \"ax\"\n"
	"vmx_rules_guest:\n"
	"	vmcall\n"
	"	ud2\n"
	"	.text\n");

static const struct workload workload = { .name = "rules", .entry = vmx_rules_guest };

static bool allowed(const struct entry_rule *row)
{
	static const struct {
		enum msr plain, true_msr;
	} msrs[] = {
		[PIN] = { IA32_VMX_PINBASED_CTLS, IA32_VMX_TRUE_PINBASED_CTLS },
		[PROC] = { IA32_VMX_PROCBASED_CTLS, IA32_VMX_TRUE_PROCBASED_CTLS },
		[PROC2] = { IA32_VMX_PROCBASED_CTLS2, IA32_VMX_PROCBASED_CTLS2 },
		[EXIT] = { IA32_VMX_EXIT_CTLS, IA32_VMX_TRUE_EXIT_CTLS },
		[ENTRY] = { IA32_VMX_ENTRY_CTLS, IA32_VMX_TRUE_ENTRY_CTLS },
	};

	return row->capability == ALWAYS
	       || control_allowed(msrs[row->capability].plain, msrs[row->capability].true_msr, row->bits);
}

/* A fresh VMCS for each row: nothing of the last failure can stay behind. */
static uint64_t enter_changed(const struct entry_rule *row)
{
	/* A guest that should not have run and faults goes on at its VMCALL. */
	struct registers registers = { .r[RBX] = (uint64_t)vmx_rules_guest };
	uint32_t reason;

	vmcs_make_current();
	vmcs_fill(&workload, (uint64_t)vmx_exit);
	for (unsigned i = 0; i < 3 && (row->edits[i].clear || row->edits[i].set); i++) {
		enum field field = (enum field)row->edits[i].field;

		vmwrite(field, (vmread(field) & ~row->edits[i].clear) | row->edits[i].set);
	}
	if (vmx_enter(&registers, false))
		return FAIL_VALID(vmread(VM_INSTRUCTION_ERROR));
	reason = (uint32_t)vmread(EXIT_REASON);
	if (reason & EXIT_REASON_ENTRY_FAILURE)
		return ENTRY_FAILED(reason & 0xffff, vmread(EXIT_QUALIFICATION));
	return ENTERED(reason);
}

static void after_launch(void)
{
	struct registers registers = { { 0 } };

	vmcs_make_current();
	vmcs_fill(&workload, (uint64_t)vmx_exit);
	rule("launch_state.first_vmlaunch", 0, vmx_enter(&registers, false));
	rule("launch_state.vmlaunch_again", FAIL_VALID(4), attempt("vmlaunch", "i"(0)));
	rule("launch_state.vmresume", 0, vmx_enter(&registers, true));
	vmcs_make_current();   /* VMCLEAR */
	rule("launch_state.vmresume_after_vmclear", FAIL_VALID(5), attempt("vmresume", "i"(0)));
}

void entry_rules(void)
{
	for (unsigned i = 0; i < sizeof rules / sizeof rules[0]; i++) {
		if (!rule_wanted(rules[i].name))
			continue;
		if (allowed(&rules[i]))
			rule(rules[i].name, rules[i].expected, enter_changed(&rules[i]));
		else
			rule_skipped(rules[i].name);
	}
	after_launch();
}
