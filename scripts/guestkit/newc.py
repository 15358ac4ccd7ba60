"""Writing cpio archives in the "newc" form that Linux takes as an initramfs.

Deterministic: no times, owner root, inodes numbered in order.  The form is described in
the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

MAGIC = b"070701"
TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One member: its path without a leading slash, type and permissions, content or device numbers."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str) -> Entry:
    """A folder that everybody may read."""
    return Entry(path, stat.S_IFDIR | 0o755)


def regular(path: str, data: bytes, executable: bool = False) -> Entry:
    """A plain file."""
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link to `target`."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int) -> Entry:
    """A device node; no root is needed to write one into an archive."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def _pad(size: int) -> bytes:
    return b"\0" * (-size % 4)


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = MAGIC + b"".join(b"%08x" % field for field in fields) + name
    return head + _pad(len(head)) + entry.data + _pad(len(entry.data))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of `entries`, in the order given (folders must come before what they hold)."""
    members = [_member(entry, inode) for inode, entry in enumerate(entries, start=1)]
    members.append(_member(Entry(TRAILER, 0), 0))
    return b"".join(members)
