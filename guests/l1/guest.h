/* What the hypervisor and its guest agree on.  Read by C and assembly. */
#ifndef GUEST_H
#define GUEST_H

/* VMCALL: RAX says what for; DONE carries the guest's result in RBX. */
#define CALL_DONE        0
#define CALL_PING        1      /* RAX = 3 * RSI comes back */
#define CALL_DROP_WINDOW 2      /* forget the mappings of the lazy window */

#define LEAF_OWN         0x4c300000     /* CPUID leaf that L1 answers itself: EAX = ECX + 1 */

#define PORT_ECHO_OUT    0xe0           /* L1 keeps what is written … */
#define PORT_ECHO_IN     0xe4           /* … and gives it back plus one */
#define PORT_THROUGH     0x80           /* not intercepted by L1 */

#define MSR_SHADOWED     0x175          /* intercepted: L1 keeps a value of its own */
#define MSR_THROUGH      0xc0000102     /* not intercepted by L1 */
#define MSR_NOWHERE      0x12345678     /* L1 answers with #GP */

#define LAZY_WINDOW      0x40000000     /* guest-physical; mapped page by page, on demand */
#define LAZY_PAGES       2048
#define DEVICE_ABSENT    0x80000000     /* no EPT entry: EPT violation */
#define DEVICE_MISCONFIG 0x80200000     /* a deliberately wrong EPT entry: EPT misconfiguration */
#define UNMAPPED_LINEAR  0x1234567000   /* in no page table of the guest */

#define REAL_MODE_CODE   0x8000

#define VECTOR_TIMER     0x50           /* as the guest sees it; L1 takes it at another one */

#endif
