"""``python -m lzero`` is the ``lzero`` command."""

import sys

from lzero.cli import main

if __name__ == "__main__":
    sys.exit(main())
