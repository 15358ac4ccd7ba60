/* Guest code, copied to CODE.  The iteration count comes in EDI or RDI; results
 * go to PORT_RESULT; HLT ends.
 */
#include "l2.h"

	.section .rodata

	.macro	code name
	.globl	\name, \name\()_end
	.align	16
\name:
	.endm

	.code16
code real_mode
	movw	$CODE + real_text - real_mode, %si
1:	lodsb
	testb	%al, %al
	jz	2f
	outb	%al, $PORT_TEXT
	jmp	1b
2:	movw	$DEVICE >> 4, %ax
	movw	%ax, %ds
	movl	$0x41, %eax
	movl	%eax, 0
	movl	0, %eax
	outl	%eax, $PORT_RESULT
	xorl	%ebp, %ebp
3:	movl	$LEAF, %eax
	xorl	%ecx, %ecx
	cpuid
	addl	%eax, %ebp
	decl	%edi
	jnz	3b
	movl	%ebp, %eax
	outl	%eax, $PORT_RESULT
	hlt
real_text:
	.asciz	"hello from real mode"
real_mode_end:

	.code64
code long_mode
	leaq	long_text(%rip), %rsi
1:	lodsb
	testb	%al, %al
	jz	2f
	outb	%al, $PORT_TEXT
	jmp	1b
2:	movl	$DEVICE, %ebx
	movl	$0x41, %eax
	movl	%eax, (%rbx)
	movl	(%rbx), %eax
	outl	%eax, $PORT_RESULT
	xorl	%ebp, %ebp
3:	movl	$LEAF, %eax
	xorl	%ecx, %ecx
	cpuid
	addl	%eax, %ebp
	decq	%rdi
	jnz	3b
	movl	%ebp, %eax
	outl	%eax, $PORT_RESULT
	hlt
long_text:
	.asciz	"hello from 64-bit mode"
long_mode_end:

/* Loops of one cause of exit each, in 64-bit mode. */
code loop_cpuid
1:	movl	$LEAF, %eax
	xorl	%ecx, %ecx
	cpuid
	decq	%rdi
	jnz	1b
	hlt
loop_cpuid_end:

code loop_port
1:	outb	%al, $PORT_TEXT + 1
	decq	%rdi
	jnz	1b
	hlt
loop_port_end:

code loop_mmio
	movl	$DEVICE, %ebx
1:	movl	%eax, (%rbx)
	decq	%rdi
	jnz	1b
	hlt
loop_mmio_end:

code loop_msr
	movl	$MSR_READ, %ecx
1:	rdmsr
	decq	%rdi
	jnz	1b
	hlt
loop_msr_end:

code loop_hlt
1:	hlt
	decq	%rdi
	jnz	1b
	hlt
loop_hlt_end:

code loop_ept
	movl	$FRESH, %ebx
1:	movb	$1, (%rbx)
	addq	$4096, %rbx
	decq	%rdi
	jnz	1b
	hlt
loop_ept_end:

	.section .note.GNU-stack, "", @progbits
