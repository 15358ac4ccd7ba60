"""IRET and far returns at CPL 3 pop from the user's stack as the user (SDM 3A 4.6.1), which SMAP does not concern."""

from __future__ import annotations

import pytest
from harness import GDT, LONG_USER, USER_CODE64, USER_DATA, Bench

from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.registers import Cr4

PRESENT_WRITABLE = 3


@pytest.mark.parametrize("smap", [False, True])
def test_iret_within_cpl_3(bench: Bench, smap: bool) -> None:
    frame = f"mov rax, rsp; push {USER_DATA}; push rax; push 2; push {USER_CODE64}; lea rax, [rip + 3]; push rax; iretq"
    guest = bench.guest(LONG_USER, frame, GUEST_CR4=LONG_USER.cr4 | int(Cr4.VMXE) | (int(Cr4.SMAP) if smap else 0))
    guest.page(GDT, GDT | PRESENT_WRITABLE)  # else SMAP rightly forbids the look into the descriptor table
    assert guest.enter().reason == ExitReason.VMCALL
