/* What the library was built from: the digest of its sources, or nothing when the build did not say. */
#include "events.h"

#ifndef LZERO_DIGEST
#define LZERO_DIGEST ""
#endif

const char *lz_digest(void)
{
	return LZERO_DIGEST;
}
