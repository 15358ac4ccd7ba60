"""Guest code from assembly text, for tests: Intel syntax, one place that knows keystone."""

from __future__ import annotations

from functools import cache

import keystone as ks

__all__ = ["assemble"]

_MODES = {16: ks.KS_MODE_16, 32: ks.KS_MODE_32, 64: ks.KS_MODE_64}
# What keystone does not know or gets wrong, by its bytes.
_BYTES = {
    "invpcid rax, [rbx]": "660f388203",
    "invept rax, [rbx]": "660f388003",
    "invvpid rax, [rbx]": "660f388103",
    "vmfunc": "0f01d4",
    "vmcall": "0f01c1",
    "vmxoff": "0f01c4",
    "vmlaunch": "0f01c2",
    "vmresume": "0f01c3",
    "int1": "f1",
    "int3": "cc",
    "ud2": "0f0b",
    "rdseed eax": "0fc7f8",
    "rdseed r9": "490fc7f9",
    "rdrand ax": "660fc7f0",
    "getsec": "0f37",
}


@cache
def _encode(text: str, bits: int, address: int) -> bytes:
    encoding, _ = ks.Ks(ks.KS_ARCH_X86, _MODES[bits]).asm(text, address)
    if encoding is None:
        raise ValueError(f"keystone encodes nothing for {text!r}")
    return bytes(encoding)


def assemble(code: str | bytes, bits: int, address: int = 0) -> bytes:
    """Machine code of `code` for `bits`-bit code placed at `address`.

    Bytes pass through. Instructions are separated by ``;``. ``{0f 01 c1}`` stands for literal bytes.
    """
    if isinstance(code, bytes):
        return code
    out = b""
    for statement in (part.strip() for part in code.split(";")):
        if statement.startswith("{"):
            out += bytes.fromhex(statement.strip("{}"))
        elif statement in _BYTES:
            out += bytes.fromhex(_BYTES[statement])
        elif statement:
            out += _encode(statement, bits, address + len(out))
    return out
