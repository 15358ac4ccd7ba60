/* The shortest exit handler there is: two VMREADs, one VMWRITE, VMRESUME.
 *
 * vmx_enter() starts the guest, a loop of CPUID.  Each CPUID exit comes to
 * roundtrip_exit, which uses registers that the guest does not; any other exit
 * goes on to vmx_exit, where vmx_enter() returns.
 */
#define EXIT_REASON    0x4402
#define GUEST_RIP      0x681e
#define REASON_CPUID   10
#define CPUID_LENGTH   2

	.text
	.globl	roundtrip_exit
	.align	16
roundtrip_exit:
	movl	$EXIT_REASON, %r8d
	vmread	%r8, %r9
	cmpl	$REASON_CPUID, %r9d
	jne	vmx_exit
	movl	$GUEST_RIP, %r8d
	vmread	%r8, %r9
	addq	$CPUID_LENGTH, %r9
	vmwrite	%r9, %r8
	vmresume
	ud2                             /* VMfail: nothing can be wrong with this VMCS */

	.section .guest, "ax"
	.globl	roundtrip_guest
	.align	16
roundtrip_guest:                        /* RDI = iterations */
1:	xorl	%eax, %eax
	cpuid
	decq	%rdi
	jnz	1b
	xorl	%eax, %eax
	vmcall
	ud2

	.section .note.GNU-stack, "", @progbits
