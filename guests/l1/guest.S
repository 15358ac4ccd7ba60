/* The L2 workloads.  Each is entered with the iteration count in RDI, on its own
 * stack, in ring 0 of 64-bit mode, and ends with VMCALL and a result in RBX that
 * L1 knows beforehand.
 */
#include "guest.h"
#include "layout.h"

	.section .guest, "ax"

	.macro	begin name
	.globl	\name
	.align	16
\name:
	xorl	%r12d, %r12d            /* the result */
	movq	%rdi, %rsi              /* iterations left */
	.endm

	.macro	finish
	movq	%r12, %rbx
	movl	$CALL_DONE, %eax
	vmcall
	ud2
	.endm

begin guest_cpuid
1:	movl	$LEAF_OWN, %eax
	movl	%esi, %ecx
	cpuid
	addq	%rax, %r12
	decq	%rsi
	jnz	1b
	finish

begin guest_vmcall
1:	movl	$CALL_PING, %eax
	vmcall
	addq	%rax, %r12
	decq	%rsi
	jnz	1b
	finish

/* Byte to one port, doubleword to the other width of it, both read back; a port
 * that L1 does not care for in between. */
begin guest_io
1:	movl	%esi, %eax
	outb	%al, $PORT_ECHO_OUT
	outb	%al, $PORT_THROUGH
	xorl	%eax, %eax
	inb	$PORT_ECHO_IN, %al
	addq	%rax, %r12
	movl	%esi, %eax
	movw	$PORT_ECHO_OUT, %dx
	outl	%eax, %dx
	movw	$PORT_ECHO_IN, %dx
	inl	%dx, %eax
	addq	%rax, %r12
	decq	%rsi
	jnz	1b
	finish

begin guest_msr
1:	movl	$MSR_SHADOWED, %ecx
	movl	%esi, %eax
	xorl	%edx, %edx
	wrmsr
	rdmsr
	addq	%rax, %r12              /* what was written, plus one */
	movl	$MSR_THROUGH, %ecx
	movl	%esi, %eax
	xorl	%edx, %edx
	wrmsr
	rdmsr
	addq	%rax, %r12              /* what was written */
	movl	$MSR_NOWHERE, %ecx
	leaq	2f(%rip), %rbx
	rdmsr
	jmp	3f
2:	incq	%r12                    /* the #GP handler came back here */
3:	decq	%rsi
	jnz	1b
	finish

/* Read, then write each page of the window: L1 maps it read-only first. */
begin guest_ept
	movl	$LAZY_WINDOW, %r8d
	movl	$LAZY_WINDOW + LAZY_PAGES * 4096, %r9d
1:	movq	(%r8), %rax
	movq	%rsi, (%r8)
	cmpq	%rsi, (%r8)
	jne	2f
	incq	%r12
2:	addq	$4096, %r8
	cmpq	%r9, %r8
	jb	3f
	movl	$CALL_DROP_WINDOW, %eax
	vmcall
	movl	$LAZY_WINDOW, %r8d
3:	decq	%rsi
	jnz	1b
	finish

/* RBX is the address: L1 decodes MOV between EAX and (RBX), nothing else. */
begin guest_mmio
1:	movl	$DEVICE_ABSENT, %ebx
	movl	%esi, %eax
	movl	%eax, (%rbx)
	xorl	%eax, %eax
	movl	(%rbx), %eax
	addq	%rax, %r12
	movl	$DEVICE_MISCONFIG, %ebx
	movl	%esi, %eax
	movl	%eax, (%rbx)
	movl	(%rbx), %eax
	addq	%rax, %r12
	decq	%rsi
	jnz	1b
	finish

/* Interrupts on half of the time, so that some must wait for the window. */
begin guest_timer
	movq	$0, guest_ticks(%rip)
1:	cli
	movl	$2000, %ecx
2:	loop	2b
	sti
	movl	$2000, %ecx
3:	loop	3b
	cmpq	%rsi, guest_ticks(%rip)
	jb	1b
	cli
	movq	guest_ticks(%rip), %r12
	finish

