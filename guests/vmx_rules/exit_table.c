/* The table of exits (SDM vol. 3, chapter 28). */
#include "exits.h"

/* Guest code with a label where the exit is expected, and a VMCALL should none come. */
#define CODE(name, before, instruction)                                             \
	extern const char code_##name[], at_##name[];                               \
	asm(".section .guest, \"ax\"\ncode_" #name ":\n" before "\nat_" #name ":\n" \
	    instruction "\nvmcall\nud2\n.text")
#define RUN(label) .name = "exit." #label, .code = code_##label, .at = at_##label

/* Instruction information (tables 28-10 to 28-16). */
#define ADDRESS_32     (1u << 7)
#define ADDRESS_64     (2u << 7)
#define ADDRESS_MASK   (7u << 7)
#define REGISTER_FORM  (1u << 10)
#define SEGMENT_DS     (3u << 15)
#define SEGMENT_FS     (4u << 15)
#define SEGMENT_MASK   (7u << 15)
#define NO_INDEX       (1u << 22)
#define BASE(n)        ((uint32_t)(n) << 23)
#define INDEX(n)       ((uint32_t)(n) << 18)
#define IDENTITY(n)    ((uint32_t)(n) << 28)
#define REGISTER1(n)   ((uint32_t)(n) << 3)
#define REGISTER2(n)   ((uint32_t)(n) << 28)
#define BASE_MASK      (0x1fu << 23)
#define AT_RBX         (ADDRESS_64 | SEGMENT_DS | NO_INDEX | BASE(RBX))
#define AT_MASK        (ADDRESS_MASK | REGISTER_FORM | SEGMENT_MASK | NO_INDEX | BASE_MASK)
#define STRING_MASK    (ADDRESS_MASK | SEGMENT_MASK)

/* Qualification of an I/O exit (table 28-5). */
#define IO(size, port) (((size) - 1) | (uint64_t)(port) << 16)
#define IO_IN          (1 << 3)
#define IO_STRING      (1 << 4)
#define IO_REP         (1 << 5)
#define IO_IMMEDIATE   (1 << 6)

/* Controls that only these rules need (tables 25-6, 25-7). */
#define INVLPG_EXITING     (1u << 9)
#define MWAIT_EXITING      (1u << 10)
#define RDPMC_EXITING      (1u << 11)
#define RDTSC_EXITING      (1u << 12)
#define CR3_LOAD_EXITING   (1u << 15)
#define CR3_STORE_EXITING  (1u << 16)
#define CR8_LOAD_EXITING   (1u << 19)
#define CR8_STORE_EXITING  (1u << 20)
#define MOV_DR_EXITING     (1u << 23)
#define MONITOR_EXITING    (1u << 29)
#define PAUSE_EXITING      (1u << 30)
#define DESCRIPTOR_EXITING (1u << 2)
#define ENABLE_RDTSCP      (1u << 3)
#define WBINVD_EXITING     (1u << 6)
#define RDRAND_EXITING     (1u << 11)
#define ENABLE_INVPCID     (1u << 12)
#define RDSEED_EXITING     (1u << 16)

#define EVENT(type, vector) (INTERRUPTION_VALID | (type) << 8 | (vector))
#define EXCEPTION(vector)   EVENT(TYPE_HARDWARE_EXCEPTION, vector)
#define WITH_CODE           INTERRUPTION_ERROR_CODE
#define TF                  (1ull << 8)
#define WINDOW_STACK        (LAZY_WINDOW + 0x1000)
#define PAGE_TABLE_WALK     0x81
#define ON(vector)          (1u << (vector))

