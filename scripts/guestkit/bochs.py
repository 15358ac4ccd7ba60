"""Running a multiboot guest on Bochs: another implementation of VMX to compare with.

QEMU's TCG has no VMX.  Bochs has, and Debian packages it; it boots no multiboot
image itself, so GRUB is put on a CD image before it.  Needs `bochs`, `bochsbios`, `vgabios`,
`grub-pc-bin`, `grub-common`, `xorriso` and `mtools`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

CONFIGURATION = """\
cpu: model={model}, count=1, ips=50000000
memory: guest=256, host=256
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path={folder}/guest.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={folder}/serial.txt
log: {folder}/log.txt
panic: action=fatal
display_library: rfb, options="timeout=0"
clock: sync=none, time0=1
"""
GRUB_MENU = """\
set timeout=0
menuentry guest {{
	multiboot /guest.elf {options}
	boot
}}
"""


class BochsError(Exception):
    """Bochs or GRUB is missing, or the guest did not end in time."""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in ("bochs", "grub-mkrescue", "xorriso", "mformat") if shutil.which(name) is None]


def run(
    image: Path, options: str, until: str, folder: Path, seconds: float = 60, model: str = "corei7_skylake_x"
) -> str:
    """The guest's console up to the line that matches the expression `until`.

    Bochs has no debug-exit device, so the guest's last line has to be known.
    `folder` must be empty; it holds the CD image and Bochs' log afterwards.
    """
    tree = folder / "tree" / "boot" / "grub"
    tree.mkdir(parents=True)
    shutil.copy(image, folder / "tree" / "guest.elf")
    (tree / "grub.cfg").write_text(GRUB_MENU.format(options=options))
    (folder / "bochsrc").write_text(CONFIGURATION.format(model=model, folder=folder))
    (folder / "commands").write_text("continue\n")
    made = subprocess.run(
        ["grub-mkrescue", "-o", str(folder / "guest.iso"), str(folder / "tree")], capture_output=True, check=False
    )
    if made.returncode:
        raise BochsError(f"grub-mkrescue: {made.stderr.decode(errors='replace')}")

    # Debian's Bochs is built with its debugger, which wants a command and an open standard input.
    command = ["bochs", "-q", "-f", str(folder / "bochsrc"), "-rc", str(folder / "commands")]
    with (folder / "output.txt").open("wb") as output:
        bochs = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)
    serial = folder / "serial.txt"
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline and bochs.poll() is None:
            time.sleep(0.2)
            console = serial.read_text(errors="replace").replace("\r", "") if serial.exists() else ""
            if re.search(until + r".*\n", console, re.MULTILINE):
                return console
    finally:
        bochs.kill()
        bochs.communicate()
    log = folder / "log.txt"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    panics = [line for line in lines if line[11:12] == "p"]
    raise BochsError(f"no {until!r} on the console of {image.name} within {seconds} s: {console[-500:]!r} {panics}")
