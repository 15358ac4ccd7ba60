"""The walker on assembled functions: what it follows, and what it refuses to guess."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lzero.dispatch.machine_code import TABLE, End, Recovered, Split, UnknownShape, indirect_branches, recover, trace
from lzero.dispatch.object_code import ObjectCode
from lzero.dispatch.toolchain import run_tool
from lzero.dispatch.tree import ConditionName, Conditions
from lzero.errors import ToolError

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

NEITHER: Conditions = frozenset()
NESTED = frozenset({ConditionName.NESTED})
FAILED = frozenset({ConditionName.FAILED_ENTRY})


def assembled(body: str, directory: Path) -> ObjectCode:
    """An object with one function, ``f(vcpu, reason)``, of these instructions."""
    source, target = directory / "f.s", directory / "f.o"
    source.write_text(f".intel_syntax noprefix\n.globl f\n.type f,@function\nf:\n{body}\n.size f, .-f\n")
    run_tool(["gcc", "-c", "-o", str(target), str(source)], "assembling")
    return ObjectCode(target)


def ends(found: Recovered) -> dict[int, str | None]:
    """Where a few telling reasons end."""
    reasons = (0, 1, 9, 10, 11, 19, 20, 255, 256, 32767, 32768, 65535)
    result: dict[int, str | None] = {}
    for reason in reasons:
        node = found
        while isinstance(node, Split):
            node = node.if_taken if node.taken[reason] else node.if_fallen
        result[reason] = node.target
    return result


def taken(branch: str, directory: Path, before: str = "cmp esi, 10") -> set[int]:
    """The reasons for which a branch after ``before`` is taken."""
    code = assembled(f"{before}\n{branch} 1f\njmp no\n1: jmp yes", directory)
    found = recover(code, "f", NEITHER, takes_reason=True)
    return {reason for reason, target in ends(found).items() if target == "yes"}


LOW, TEN = {0, 1, 9}, {10}
EVERY = {0, 1, 9, 10, 11, 19, 20, 255, 256, 32767, 32768, 65535}


@pytest.mark.parametrize(
    ("branch", "expected"),
    [
        ("je", TEN), ("jne", EVERY - TEN), ("jb", LOW), ("jae", EVERY - LOW), ("jbe", LOW | TEN),
        ("ja", EVERY - LOW - TEN), ("jl", LOW), ("jge", EVERY - LOW), ("jle", LOW | TEN), ("jg", EVERY - LOW - TEN),
        ("js", LOW), ("jns", EVERY - LOW),
    ],
)  # fmt: skip
def test_every_condition(branch: str, expected: set[int], tmp_path: Path) -> None:
    assert taken(branch, tmp_path) == expected


@pytest.mark.parametrize(
    ("before", "branch", "expected"),
    [
        ("lea eax, [rsi-10]\ncmp eax, 9", "jbe", {10, 11, 19}),
        ("sub esi, 10\ncmp esi, 9", "jbe", {10, 11, 19}),
        ("mov eax, esi\nand eax, 0xfffffffe\ncmp eax, 10", "je", {10, 11}),
        ("mov eax, 0x80401\nbt rax, rsi", "jb", {0, 10, 19}),
        ("cmp si, -1", "je", {65535}),
        ("cmp si, 0", "jl", {32768, 65535}),
        ("cmp sil, 0", "je", {0, 256, 32768}),
        ("test esi, esi", "je", {0}),
        ("movzx eax, sil\ncmp eax, 255", "je", {255, 32767, 65535}),
        ("mov eax, esi\nshr eax, 8\ncmp eax, 1", "je", {256}),
        ("xor eax, eax\ncmp eax, esi", "je", {0}),
        ("movzx eax, word ptr [rdi]\ncmp eax, 20", "je", {20}),
        ("mov eax, [rdi]\nmov cl, al\ncmp cl, 20", "je", {20}),
        ("sub rsp, 8\nmov [rsp], rdi\ncmp esi, 1", "jb", {0}),
    ],
)  # fmt: skip
def test_what_compilers_write(before: str, branch: str, expected: set[int], tmp_path: Path) -> None:
    # bt uses the index modulo 64, so reasons above alias: only those of the first 64 are expected of it.
    found = taken(branch, tmp_path, before)
    assert found == expected if "bt " not in before else found & set(range(64)) == expected


@pytest.mark.parametrize(("conditions", "target"), [(NESTED, "yes"), (NEITHER, "no")])
def test_nested_is_a_variable(conditions: Conditions, target: str, tmp_path: Path) -> None:
    code = assembled("cmp byte ptr nested[rip], 0\nje no\njmp yes", tmp_path)
    assert recover(code, "f", conditions, takes_reason=True) == End(target)


@pytest.mark.parametrize(("conditions", "target"), [(FAILED, "yes"), (NEITHER, "no")])
@pytest.mark.parametrize(
    "test", ["cmp dword ptr [rdi], 0\njns no", "mov eax, [rdi]\nshr eax, 31\ntest eax, eax\nje no"]
)
def test_failed_entry_is_a_bit_of_the_field(conditions: Conditions, target: str, test: str, tmp_path: Path) -> None:
    code = assembled(f"{test}\njmp yes", tmp_path)
    assert recover(code, "f", conditions, takes_reason=True) == End(target)


@pytest.mark.parametrize(
    ("body", "thunk"),
    [
        ("jmp [rsi*8+table]", False),
        ("mov rax, [rsi*8+table]\njmp rax", False),
        ("mov rax, [rsi*8+table]\ncall rax\nret", False),
        ("mov rax, [rsi*8+table]\njmp __x86_indirect_thunk_rax", True),
        ("mov r11, [rsi*8+table]\ncall __x86_indirect_thunk_r11\nret", True),
    ],
)
def test_indirect_branches_are_seen(body: str, thunk: bool, tmp_path: Path) -> None:
    code = assembled(body, tmp_path)
    assert recover(code, "f", NEITHER, takes_reason=True) == End(TABLE)
    assert [branch.thunk for branch in indirect_branches(code, "f")] == [thunk]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1: jmp 1b", "does not end"),
        ("nop", "continues outside itself"),
        ("ret", "ret"),
        ("jmp __x86_return_thunk", "without having called a handler"),
        ("cmp ecx, 3\nje yes\njmp no", "something other than the exit reason"),
        ("cmp esi, 3\njp yes\njmp no", "a flag no dispatcher needs"),
        ("mov [rdi], esi\njmp yes", "writes memory"),
        ("imul esi, esi\ncmp esi, 3\nje yes\njmp no", "no dispatcher needs"),
        ("mov ecx, 5\nmov cl, dl\ncmp ecx, 3\nje yes\njmp no", "something other than the exit reason"),
        ("mov cl, sil\ncmp ecx, 3\nje yes\njmp no", "something other than the exit reason"),
        ("ud2", "ud2"),
    ],
)
def test_what_is_not_understood_is_said(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownShape, match=message):
        recover(assembled(body, tmp_path), "f", NEITHER, takes_reason=True)


def test_trace_follows_one_reason(tmp_path: Path) -> None:
    code = assembled("cmp esi, 10\nje 1f\njmp no\n1: jmp yes", tmp_path)
    lines, reached = trace(code, "f", 10, NEITHER, takes_reason=True)
    assert (len(lines), reached) == (3, "yes")


def test_trace_stops_where_an_inlined_handler_begins(tmp_path: Path) -> None:
    code = assembled("cmp esi, 10\njne no\nadd qword ptr [rdi+8], 1\nret", tmp_path)
    lines, reached = trace(code, "f", 10, NEITHER, takes_reason=True)
    assert (len(lines), reached) == (2, None)


def test_listing_names_targets(tmp_path: Path) -> None:
    text = assembled("cmp byte ptr nested[rip], 0\nje 1f\njmp yes\n1: jmp no", tmp_path).disassembly("f")
    assert "cmp byte ptr [nested],0" in text and "jmp yes" in text and "je e" in text


def test_missing_function(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="has no function g"):
        assembled("ret", tmp_path).function("g")