CODE(cpuid, "", "cpuid");
CODE(hlt, "", "hlt");
CODE(invd, "", "invd");
CODE(invlpg, "", "invlpg 4(%rbx)");
CODE(rdpmc, "", "rdpmc");
CODE(rdtsc, "", "rdtsc");
CODE(rdtscp, "", "rdtscp");
CODE(vmcall, "", "vmcall");
CODE(vmclear, "", "vmclear 0x10(%rbx)");
CODE(vmlaunch, "", "vmlaunch");
CODE(vmptrld, "", "vmptrld -8(%rbx)");
CODE(vmptrst, "", "vmptrst (%rbx,%rcx,4)");
CODE(vmread_register, "", "vmread %rcx, %rdx");
CODE(vmread_memory, "", "vmread %rcx, 8(%rbx)");
CODE(vmresume, "", "vmresume");
CODE(vmwrite_register, "", "vmwrite %r9, %rcx");
CODE(vmwrite_memory, "", "vmwrite (%rbx), %rcx");
CODE(vmxoff, "", "vmxoff");
CODE(vmxon, "", "vmxon (%rbx)");
CODE(invept, "", "invept (%rbx), %rcx");
CODE(invvpid, "", "invvpid 0x20(%rbx), %rdx");
CODE(mov_to_cr3, "", "mov %r9, %cr3");
CODE(mov_from_cr3, "", "mov %cr3, %rdx");
CODE(mov_to_cr8, "", "mov %rcx, %cr8");
CODE(mov_from_cr8, "", "mov %cr8, %rdi");
CODE(mov_to_cr0, "mov %cr0, %rdx\nxorq $8, %rdx", "mov %rdx, %cr0");
CODE(mov_to_cr4, "mov %cr4, %rdx\nxorq $4, %rdx", "mov %rdx, %cr4");
CODE(clts, "", "clts");
CODE(lmsw_register, "movl $9, %eax", "lmsw %ax");
CODE(lmsw_memory, "movw $9, 6(%rbx)", "lmsw 6(%rbx)");
CODE(mov_to_dr, "", "mov %rax, %dr7");
CODE(mov_from_dr, "", "mov %dr6, %rcx");
CODE(out_immediate, "", "outb %al, $0xe0");
CODE(in_dx, "", "inl (%dx), %eax");
CODE(outs, "", "outsb");
CODE(rep_outs, "", "rep outsl");
CODE(ins, "", "insw");
CODE(outs_address_32, "", "addr32 outsb");
CODE(outs_fs, "", "outsb %fs:(%rsi), (%dx)");
CODE(rdmsr, "movl $0x12345678, %ecx", "rdmsr");
CODE(wrmsr, "movl $0x12345678, %ecx", "wrmsr");
CODE(monitor, "movq %rbx, %rax\nxorl %ecx, %ecx\nxorl %edx, %edx", "monitor");
CODE(mwait, "xorl %eax, %eax\nxorl %ecx, %ecx", "mwait");
CODE(pause, "", "pause");
CODE(lgdt, "", "lgdt (%rbx)");
CODE(sidt, "", "sidt 8(%rbx)");
CODE(lldt, "", "lldt %cx");
CODE(str, "", "strl %edx");
CODE(sldt_memory, "", "sldt (%rbx)");
CODE(wbinvd, "", "wbinvd");
CODE(rdrand, "", "rdrand %rdx");
CODE(rdseed, "", "rdseed %ecx");
CODE(invpcid, "", "invpcid (%rbx), %rcx");
CODE(invalid_opcode, "", "ud2");
CODE(breakpoint, "", "int3");
CODE(icebp, "", ".byte 0xf1");
CODE(divide, "xorl %ecx, %ecx", "divl %ecx");
CODE(selector, "", "movl %eax, %ds");
CODE(page_fault, "movabsq $0x1234567000, %rdi", "movb %al, 8(%rdi)");
CODE(stack_fault, "movabsq $0x8000000000000000, %rbp", "movb (%rbp), %al");
CODE(single_step, "pushfq\norq $0x100, (%rsp)\npopfq\nnop", "nop");
CODE(triple_fault, "movabsq $0x8000000000000000, %rsp\nxorl %ecx, %ecx", "divl %ecx");
CODE(ept_read, "movl $0x40000018, %r8d", "movb (%r8), %al");
CODE(ept_write, "movl $0x40000018, %r8d", "movb %al, (%r8)");
CODE(ept_fetch, "movl $0x40002000, %r8d\njmp *%r8", "nop");
CODE(ept_walk, "", "nop");
CODE(ept_misconfiguration, "movl $0x80200004, %r8d", "movl (%r8), %eax");
CODE(vectoring_exception, "movl $0x40001000, %esp\nxorl %ecx, %ecx", "divl %ecx");
CODE(vectoring_error_code, "movl $0x40001000, %esp", "movl %eax, %ds");
CODE(vectoring_int, "movl $0x40001000, %esp", "int $0x50");
CODE(sti_blocking, "sti", "cpuid");
CODE(mov_ss_blocking, "movl %ss, %eax\nmovl %eax, %ss", "cpuid");
CODE(interrupt_window, "", "nop");
CODE(interrupt_window_after_sti, "sti\nnop", "nop");
CODE(preemption_timer_zero, "", "nop");
CODE(monitor_trap, "nop", "nop");
extern const char guest_on_timer[], guest_on_fault_with_code[];

