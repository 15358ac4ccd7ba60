/* What the library was built from: the digest of its sources, or nothing when the build did not say. */
#include "native.h"

#ifndef LZERO_DIGEST
#define LZERO_DIGEST ""
#endif

const char lz_engine_digest[] = LZERO_DIGEST;
