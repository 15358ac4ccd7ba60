/* Ring 3 calls ring 0 with SYSCALL and comes back with SYSRET.  Options: count=N. */
#include "bench.h"

#define MSR_STAR   0xc0000081
#define MSR_LSTAR  0xc0000082
#define MSR_SFMASK 0xc0000084
#define FLAGS_MASKED 0x47700   /* AC, NT, IOPL, DF, IF, TF */

extern const char syscall_entry[], user_loop[];
extern char user_stack_top[];
void enter_user(uint64_t count);

asm(
	"	.text\n"
	/* Saves where to return, drops to ring 3, and is left by system call 1. */
	"enter_user:\n"
	"	pushq	%rbx\n"
	"	pushq	%rbp\n"
	"	pushq	%r12\n"
	"	pushq	%r13\n"
	"	pushq	%r14\n"
	"	pushq	%r15\n"
	"	movq	%rsp, kernel_stack(%rip)\n"
	"	leaq	user_loop(%rip), %rcx\n"
	"	movl	$2, %r11d\n"
	"	leaq	user_stack_top(%rip), %rsp\n"
	"	sysretq\n"

	/* RDI = iterations; RAX = 0 counts, 1 ends. */
	"user_loop:\n"
	"1:	xorl	%eax, %eax\n"
	"	syscall\n"
	"	decq	%rdi\n"
	"	jnz	1b\n"
	"	movl	$1, %eax\n"
	"	syscall\n"
	"	ud2\n"

	"syscall_entry:\n"
	"	swapgs\n"
	"	movq	%rsp, user_stack_saved(%rip)\n"
	"	movq	kernel_stack(%rip), %rsp\n"
	"	testl	%eax, %eax\n"
	"	jnz	2f\n"
	"	pushq	%rcx\n"
	"	pushq	%r11\n"
	"	incq	calls(%rip)\n"
	"	popq	%r11\n"
	"	popq	%rcx\n"
	"	movq	user_stack_saved(%rip), %rsp\n"
	"	swapgs\n"
	"	sysretq\n"
	"2:	swapgs\n"
	"	popq	%r15\n"
	"	popq	%r14\n"
	"	popq	%r13\n"
	"	popq	%r12\n"
	"	popq	%rbp\n"
	"	popq	%rbx\n"
	"	ret\n"

	"	.bss\n"
	"	.balign	16\n"
	"kernel_stack:\n"
	"	.skip	8\n"
	"user_stack_saved:\n"
	"	.skip	8\n"
	"calls:\n"
	"	.skip	8\n"
	"	.balign	4096\n"
	"	.skip	4096\n"
	"user_stack_top:\n"
	"	.text\n");

extern uint64_t calls;

int guest_main(void)
{
	uint64_t count = option_value("count", 100000);
	uint64_t tsc;

	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
	wrmsr(MSR_STAR, (uint64_t)(SEL_USER_CODE32 | 3) << 48 | (uint64_t)SEL_CODE64 << 32);
	wrmsr(MSR_LSTAR, (uint64_t)syscall_entry);
	wrmsr(MSR_SFMASK, FLAGS_MASKED);
	tsc = rdtsc();
	enter_user(count);
	tsc = rdtsc() - tsc;
	if (calls != count)
		panic("system calls were lost");
	return report("syscall", count, tsc);
}
