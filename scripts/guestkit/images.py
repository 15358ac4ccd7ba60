"""Build the guest images that the package ships, from guests/, byte for byte the same each time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "guests"
PREBUILT = ROOT / "src" / "lzero" / "guests"
MANIFEST = "manifest.toml"

KERNEL_LIBRARY = ("lib/boot.S", "lib/traps.S", "lib/runtime.c", "lib/print.c", "lib/format.c", "lib/timers.c")
L1_LIBRARY = ("l1/vmx.c", "l1/vmcs.c", "l1/ept.c", "l1/enter.S", "l1/guest.S")
L1 = ("l1/l1.c", "l1/workloads.c", "l1/exits.c", *L1_LIBRARY)
RULES_PARTS = ("rules", "instructions", "entries", "exits", "exit_table")
RULES = (*(f"vmx_rules/{part}.c" for part in RULES_PARTS), *L1_LIBRARY)
ROUNDTRIP = ("l1/roundtrip.c", "l1/roundtrip.S", *L1_LIBRARY)
LINUX_LIBRARY = ("lib/linux_start.S", "lib/linux.c", "lib/format.c")

FREESTANDING = (
    "-m64 -O2 -std=gnu11 -ffreestanding -nostdlib -static -no-pie -fno-pie -mcmodel=small -mno-red-zone "
    "-mgeneral-regs-only -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -fno-ident "
    "-ffunction-sections -fdata-sections -fno-strict-aliasing -Wall -Wextra -Wno-missing-field-initializers "
    "-Wstrict-prototypes -Wmissing-prototypes -Werror"
).split()
LINK = "-Wl,--build-id=none -Wl,-z,noexecstack -Wl,--no-gc-sections".split()
LINK_KERNEL = "-Wl,--no-warn-rwx-segments -Wl,-n -Wl,-T,lib/link.ld".split()


class BuildError(Exception):
    """A tool is missing or failed; the message holds what it printed."""


@dataclass(frozen=True)
class Image:
    """One image: its file name in the package and what it is made from."""

    name: str
    sources: tuple[str, ...]
    description: str
    kind: str = "multiboot"
    """`multiboot` for a kernel; `linux` for a static program that goes into an initramfs."""
    elf32: bool = False
    """Rewrap as ELF32 and leave the header's address fields out: loaders then go by the program headers."""


IMAGES = (
    Image("hello.elf", ("hello/hello.c",), "one level: CPUID, MSRs, exceptions, PIT and APIC timer interrupts, HLT"),
    Image("hello32.elf", ("hello/hello.c",), "the same as ELF32 without multiboot address fields", elf32=True),
    Image("bench_cpuid.elf", ("bench/bench_cpuid.c",), "benchmark: CPUID loop; count=N"),
    Image("bench_integer.elf", ("bench/bench_integer.c",), "benchmark: integer loop, no exits; count=N"),
    Image("bench_memory.elf", ("bench/bench_memory.c",), "benchmark: loads over a buffer; count=N passes, kib=N"),
    Image("bench_stores.elf", ("bench/bench_stores.c",), "benchmark: stores, push and pop; count=N"),
    Image("bench_syscall.elf", ("bench/bench_syscall.c",), "benchmark: ring 3 to ring 0 and back by SYSCALL; count=N"),
    Image("l1.elf", L1, "a small hypervisor with L2 guests of its own; run=NAME,… count=N where=l1"),
    Image("l1_roundtrip.elf", ROUNDTRIP, "benchmark: L2 CPUID to L1 (2 VMREAD, 1 VMWRITE) to L2; count=N"),
    Image("vmx_rules.elf", RULES, "rules of VMX instructions, entries and exits, one by one; verbose skip=NAME,…"),
    Image("tasks.elf", ("tasks/tasks.c",), "userland work: fork, system calls, text to compress", kind="linux"),
    Image("kvm_l2.elf", ("kvm_l2/kvm_l2.c", "kvm_l2/l2.S"), "guests of /dev/kvm in real and 64-bit mode", kind="linux"),
)


def _run(command: list[str]) -> str:
    """Run a tool in the sources' folder; its output, or `BuildError`."""
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    try:
        done = subprocess.run(command, cwd=SOURCES, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is not installed") from None
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def toolchain() -> dict[str, str]:
    """The versions that decide the bytes: compiler and linker."""
    return {
        "compiler": _run(["gcc", "--version"]).splitlines()[0],
        "linker": _run(["ld", "--version"]).splitlines()[0],
    }


def _include_flags(kind: str) -> list[str]:
    """Our headers; a kernel sees the compiler's freestanding ones (stdint.h, stdarg.h) besides, and no others."""
    if kind == "linux":
        return ["-Ilib", "-Il1"]
    own = _run(["gcc", "-print-file-name=include"]).strip()
    return ["-Ilib", "-Il1", "-nostdinc", "-isystem", own]


def build_image(image: Image, into: Path) -> Path:
    """Compile and link one image into the folder `into`.

    Every source is compiled from a path relative to guests/, and the result is
    stripped, so neither the checkout's place nor the time gets into the bytes.
    """
    with tempfile.TemporaryDirectory(prefix="lzero-guest-") as scratch:
        objects = []
        defines = ["-DELF_HEADERS_ONLY"] if image.elf32 else []
        kernel = image.kind == "multiboot"
        for source in (*(KERNEL_LIBRARY if kernel else LINUX_LIBRARY), *image.sources):
            target = Path(scratch) / (source.replace("/", "-") + ".o")
            _run(["gcc", *FREESTANDING, *_include_flags(image.kind), *defines, "-c", source, "-o", str(target)])
            objects.append(str(target))
        linked = Path(scratch) / "linked.elf"
        _run(["gcc", *FREESTANDING, *LINK, *(LINK_KERNEL if kernel else ()), *objects, "-o", str(linked)])
        result = into / image.name
        form = ["-O", "elf32-i386"] if image.elf32 else []
        _run(["objcopy", "--strip-debug", "--discard-all", *form, str(linked), str(result)])
    result.chmod(0o644)
    return result


def build(into: Path, images: Iterable[Image] = IMAGES) -> list[Path]:
    """Build the images and write the manifest beside them."""
    into.mkdir(parents=True, exist_ok=True)
    chosen = list(images)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        built = list(pool.map(lambda image: build_image(image, into), chosen))
    lines = ["# Written by scripts/build-guests; do not edit.", "[toolchain]"]
    lines += [f'{key} = "{value}"' for key, value in toolchain().items()]
    for image, path in zip(chosen, built, strict=True):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines += ["", "[[image]]", f'name = "{image.name}"', f'description = "{image.description}"']
        lines += [f'kind = "{image.kind}"', f'sha256 = "{digest}"']
    (into / MANIFEST).write_text("\n".join(lines) + "\n")
    return built


def recorded_toolchain() -> dict[str, str]:
    """The toolchain that made the shipped images."""
    recorded: dict[str, str] = tomllib.loads((PREBUILT / MANIFEST).read_text())["toolchain"]
    return recorded
