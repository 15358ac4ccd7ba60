/* What the program and the guest code it runs agree on. */
#ifndef L2_H
#define L2_H

#define PORT_TEXT   0xe9        /* bytes to show */
#define PORT_RESULT 0xec        /* doublewords that the program checks */
#define DEVICE      0xd0000     /* no memory there: the program plays a register */
#define LEAF        0x40000000  /* CPUID leaf that the program fills */
#define LEAF_EAX    7
#define FRESH       0x1000000   /* memory that nobody has touched */
#define CODE        0x8000
#define STACK       0x7000
#define MSR_READ    0x8b        /* IA32_BIOS_SIGN_ID: KVM intercepts it */

#endif