begin guest_hlt
	movq	$0, guest_ticks(%rip)
1:	sti
	hlt
	cli
	cmpq	%rsi, guest_ticks(%rip)
	jb	1b
	movq	guest_ticks(%rip), %r12
	finish

/* UD2 and a page fault, both taken by L1, and a divide error that is not. */
begin guest_exceptions
1:	leaq	2f(%rip), %rbx
	ud2
2:	leaq	3f(%rip), %rbx
	movabsq	$UNMAPPED_LINEAR, %rax
	movb	$1, (%rax)
	ud2
3:	leaq	4f(%rip), %rbx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	divl	%ecx
	ud2
4:	incq	%r12
	decq	%rsi
	jnz	1b
	finish

/* CR0.TS belongs to L1: set by MOV, seen in the shadow, cleared by CLTS. */
begin guest_cr
1:	movq	%cr0, %rax
	orq	$8, %rax
	movq	%rax, %cr0
	movq	%cr0, %rax
	shrq	$3, %rax
	andl	$1, %eax
	addq	%rax, %r12
	clts
	movq	%cr0, %rax
	shrq	$3, %rax
	andl	$1, %eax
	addq	%rax, %r12
	movq	%cr3, %rax
	movq	%rax, %cr3
	decq	%rsi
	jnz	1b
	finish

/* Runs until L1 has seen its preemption timer often enough. */
begin guest_preempt
1:	incq	%r12
	cmpq	$0, guest_flag(%rip)
	je	1b
	xorl	%r12d, %r12d
	finish

/* 2 instructions before the loop, 2 in it, 2 before the VMCALL. */
begin guest_mtf
1:	decq	%rsi
	jnz	1b
	finish

/* No exits at all; the same loops as the bench_ guests.  L1 can call the loops itself. */
	.globl	loop_integer, loop_stores
	.align	16
loop_integer:                           /* RSI = iterations */
	pushq	%rbx
1:	leaq	1(%rax,%rbx,2), %rax
	xorq	%rcx, %rbx
	addq	%rax, %rbx
	rolq	$7, %rcx
	subq	%rbx, %rcx
	decq	%rsi
	jnz	1b
	popq	%rbx
	ret

	.align	16
loop_stores:                            /* RSI = iterations */
	pushq	%rbx
	leaq	guest_scratch(%rip), %rbx
1:	movq	%rsi, (%rbx)
	movq	%rsi, 256(%rbx)
	movl	%eax, 512(%rbx)
	movb	%al, 1024(%rbx)
	pushq	%rsi
	pushq	%rax
	popq	%rax
	popq	%rcx
	decq	%rsi
	jnz	1b
	popq	%rbx
	ret

begin guest_integer
	call	loop_integer
	finish

begin guest_stores
	call	loop_stores
	finish

/* The guest's own exception handlers.  A fault continues where RBX says. */
	.globl	guest_on_fault_with_code, guest_on_fault, guest_on_timer
	.align	16
guest_on_fault_with_code:
	addq	$8, %rsp
guest_on_fault:
	movq	%rbx, (%rsp)
	iretq

	.align	16
guest_on_timer:
	incq	guest_ticks(%rip)
	iretq

/* Copied to REAL_MODE_CODE: counts in BX, leaves with the same VMCALL. */
	.globl	guest_real, guest_real_end
	.align	16
	.code16
guest_real:
	xorl	%ebx, %ebx
1:	movl	$LEAF_OWN, %eax
	movl	%ebx, %ecx
	pushl	%ebx
	cpuid
	popl	%ebx
	outb	%al, $PORT_ECHO_OUT
	inb	$PORT_ECHO_IN, %al
	incl	%ebx
	decl	%edi
	jnz	1b
	movl	$CALL_DONE, %eax
	vmcall
guest_real_end:
	.code64

	.bss
	.align	4096
	.globl	guest_stack_top, guest_flag
guest_scratch:
	.skip	4096
guest_stack:
	.skip	4096
guest_stack_top:
guest_ticks:
	.skip	8
guest_flag:
	.skip	8

	.section .note.GNU-stack, "", @progbits
