"""Dispatchers of known shape, compiled here: each is recovered as what it is, or said to be unknown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lzero.dispatch.audit import BranchKind, Shape, audit_module

Compile = Callable[..., Path]

TABLE = """
int (*kvm_vmx_exit_handlers[76])(struct vcpu *) = {
    [0] = handle_a, [10] = local_handler, [12] = handle_b, [18] = handle_c, [31] = handle_c, [32] = handle_b, [75] =
    handle_a };
"""
THUNK = "-mindirect-branch=thunk-extern"
KEEP_ORDER = '#define HIDE(x) asm volatile("" : "+r"(x))\n'


def test_chain_in_source_order(compiled: Compile) -> None:
    source = (
        TABLE
        + KEEP_ORDER
        + """
    int vmx_handle_exit(struct vcpu *v) {
        unsigned int reason = v->exit_reason;
        if (reason >= 76) return unexpected(v);
        HIDE(reason); if (reason == 32) return handle_b(v);
        HIDE(reason); if (reason == 0) return handle_a(v);
        HIDE(reason); if (reason == 12) return handle_c(v);
        if (!kvm_vmx_exit_handlers[reason]) return unexpected(v);
        return kvm_vmx_exit_handlers[reason](v);
    }"""
    )
    audit = audit_module(compiled(source, THUNK))
    assert audit.dispatch.shape is Shape.CHAIN
    assert [test.reason for test in audit.dispatch.tests] == [32, 0, 12]
    assert [test.leads_to for test in audit.dispatch.tests] == ["handle_b", "handle_a", "handle_c"]
    assert audit.dispatch.bound == 75
    assert audit.dispatch.null_check
    (site,) = audit.of_kind(BranchKind.RETPOLINE)
    assert not site.is_call


def test_table_alone_without_mitigation(compiled: Compile) -> None:
    source = (
        TABLE
        + """
    int vmx_handle_exit(struct vcpu *v) {
        if (v->exit_reason >= 76) return unexpected(v);
        return kvm_vmx_exit_handlers[v->exit_reason](v);
    }"""
    )
    audit = audit_module(compiled(source))
    assert audit.dispatch.shape is Shape.TABLE_ONLY
    assert audit.dispatch.bound == 75
    assert not audit.dispatch.null_check
    (site,) = audit.of_kind(BranchKind.PLAIN)
    assert (site.function, site.is_call, site.offset) == ("vmx_handle_exit", False, audit.dispatch.branch_offset)


def test_comparison_tree_is_not_called_a_chain(compiled: Compile) -> None:
    source = (
        TABLE
        + """
    int vmx_handle_exit(struct vcpu *v) {
        unsigned int reason = v->exit_reason;
        if (reason >= 76) return unexpected(v);
        switch (reason) {
        case 1: return handle_a(v); case 7: return handle_b(v); case 12: return handle_c(v);
        case 32: return handle_a(v) + 1; case 49: return handle_b(v) + 1; case 52: return handle_c(v) + 1;
        }
        return kvm_vmx_exit_handlers[reason](v);
    }"""
    )
    audit = audit_module(compiled(source, THUNK))
    assert audit.dispatch.shape in (Shape.TREE, Shape.UNKNOWN)


def test_bit_test_is_unknown(compiled: Compile) -> None:
    source = (
        TABLE
        + """
    int vmx_handle_exit(struct vcpu *v) {
        unsigned long reason = v->exit_reason;
        if (reason >= 76) return unexpected(v);
        switch (reason) { case 1: case 4: case 9: case 11: case 20: case 33: case 40: return handle_a(v); }
        return kvm_vmx_exit_handlers[reason](v);
    }"""
    )
    audit = audit_module(compiled(source, THUNK))
    assert audit.dispatch.shape is Shape.UNKNOWN
    assert audit.dispatch.unknown


def test_no_bound_check_is_said(compiled: Compile) -> None:
    source = TABLE + "int vmx_handle_exit(struct vcpu *v) { return kvm_vmx_exit_handlers[v->exit_reason](v); }"
    audit = audit_module(compiled(source, THUNK))
    assert audit.dispatch.shape is Shape.UNKNOWN
    assert any("bound check" in text for text in audit.dispatch.unknown)


def test_two_dispatchers_are_not_guessed_between(compiled: Compile) -> None:
    body = "if (v->exit_reason > 75) return 0; return kvm_vmx_exit_handlers[v->exit_reason](v);"
    source = TABLE + f"int one(struct vcpu *v) {{ {body} }} int two(struct vcpu *v) {{ {body} }}"
    audit = audit_module(compiled(source, THUNK, "-fno-ipa-icf"))
    assert audit.dispatch.shape is Shape.UNKNOWN
    assert any("several places" in text for text in audit.dispatch.unknown)


def test_module_without_a_table(compiled: Compile) -> None:
    audit = audit_module(compiled("int f(int (*g)(void)) { return g() + 1; }", THUNK))
    assert audit.table is None
    assert audit.dispatch.shape is Shape.UNKNOWN
    (site,) = audit.of_kind(BranchKind.RETPOLINE)
    assert (site.function, site.is_call) == ("f", True)


def test_inline_retpoline(compiled: Compile) -> None:
    audit = audit_module(
        compiled("int f(int (*g)(void)) { return handle_a(0) + g(); }", "-mindirect-branch=thunk-inline")
    )
    (site,) = audit.of_kind(BranchKind.RETPOLINE_INLINE)
    assert site.function == "f"
    assert audit.count(BranchKind.PLAIN) == 0


def test_table_handlers_come_from_relocations(compiled: Compile) -> None:
    source = TABLE + "int vmx_handle_exit(struct vcpu *v) { return kvm_vmx_exit_handlers[v->exit_reason](v); }"
    table = audit_module(compiled(source)).table
    assert table is not None
    assert dict(table.handlers) == {
        0: "handle_a",
        10: "local_handler",
        12: "handle_b",
        18: "handle_c",
        31: "handle_c",
        32: "handle_b",
        75: "handle_a",
    }
    assert table.writable


def test_const_table_is_read_only(compiled: Compile) -> None:
    source = TABLE.replace("int (*kvm_vmx_exit_handlers[76])", "int (*const kvm_vmx_exit_handlers[76])")
    source += "int vmx_handle_exit(struct vcpu *v) { return kvm_vmx_exit_handlers[v->exit_reason](v); }"
    table = audit_module(compiled(source)).table
    assert table is not None
    assert not table.writable
