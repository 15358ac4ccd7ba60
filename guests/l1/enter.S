/* bool vmx_enter(struct registers *registers, bool launched)
 *
 * VM entry loads RSP, RIP and RFLAGS from the VMCS, all other general registers
 * are ours to load; a VM exit comes back at vmx_exit with the guest's values in
 * them.
 */
#define HOST_RSP 0x6c14
#define AT(n) (n * 8)

	.text
	.globl	vmx_enter, vmx_exit
vmx_enter:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	pushq	%rdi

	/* The stack may lie deeper than at the last entry; most often it does not. */
	cmpq	%rsp, host_rsp(%rip)
	je	1f
	movl	$HOST_RSP, %eax
	vmwrite	%rsp, %rax
	jbe	failed
	movq	%rsp, host_rsp(%rip)
1:
	testb	%sil, %sil              /* MOV keeps the flags until the JZ below */
	movq	AT(0)(%rdi), %rax
	movq	AT(1)(%rdi), %rcx
	movq	AT(2)(%rdi), %rdx
	movq	AT(3)(%rdi), %rbx
	movq	AT(5)(%rdi), %rbp
	movq	AT(6)(%rdi), %rsi
	movq	AT(8)(%rdi), %r8
	movq	AT(9)(%rdi), %r9
	movq	AT(10)(%rdi), %r10
	movq	AT(11)(%rdi), %r11
	movq	AT(12)(%rdi), %r12
	movq	AT(13)(%rdi), %r13
	movq	AT(14)(%rdi), %r14
	movq	AT(15)(%rdi), %r15
	movq	AT(7)(%rdi), %rdi
	jz	2f
	vmresume
	jmp	failed
2:	vmlaunch
failed:
	popq	%rdi
	movl	$1, %eax
	jmp	3f

vmx_exit:
	pushq	%rdi
	movq	8(%rsp), %rdi
	movq	%rax, AT(0)(%rdi)
	movq	%rcx, AT(1)(%rdi)
	movq	%rdx, AT(2)(%rdi)
	movq	%rbx, AT(3)(%rdi)
	movq	%rbp, AT(5)(%rdi)
	movq	%rsi, AT(6)(%rdi)
	movq	%r8, AT(8)(%rdi)
	movq	%r9, AT(9)(%rdi)
	movq	%r10, AT(10)(%rdi)
	movq	%r11, AT(11)(%rdi)
	movq	%r12, AT(12)(%rdi)
	movq	%r13, AT(13)(%rdi)
	movq	%r14, AT(14)(%rdi)
	movq	%r15, AT(15)(%rdi)
	popq	AT(7)(%rdi)
	popq	%rdi
	xorl	%eax, %eax
3:	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret

	.data
	.globl	host_rsp
	.align	8
host_rsp:
	.quad	0                       /* what the current VMCS holds; 0 for a fresh one */

	.section .note.GNU-stack, "", @progbits
