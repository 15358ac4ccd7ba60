/* EPT tables (SDM vol. 3, 29.3). */
#include "ept.h"
#include "guest.h"

#define PAGE      4096ull
#define LARGE     (2ull << 20)
#define ALL       (EPT_READ | EPT_WRITE | EPT_EXECUTE)
#define POOL      64             /* pages behind the window; it repeats them */
#define WINDOW_TABLES (LAZY_PAGES / 512)

typedef uint64_t table[512] __attribute__((aligned(4096)));

static table pml4, pdpt, identity, low_pages, window_directory, window[WINDOW_TABLES], device_directory, device;
static uint8_t pool[POOL][PAGE] __attribute__((aligned(4096)));
static uint8_t real_mode_page[PAGE] __attribute__((aligned(4096)));

uint64_t ept_pointer(void)
{
	return (uint64_t)pml4 | (4 - 1) << 3 | 6;   /* four levels, write-back tables */
}

uint8_t *ept_real_mode_page(void)
{
	return real_mode_page;
}

void ept_init(void)
{
	uint64_t needed = EPT_CAP_WALK_LENGTH_4 | EPT_CAP_WRITE_BACK | EPT_CAP_2M_PAGES | EPT_CAP_INVEPT_SINGLE;

	if ((rdmsr(IA32_VMX_EPT_VPID_CAP) & needed) != needed)
		panic("this EPT has no 4-level walk, write-back tables, 2 MiB pages or single-context INVEPT");
	pml4[0] = (uint64_t)pdpt | ALL;
	pdpt[0] = (uint64_t)identity | ALL;
	pdpt[LAZY_WINDOW >> 30] = (uint64_t)window_directory | ALL;
	pdpt[DEVICE_ABSENT >> 30] = (uint64_t)device_directory | ALL;

	/* The first 2 MiB in small pages, so that one of them can be another page. */
	for (unsigned i = 0; i < 512; i++) {
		low_pages[i] = i * PAGE | EPT_WRITE_BACK | ALL;
		identity[i] = i * LARGE | EPT_LARGE | EPT_WRITE_BACK | ALL;
	}
	identity[0] = (uint64_t)low_pages | ALL;
	low_pages[REAL_MODE_CODE / PAGE] = (uint64_t)real_mode_page | EPT_WRITE_BACK | ALL;

	for (unsigned i = 0; i < WINDOW_TABLES; i++)
		window_directory[i] = (uint64_t)window[i] | ALL;

	/* Writable but not readable is a misconfiguration whatever the processor can do. */
	device_directory[DEVICE_MISCONFIG >> 21 & 511] = (uint64_t)device | ALL;
	device[0] = EPT_WRITE;
}

bool ept_in_window(uint64_t guest_physical)
{
	return guest_physical >= LAZY_WINDOW && guest_physical < LAZY_WINDOW + LAZY_PAGES * PAGE;
}

void ept_allow(uint64_t guest_physical, unsigned rights)
{
	uint64_t page = (guest_physical - LAZY_WINDOW) / PAGE;
	uint64_t *entry = &window[page / 512][page % 512];

	if (rights & EPT_WRITE)
		rights |= EPT_READ;
	/* More rights need no INVEPT: a violation drops what was cached for the address (29.4.3.1). */
	*entry = (uint64_t)pool[page % POOL] | EPT_WRITE_BACK | (*entry & ALL) | rights;
}

void ept_drop_window(void)
{
	memset(window, 0, sizeof window);
	invept_single(ept_pointer());
}