const struct exit_rule exit_rule_table[] = {
	{ RUN(cpuid), EXIT_CPUID, .checks = CHECK_LENGTH, .length = 2 },
	{ RUN(hlt), EXIT_HLT, .checks = CHECK_LENGTH, .length = 1 },
	{ RUN(invd), 13, .checks = CHECK_LENGTH, .length = 2 },
	{ RUN(invlpg), 14, SCRATCH + 4, CHECK_LENGTH, 4, .proc = INVLPG_EXITING },
	{ RUN(rdpmc), 15, .checks = CHECK_LENGTH, .length = 2, .proc = RDPMC_EXITING },
	{ RUN(rdtsc), 16, .checks = CHECK_LENGTH, .length = 2, .proc = RDTSC_EXITING },
	{ RUN(rdtscp), 51, .checks = CHECK_LENGTH, .length = 3, .proc = RDTSC_EXITING, .proc2 = ENABLE_RDTSCP },
	{ RUN(vmcall), EXIT_VMCALL, .checks = CHECK_LENGTH, .length = 3 },
	{ RUN(vmclear), 19, 0x10, CHECK_LENGTH | CHECK_INFORMATION, 5, AT_RBX, AT_MASK },
	{ RUN(vmlaunch), 20, .checks = CHECK_LENGTH, .length = 3 },
	{ RUN(vmptrld), 21, -8ull, CHECK_LENGTH | CHECK_INFORMATION, 4, AT_RBX, AT_MASK },
	{ RUN(vmptrst), 22, 0, CHECK_LENGTH | CHECK_INFORMATION, 4,
	  2 | ADDRESS_64 | SEGMENT_DS | INDEX(RCX) | BASE(RBX), AT_MASK | 3 | INDEX(15) },
	{ RUN(vmread_register), 23, 0, CHECK_LENGTH | CHECK_INFORMATION, 3,
	  REGISTER1(RDX) | REGISTER_FORM | REGISTER2(RCX), REGISTER1(15) | REGISTER_FORM | REGISTER2(15) },
	{ RUN(vmread_memory), 23, 8, CHECK_LENGTH | CHECK_INFORMATION, 4, AT_RBX | REGISTER2(RCX), AT_MASK | REGISTER2(15) },
	{ RUN(vmresume), 24, .checks = CHECK_LENGTH, .length = 3 },
	{ RUN(vmwrite_register), 25, 0, CHECK_LENGTH | CHECK_INFORMATION, 4,
	  REGISTER1(R9) | REGISTER_FORM | REGISTER2(RCX), REGISTER1(15) | REGISTER_FORM | REGISTER2(15) },
	{ RUN(vmwrite_memory), 25, 0, CHECK_LENGTH | CHECK_INFORMATION, 3, AT_RBX | REGISTER2(RCX), AT_MASK | REGISTER2(15) },
	{ RUN(vmxoff), 26, .checks = CHECK_LENGTH, .length = 3 },
	{ RUN(vmxon), 27, 0, CHECK_LENGTH | CHECK_INFORMATION, 4, AT_RBX, AT_MASK },
	{ RUN(invept), 50, 0, CHECK_LENGTH | CHECK_INFORMATION, 5, AT_RBX | REGISTER2(RCX), AT_MASK | REGISTER2(15) },
	{ RUN(invvpid), 53, 0x20, CHECK_LENGTH | CHECK_INFORMATION, 6, AT_RBX | REGISTER2(RDX), AT_MASK | REGISTER2(15) },

	{ RUN(mov_to_cr3), EXIT_CR_ACCESS, 3 | R9 << 8, CHECK_LENGTH, 4, .proc = CR3_LOAD_EXITING },
	{ RUN(mov_from_cr3), EXIT_CR_ACCESS, 3 | 1 << 4 | RDX << 8, CHECK_LENGTH, 3, .proc = CR3_STORE_EXITING },
	{ RUN(mov_to_cr8), EXIT_CR_ACCESS, 8 | RCX << 8, CHECK_LENGTH, 4, .proc = CR8_LOAD_EXITING },
	{ RUN(mov_from_cr8), EXIT_CR_ACCESS, 8 | 1 << 4 | RDI << 8, CHECK_LENGTH, 4, .proc = CR8_STORE_EXITING },
	{ RUN(mov_to_cr0), EXIT_CR_ACCESS, RDX << 8, CHECK_LENGTH, 3 },
	{ RUN(mov_to_cr4), EXIT_CR_ACCESS, 4 | RDX << 8, CHECK_LENGTH, 3, .cr4_mask = 4 },
	{ RUN(clts), EXIT_CR_ACCESS, 2 << 4, CHECK_LENGTH, 2, .cr0_shadow = CR0_TS },
	{ RUN(lmsw_register), EXIT_CR_ACCESS, 3 << 4 | 9 << 16, CHECK_LENGTH, 3 },
	{ RUN(lmsw_memory), EXIT_CR_ACCESS, 3 << 4 | 1 << 6 | 9 << 16, CHECK_LENGTH | CHECK_LINEAR, 4, .linear = SCRATCH + 6 },
	{ RUN(mov_to_dr), 29, 7 | RAX << 8, CHECK_LENGTH, 3, .proc = MOV_DR_EXITING },
	{ RUN(mov_from_dr), 29, 6 | 1 << 4 | RCX << 8, CHECK_LENGTH, 3, .proc = MOV_DR_EXITING },

	{ RUN(out_immediate), EXIT_IO, IO(1, 0xe0) | IO_IMMEDIATE, CHECK_LENGTH, 2 },
	{ RUN(in_dx), EXIT_IO, IO(4, 0xe4) | IO_IN, CHECK_LENGTH, 1 },
	{ RUN(outs), EXIT_IO, IO(1, 0xe4) | IO_STRING, CHECK_LENGTH | CHECK_INFORMATION | CHECK_LINEAR, 1,
	  ADDRESS_64 | SEGMENT_DS, STRING_MASK, .linear = SCRATCH },
	{ RUN(rep_outs), EXIT_IO, IO(4, 0xe4) | IO_STRING | IO_REP, CHECK_LENGTH | CHECK_INFORMATION | CHECK_LINEAR, 2,
	  ADDRESS_64 | SEGMENT_DS, STRING_MASK, .linear = SCRATCH },
	{ RUN(ins), EXIT_IO, IO(2, 0xe4) | IO_STRING | IO_IN, CHECK_LENGTH | CHECK_INFORMATION | CHECK_LINEAR, 2,
	  ADDRESS_64, ADDRESS_MASK, .linear = SCRATCH },
	{ RUN(outs_address_32), EXIT_IO, IO(1, 0xe4) | IO_STRING, CHECK_LENGTH | CHECK_INFORMATION, 2,
	  ADDRESS_32 | SEGMENT_DS, STRING_MASK },
	{ RUN(outs_fs), EXIT_IO, IO(1, 0xe4) | IO_STRING, CHECK_LENGTH | CHECK_INFORMATION, 2,
	  ADDRESS_64 | SEGMENT_FS, STRING_MASK },
	{ RUN(rdmsr), EXIT_RDMSR, .checks = CHECK_LENGTH, .length = 2 },
	{ RUN(wrmsr), EXIT_WRMSR, .checks = CHECK_LENGTH, .length = 2 },
	{ RUN(monitor), 39, .checks = CHECK_LENGTH, .length = 3, .proc = MONITOR_EXITING, .cpuid_leaf = 1, .cpuid_ecx = 1 << 3 },
	{ RUN(mwait), 36, .checks = CHECK_LENGTH | CHECK_NO_QUALIFICATION, .length = 3, .proc = MWAIT_EXITING,
	  .cpuid_leaf = 1, .cpuid_ecx = 1 << 3 },
	{ RUN(pause), 40, .checks = CHECK_LENGTH, .length = 2, .proc = PAUSE_EXITING },
	{ RUN(lgdt), 46, 0, CHECK_LENGTH | CHECK_INFORMATION, 3, AT_RBX | IDENTITY(2), AT_MASK | IDENTITY(3),
	  .proc2 = DESCRIPTOR_EXITING },
	{ RUN(sidt), 46, 8, CHECK_LENGTH | CHECK_INFORMATION, 4, AT_RBX | IDENTITY(1), AT_MASK | IDENTITY(3),
	  .proc2 = DESCRIPTOR_EXITING },
	{ RUN(lldt), 47, 0, CHECK_LENGTH | CHECK_INFORMATION, 3, REGISTER1(RCX) | REGISTER_FORM | IDENTITY(2),
	  REGISTER1(15) | REGISTER_FORM | IDENTITY(3), .proc2 = DESCRIPTOR_EXITING },
	{ RUN(str), 47, 0, CHECK_LENGTH | CHECK_INFORMATION, 3, REGISTER1(RDX) | REGISTER_FORM | IDENTITY(1),
	  REGISTER1(15) | REGISTER_FORM | IDENTITY(3), .proc2 = DESCRIPTOR_EXITING },
	{ RUN(sldt_memory), 47, 0, CHECK_LENGTH | CHECK_INFORMATION, 3, AT_RBX, AT_MASK | IDENTITY(3), .proc2 = DESCRIPTOR_EXITING },
	{ RUN(wbinvd), 54, .checks = CHECK_LENGTH, .length = 2, .proc2 = WBINVD_EXITING },
	{ RUN(rdrand), 57, 0, CHECK_LENGTH | CHECK_INFORMATION, 4, REGISTER1(RDX) | 2 << 11, REGISTER1(15) | 3 << 11,
	  .proc2 = RDRAND_EXITING, .cpuid_leaf = 1, .cpuid_ecx = 1 << 30 },
	{ RUN(rdseed), 61, 0, CHECK_LENGTH | CHECK_INFORMATION, 3, REGISTER1(RCX) | 1 << 11, REGISTER1(15) | 3 << 11,
	  .proc2 = RDSEED_EXITING, .cpuid_leaf = 7, .cpuid_ebx = 1 << 18 },
	{ RUN(invpcid), 58, 0, CHECK_LENGTH | CHECK_INFORMATION, 5, AT_RBX | REGISTER2(RCX), AT_MASK | REGISTER2(15),
	  .proc = INVLPG_EXITING, .proc2 = ENABLE_INVPCID, .cpuid_leaf = 7, .cpuid_ebx = 1 << 10 },

	{ RUN(invalid_opcode), EXIT_EXCEPTION_OR_NMI, .checks = CHECK_EVENT, .event = EXCEPTION(UD), .exceptions = ON(UD) },
	{ RUN(breakpoint), EXIT_EXCEPTION_OR_NMI, 0, CHECK_EVENT | CHECK_LENGTH, 1,
	  .event = EVENT(TYPE_SOFTWARE_EXCEPTION, 3), .exceptions = ON(3) },
	{ RUN(icebp), EXIT_EXCEPTION_OR_NMI, 0, CHECK_EVENT | CHECK_LENGTH, 1, .event = EVENT(5u, 1), .exceptions = ON(1) },
	{ RUN(divide), EXIT_EXCEPTION_OR_NMI, .checks = CHECK_EVENT, .event = EXCEPTION(0), .exceptions = ON(0) },
	{ RUN(selector), EXIT_EXCEPTION_OR_NMI, .checks = CHECK_EVENT, .event = EXCEPTION(GP) | WITH_CODE,
	  .error_code = START_RAX, .exceptions = ON(GP) },
	{ RUN(page_fault), EXIT_EXCEPTION_OR_NMI, UNMAPPED_LINEAR + 8, CHECK_EVENT, .event = EXCEPTION(PF) | WITH_CODE,
	  .error_code = 2, .exceptions = ON(PF) },
	{ RUN(stack_fault), EXIT_EXCEPTION_OR_NMI, .checks = CHECK_EVENT, .event = EXCEPTION(SS) | WITH_CODE, .exceptions = ON(SS) },
	{ RUN(single_step), EXIT_EXCEPTION_OR_NMI, 1 << 14, CHECK_EVENT, .event = EXCEPTION(1), .exceptions = ON(1) },
	{ RUN(triple_fault), 2 },

	{ RUN(ept_read), EXIT_EPT_VIOLATION, 0x181, CHECK_LINEAR | CHECK_PHYSICAL, .linear = LAZY_WINDOW + 0x18,
	  .physical = LAZY_WINDOW + 0x18 },
	{ RUN(ept_write), EXIT_EPT_VIOLATION, 0x182, CHECK_LINEAR | CHECK_PHYSICAL, .linear = LAZY_WINDOW + 0x18,
	  .physical = LAZY_WINDOW + 0x18 },
	{ .name = "exit.ept_fetch", .code = code_ept_fetch, .at = (const char *)(LAZY_WINDOW + 0x2000), EXIT_EPT_VIOLATION, 0x184,
	  CHECK_LINEAR | CHECK_PHYSICAL, .linear = LAZY_WINDOW + 0x2000, .physical = LAZY_WINDOW + 0x2000 },
	{ RUN(ept_walk), EXIT_EPT_VIOLATION, PAGE_TABLE_WALK, CHECK_LINEAR | CHECK_PHYSICAL,
	  .linear = (uint64_t)at_ept_walk, .physical = LAZY_WINDOW, .guest_cr3 = LAZY_WINDOW },
	{ RUN(ept_misconfiguration), EXIT_EPT_MISCONFIGURATION, .checks = CHECK_PHYSICAL | CHECK_NO_QUALIFICATION,
	  .physical = DEVICE_MISCONFIG + 4 },
	{ RUN(vectoring_exception), EXIT_EPT_VIOLATION, 0x182, CHECK_VECTORING | CHECK_PHYSICAL,
	  .physical = WINDOW_STACK - 8, .vectoring = EXCEPTION(0) },
	{ RUN(vectoring_error_code), EXIT_EPT_VIOLATION, 0x182, CHECK_VECTORING | CHECK_PHYSICAL,
	  .physical = WINDOW_STACK - 8, .vectoring = EXCEPTION(GP) | WITH_CODE, .error_code = START_RAX },
	{ RUN(vectoring_int), EXIT_EPT_VIOLATION, 0x182, CHECK_VECTORING | CHECK_PHYSICAL | CHECK_LENGTH, 2,
	  .physical = WINDOW_STACK - 8, .vectoring = EVENT(TYPE_SOFTWARE_INTERRUPT, 0x50) },

	{ RUN(sti_blocking), EXIT_CPUID, .interruptibility = 1 },
	{ RUN(mov_ss_blocking), EXIT_CPUID, .interruptibility = 2 },
	{ RUN(interrupt_window), EXIT_INTERRUPT_WINDOW, .proc = INTERRUPT_WINDOW_EXITING, .rflags = RFLAGS_IF },
	{ RUN(interrupt_window_after_sti), EXIT_INTERRUPT_WINDOW, .proc = INTERRUPT_WINDOW_EXITING },
	{ RUN(preemption_timer_zero), EXIT_PREEMPTION_TIMER, .pin = ACTIVATE_PREEMPTION_TIMER },
	{ RUN(monitor_trap), EXIT_MONITOR_TRAP_FLAG, .proc = MONITOR_TRAP_FLAG },
	{ .name = "exit.monitor_trap_after_injection", .code = code_cpuid, .at = guest_on_timer, EXIT_MONITOR_TRAP_FLAG,
	  .proc = MONITOR_TRAP_FLAG, .injection = EVENT(TYPE_EXTERNAL, VECTOR_TIMER), .rflags = RFLAGS_IF },
	{ .name = "exit.monitor_trap_after_injected_exception", .code = code_cpuid, .at = guest_on_fault_with_code,
	  EXIT_MONITOR_TRAP_FLAG, .proc = MONITOR_TRAP_FLAG, .injection = EXCEPTION(GP) | WITH_CODE, .injection_error = 0x18 },
	{ .name = "exit.monitor_trap_after_injected_int", .code = code_cpuid, .at = guest_on_timer, EXIT_MONITOR_TRAP_FLAG,
	  .proc = MONITOR_TRAP_FLAG, .injection = EVENT(TYPE_SOFTWARE_INTERRUPT, VECTOR_TIMER), .injection_length = 2 },
};
const unsigned exit_rule_count = sizeof exit_rule_table / sizeof exit_rule_table[0];
