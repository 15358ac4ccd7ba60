/* The guest's physical address space: one to one below 1 GiB, a window that is
 * filled on demand, and two devices that are not there.
 */
#ifndef EPT_H
#define EPT_H

#include "vmx.h"

#define EPT_READ       1u
#define EPT_WRITE      2u
#define EPT_EXECUTE    4u
#define EPT_WRITE_BACK (6u << 3)
#define EPT_LARGE      (1u << 7)

void ept_init(void);
uint64_t ept_pointer(void);
void ept_allow(uint64_t guest_physical, unsigned rights);   /* in the lazy window */
void ept_drop_window(void);
bool ept_in_window(uint64_t guest_physical);
uint8_t *ept_real_mode_page(void);                          /* what the guest sees at REAL_MODE_CODE */

#endif
