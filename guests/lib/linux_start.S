/* Where Linux enters a static program: argc and argv lie on the stack. */
	.text
	.globl	_start
_start:
	xorl	%ebp, %ebp
	movq	(%rsp), %rdi
	leaq	8(%rsp), %rsi
	andq	$-16, %rsp
	call	main
	movl	%eax, %edi
	call	leave

	.section .note.GNU-stack, "", @progbits
