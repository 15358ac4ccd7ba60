/* Constants shared by the assembly and the C files. */
#ifndef LAYOUT_H
#define LAYOUT_H

#define SEL_CODE64      0x08
#define SEL_DATA        0x10
#define SEL_USER_CODE32 0x18
#define SEL_USER_DATA   0x20
#define SEL_USER_CODE64 0x28
#define SEL_TSS         0x30

#define PTE_P_RW_US     0x7
#define PTE_LARGE       0x80

#define CR0_PE          0x1
#define CR0_NE          0x20
#define CR0_WP          0x10000
#define CR0_PG          0x80000000
#define CR4_PAE         0x20

#define MSR_EFER        0xc0000080
#define EFER_SCE        0x1
#define EFER_LME        0x100

#endif
