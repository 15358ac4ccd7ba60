"""The guest images that come with the package, built from ``guests/`` of the source tree.

>>> from lzero import guests
>>> guests.path("hello").name
'hello.elf'
>>> "hello.elf" in [guest.name for guest in guests.available()]
True
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from lzero.errors import ImageError

__all__ = ["Guest", "available", "path"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Guest:
    """One shipped image.

    Parameters
    ----------
    name:
        File name in the package.
    description:
        What it exercises, and its command-line options.
    kind:
        ``multiboot`` for a kernel to run, ``linux`` for a static program that goes into an initramfs.
    sha256:
        Digest of the file as it was built, in hexadecimal.
    """

    name: str
    description: str
    kind: str
    sha256: str


@functools.cache
def available() -> tuple[Guest, ...]:
    """The shipped images, in the order of the manifest that ``scripts/build-guests`` wrote."""
    manifest = tomllib.loads((_FOLDER / "manifest.toml").read_text())
    return tuple(Guest(**row) for row in manifest["image"])


def path(name: str) -> Path:
    """Where the image `name` lies; the suffix ``.elf`` may be left out.

    Raises
    ------
    ImageError
        No image of this name is shipped; the message lists those that are.
    """
    wanted = name if name.endswith(".elf") else f"{name}.elf"
    names = [guest.name for guest in available()]
    if wanted not in names:
        raise ImageError(f"no bundled guest {name!r}; there are: {', '.join(names)}")
    return _FOLDER / wanted
