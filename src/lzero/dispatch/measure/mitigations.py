"""How an indirect branch is compiled: the mitigations, each built for real or reported as absent.

The kernel decides some of these at boot by patching; here each is a build of its own, so that its code is what runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lzero.dispatch.toolchain import Compiler, require_flags
from lzero.errors import ToolError, UsageError

__all__ = ["MITIGATIONS", "Mitigation", "mitigation_named"]

_REGISTERS = "rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()
_EXTERN = {
    "gcc": ("-mindirect-branch=thunk-extern", "-mindirect-branch-register", "-fno-jump-tables"),
    "clang": ("-mretpoline-external-thunk", "-fno-jump-tables"),
}
_INLINE = {
    "gcc": ("-mindirect-branch=thunk-inline", "-mindirect-branch-register", "-fno-jump-tables"),
    "clang": ("-mretpoline", "-fno-jump-tables"),
}
_THUNK_SITE = re.compile(r"^\s*(jmp|call)q?\s+__x86_indirect_thunk_(r\w+)[ \t]*(?:#.*)?$", re.MULTILINE)


def _thunks(body: str, offset: int = 0) -> str:
    """Assembly that defines the thunk of every register, with ``{r}`` in the body replaced.

    ``offset`` is the place of each thunk in its cache line, in bytes.
    """
    parts = [".text"]
    for register in _REGISTERS:
        name = f"__x86_indirect_thunk_{register}"
        place = f".balign 64\n.skip {offset}, 0xcc\n.globl {name}\n.type {name}, @function"
        parts.append(f"{place}\n{name}:\n{body.format(r=register)}")
    parts.append('.section .note.GNU-stack,"",@progbits')
    return "\n".join(parts) + "\n"


_JUMP_BODY = "\tjmp *%{r}\n\tint3\n"
_RETPOLINE_BODY = "\tcall 1f\n2:\tpause\n\tlfence\n\tjmp 2b\n\t.balign 16\n1:\tmov %{r}, (%rsp)\n\tret\n\tint3\n"
_LFENCE_BODY = "\tlfence\n\tjmp *%{r}\n\tint3\n"


def _patch_sites(assembly: str) -> str:
    """Each branch to a thunk as the kernel patches it at boot on CPUs that need no retpoline: same length, no thunk."""

    def plain(match: re.Match[str]) -> str:
        operation, register = match.group(1), match.group(2)
        # Two bytes for the low registers, three for r8 to r15; a direct branch has five.
        padding = 2 if register[1:].isdigit() else 3
        filler = "int3" if operation == "jmp" else "nop"
        return "\n".join([f"\t{operation} *%{register}", *[f"\t{filler}"] * padding])

    patched = _THUNK_SITE.sub(plain, assembly)
    left = re.search(r"__x86_indirect_thunk_\w+", patched)
    if left is not None:
        raise ToolError(f"the branch to {left.group()} has a form that cannot be patched; build with another compiler")
    return patched


@dataclass(frozen=True)
class Mitigation:
    """One way to compile an indirect branch.

    Attributes
    ----------
    flags:
        Compiler options by family; a family that is not in it cannot build the mitigation.
    thunks:
        Assembly text with the thunks the build calls; empty when it calls none.
    rewrite:
        Applied to the dispatcher's assembly before it is assembled, or None.
    all_units:
        The handlers need the flags as well as the dispatchers.
    """

    name: str
    summary: str
    flags: Mapping[str, tuple[str, ...]]
    thunks: str = ""
    rewrite: Callable[[str], str] | None = None
    all_units: bool = False

    def flags_for(self, compiler: Compiler) -> tuple[str, ...]:
        """Options for ``compiler``.

        Raises
        ------
        ToolError
            When the compiler lacks one; the message names it.
        """
        wanted = self.flags.get(compiler.family, self.flags.get("clang", ()))
        return require_flags(compiler, wanted, f"build with mitigation {self.name}")


MITIGATIONS: Mapping[str, Mitigation] = {
    mitigation.name: mitigation
    for mitigation in (
        Mitigation("none", "plain indirect branches and jump tables", {"gcc": (), "clang": ()}),
        Mitigation("retpoline", "retpoline, thunk in another object (the kernel's)", _EXTERN, _thunks(_RETPOLINE_BODY)),
        Mitigation("retpoline-inline", "retpoline, thunk at the branch (gcc) or in the same object (clang)", _INLINE),
        Mitigation("lfence", "AMD's: lfence; jmp *reg in the thunk", _EXTERN, _thunks(_LFENCE_BODY)),
        Mitigation(
            "its", "ITS-safe thunk: jmp *reg in the upper half of a cache line", _EXTERN, _thunks(_JUMP_BODY, 32)
        ),
        Mitigation(
            "patched",
            "retpoline build whose branches were patched to plain jmp *reg",
            _EXTERN,
            _thunks(_RETPOLINE_BODY),
            _patch_sites,
        ),
        Mitigation(
            "kcfi",
            "clang's kernel control-flow integrity: a type hash is compared before each indirect call",
            {"clang": ("-fsanitize=kcfi",)},
            all_units=True,
        ),
    )
}
"""The mitigations by name."""


def mitigation_named(name: str) -> Mitigation:
    """Look a mitigation up; UsageError lists those there are."""
    try:
        return MITIGATIONS[name]
    except KeyError:
        raise UsageError(f"no mitigation {name!r}; there are {', '.join(MITIGATIONS)}") from None
