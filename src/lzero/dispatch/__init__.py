"""How an exit reason finds its handler, as data: strategies, proof, Python and C from one tree.

=====================  =======================================================================
``tree``               the nodes and what a tree means
``handlers``           KVM's handler table, one row per exit reason
``strategies``         S1 to S7 of the retpoline debate, and today's upstream
``plan_file``          strategies as ``PLAN.json``
``compile_python``     a tree as a Python function, which the machine runs
``prove``              whether two dispatchers agree on all 65,536 reasons
``emit_c``             a tree as C, kernel style or standalone
``toolchain``          gcc and clang: flags, mitigations, errors
``machine_code``       the tree recovered from compiled code: order of tests, indirect branches
``measure``, ``plan``  timing on the host; trees made from profiles
``audit``              the dispatcher of a built ``kvm-intel.ko`` or ``kvm-amd.ko``
=====================  =======================================================================
"""

from __future__ import annotations

from lzero.dispatch.compile_python import compile_python, python_source
from lzero.dispatch.handlers import HANDLERS, HandlerRow, handler_of
from lzero.dispatch.plan_file import load_strategy, read_plan, write_plan
from lzero.dispatch.strategies import STRATEGIES, Provenance, Strategy

__all__ = [
    "HANDLERS",
    "STRATEGIES",
    "HandlerRow",
    "Provenance",
    "Strategy",
    "compile_python",
    "handler_of",
    "load_strategy",
    "python_source",
    "read_plan",
    "write_plan",
]
