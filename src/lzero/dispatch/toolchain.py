"""gcc and clang: finding them, the kernel's flags, and one clear error when they fail.

The flags are those that shape the code of a dispatcher in a kernel build for x86-64 (Linux ``Makefile`` and
``arch/x86/Makefile``). Options that only some compiler versions know are probed and left out where unknown, except
those without which a build would not be what its name says.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from lzero.errors import ToolError

__all__ = [
    "RETPOLINE_THUNKS",
    "Compiler",
    "compile_object",
    "find_compiler",
    "installed_compilers",
    "kernel_flags",
    "link_program",
    "require_flags",
    "retpoline_flags",
    "run_tool",
    "supported",
]

TIMEOUT_S = 120
"""Seconds after which a compiler, or a program it made, counts as hung."""

_ERROR_LINES = 6

WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wundef",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wmissing-declarations",
    "-Wimplicit-fallthrough",
    "-Wvla",
)

_CODE = (
    "-std=gnu11",
    "-O2",
    "-fno-strict-aliasing",
    "-fno-common",
    "-fno-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-delete-null-pointer-checks",
    "-fcf-protection=none",
    "-mno-red-zone",
    "-mno-sse",
    "-mno-mmx",
    "-mno-avx",
)

_KERNEL_ONLY = ("-mcmodel=kernel",)
"""Puts the code into the top 2 GiB, where no user program can be linked."""

_RETPOLINE = {
    "gcc": ("-mindirect-branch=thunk-extern", "-mindirect-branch-register", "-fno-jump-tables"),
    "clang": ("-mretpoline-external-thunk", "-fno-jump-tables"),
}
_RETPOLINE_OPTIONAL = ("-mindirect-branch-cs-prefix", "-mharden-sls=all")


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler for x86-64 that runs here."""

    path: str
    family: Literal["gcc", "clang"]
    version: str
    """First line of ``--version``."""


def run_tool(command: Sequence[str], what: str) -> str:
    """Run a program and return its standard output.

    Raises
    ------
    ToolError
        It is missing, hung or failed; the message holds the first lines of what it said.
    """
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except OSError as error:
        raise ToolError(f"{what}: cannot run {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise ToolError(f"{what}: {command[0]} did not end within {TIMEOUT_S} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[:_ERROR_LINES]
        ending = (
            f"ended by signal {-done.returncode}" if done.returncode < 0 else f"failed with status {done.returncode}"
        )
        raise ToolError("\n".join([f"{what}: {Path(command[0]).name} {ending}", *said]))
    return done.stdout.decode(errors="replace")


@cache
def find_compiler(name: str) -> Compiler:
    """The compiler of that name or path; :class:`ToolError` if it is missing or not for x86-64."""
    path = shutil.which(name)
    if path is None:
        raise ToolError(f"compiler {name!r} not found: install gcc or clang, or give its path with --cc")
    lines = run_tool([path, "--version"], f"compiler {name!r}").splitlines()
    version = lines[0] if lines else ""
    if "clang" in version:
        family: Literal["gcc", "clang"] = "clang"
    elif "gcc" in version.lower() or "Free Software Foundation" in "\n".join(lines):
        family = "gcc"
    else:
        raise ToolError(f"compiler {name!r} is neither gcc nor clang: it calls itself {version or 'nothing'!r}")
    target = run_tool([path, "-dumpmachine"], f"compiler {name!r}").strip()
    if not target.startswith("x86_64"):
        raise ToolError(f"compiler {name!r} makes code for {target}: a dispatcher is x86-64 code")
    return Compiler(path, family, version)


def installed_compilers() -> tuple[Compiler, ...]:
    """gcc and clang, as far as they are installed."""
    return tuple(find_compiler(name) for name in ("gcc", "clang") if shutil.which(name) is not None)


@cache
def supported(compiler: Compiler, flag: str) -> bool:
    """Whether the compiler accepts an option."""
    command = [compiler.path, "-Werror", flag, "-x", "c", "-c", "-o", "/dev/null", "/dev/null"]
    return subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False).returncode == 0


def require_flags(compiler: Compiler, flags: Sequence[str], purpose: str) -> tuple[str, ...]:
    """The flags, or :class:`ToolError` naming those the compiler lacks."""
    missing = [flag for flag in flags if not supported(compiler, flag)]
    if missing:
        raise ToolError(f"{compiler.version} lacks {' '.join(missing)}, without which there is no {purpose}")
    return tuple(flags)


def kernel_flags(compiler: Compiler, *, hosted: bool = False) -> tuple[str, ...]:
    """Flags of a kernel build, warnings as errors; ``hosted`` leaves out what keeps code from running as a program."""
    stack = "-mpreferred-stack-boundary=3" if compiler.family == "gcc" else "-mstack-alignment=8"
    # A program's caller keeps the stack 16-aligned, so the kernel's smaller alignment would break its callees.
    only_kernel = () if hosted else (*_KERNEL_ONLY, stack)
    return (*WARNINGS, *_CODE, *only_kernel)


def retpoline_flags(compiler: Compiler) -> tuple[str, ...]:
    """Flags of a kernel built with ``CONFIG_MITIGATION_RETPOLINE``."""
    needed = require_flags(compiler, _RETPOLINE[compiler.family], "retpoline build")
    optional = tuple(flag for flag in _RETPOLINE_OPTIONAL if supported(compiler, flag))
    return (*needed, *optional, "-DCONFIG_MITIGATION_RETPOLINE=1")


def compile_object(compiler: Compiler, source: str, flags: Sequence[str], output: Path) -> None:
    """Compile C text into the object file ``output``; :class:`ToolError` with the compiler's first complaints."""
    with tempfile.TemporaryDirectory(prefix="lzero-cc-") as directory:
        path = Path(directory) / f"{output.stem}.c"
        path.write_text(source, encoding="utf-8")
        run_tool([compiler.path, *flags, "-c", "-o", str(output), str(path)], f"compiling {path.name}")


def link_program(compiler: Compiler, objects: Sequence[Path], output: Path) -> None:
    """Link objects into a program without relocation at load, as a kernel is."""
    run_tool([compiler.path, "-no-pie", "-o", str(output), *map(str, objects)], f"linking {output.name}")


_REGISTERS = "rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()


def _thunk(register: str) -> str:
    """A retpoline: the return address is overwritten with the target while speculation spins in the loop."""
    name = f"__x86_indirect_thunk_{register}"
    return (
        f".globl {name}\\n.type {name}, @function\\n{name}:\\n"
        f"call 1f\\n2: pause\\nlfence\\njmp 2b\\n1: mov %{register}, (%rsp)\\nret\\n"
    )


RETPOLINE_THUNKS = "".join(f'__asm__("{_thunk(register)}");\n' for register in _REGISTERS) + (
    '__asm__(".globl __x86_return_thunk\\n__x86_return_thunk: ret\\nint3\\n");\n'
)
"""C text that defines the thunks a retpoline build calls."""
