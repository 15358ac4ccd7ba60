/* Multiboot 1 entry (32-bit protected mode, paging off) to 64-bit C.
 *
 * The loader hands over with EAX = the multiboot magic and EBX = the address of
 * the information structure.  Everything below 4 GiB is mapped one to one with
 * 2 MiB pages, accessible from ring 3 so that the system-call benchmark needs no
 * tables of its own.
 */
#include "layout.h"

#define MULTIBOOT_MAGIC  0x1badb002
#define WANT_MEMORY_INFO (1 << 1)
#define HAS_ADDRESSES    (1 << 16)

#ifdef ELF_HEADERS_ONLY             /* the loader must go by the program headers */
#define MULTIBOOT_FLAGS  WANT_MEMORY_INFO
#else                               /* the "a.out kludge": loadable whatever the ELF class */
#define MULTIBOOT_FLAGS  (WANT_MEMORY_INFO | HAS_ADDRESSES)
#endif

	.section .multiboot, "a"
	.align	4
multiboot_header:
	.long	MULTIBOOT_MAGIC
	.long	MULTIBOOT_FLAGS
	.long	-(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)
#ifndef ELF_HEADERS_ONLY
	.long	multiboot_header
	.long	image_start
	.long	image_data_end
	.long	image_bss_end
	.long	_start
#endif

	.section .boot.text, "ax"
	.code32
	.globl	_start
_start:
	cli
	cld
	movl	$boot_stack_top, %esp
	movl	%eax, %esi              /* magic; EBX is kept as it is */

	/* PML4[0] -> PDPT, PDPT[0..3] -> four page directories */
	movl	$boot_pdpt + PTE_P_RW_US, boot_pml4
	movl	$boot_pd + PTE_P_RW_US, %eax
	movl	$boot_pdpt, %edi
	movl	$4, %ecx
1:	movl	%eax, (%edi)
	addl	$0x1000, %eax
	addl	$8, %edi
	loop	1b

	/* 2048 large pages: 4 GiB */
	movl	$PTE_P_RW_US + PTE_LARGE, %eax
	movl	$boot_pd, %edi
	movl	$2048, %ecx
1:	movl	%eax, (%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	loop	1b

	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$boot_pml4, %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	rdmsr
	orl	$EFER_LME, %eax
	wrmsr
	movl	%cr0, %eax
	orl	$CR0_PG + CR0_WP + CR0_NE + CR0_PE, %eax
	movl	%eax, %cr0
	lgdt	boot_gdt_pointer
	ljmp	$SEL_CODE64, $long_mode

	.code64
long_mode:
	movl	$SEL_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	movq	$boot_stack_top, %rsp

	/* The TSS descriptor's base is only known after linking. */
	movq	$boot_tss, %rax
	movq	$boot_gdt + SEL_TSS, %rdi
	movw	%ax, 2(%rdi)
	shrq	$16, %rax
	movb	%al, 4(%rdi)
	movb	%ah, 7(%rdi)
	movl	$SEL_TSS, %eax
	ltr	%ax

	movl	%esi, %edi
	movl	%ebx, %esi
	call	runtime_start           /* does not return */
1:	cli
	hlt
	jmp	1b

	.section .data
	.align	16
	.globl	boot_gdt
boot_gdt:
	.quad	0
	.quad	0x00af9b000000ffff      /* SEL_CODE64 */
	.quad	0x00cf93000000ffff      /* SEL_DATA */
	.quad	0x00cffb000000ffff      /* SEL_USER_CODE32: the base of SYSRET's selectors */
	.quad	0x00cff3000000ffff      /* SEL_USER_DATA */
	.quad	0x00affb000000ffff      /* SEL_USER_CODE64 */
	.quad	0x0000890000000067      /* SEL_TSS, base filled in above */
	.quad	0
boot_gdt_end:
boot_gdt_pointer:
	.word	boot_gdt_end - boot_gdt - 1
	.quad	boot_gdt

	.align	16
	.globl	boot_tss
boot_tss:
	.long	0
	.quad	boot_stack_top          /* RSP0: where exceptions of ring 3 land */
	.fill	92, 1, 0

	.section .bss
	.align	4096
boot_pml4:
	.skip	4096
boot_pdpt:
	.skip	4096
boot_pd:
	.skip	4 * 4096
boot_stack:
	.skip	16384
	.globl	boot_stack_top
boot_stack_top:

	.section .note.GNU-stack, "", @progbits
