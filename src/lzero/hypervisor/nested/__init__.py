"""Nested VMX, wholly encapsulated: L1 runs its own guests.

The rest of L0 knows :func:`handle_vmx_instruction`, to which every VMX instruction of L1 goes, and one
:class:`Nested` per VCPU:

=============================  ===================================================================
:meth:`Nested.owns_exit`       an exit of L2 came: does L1 get it? (then :meth:`Nested.reflect`)
:meth:`Nested.deal_with`       an exit of L2 that L0 looks at first: EPT, timers
:meth:`Nested.prepare_entry`   interrupts, timers and windows before L2 runs
:meth:`Nested.takes_exception` an exception for L2: does L1 intercept it?
=============================  ===================================================================

No module outside of this package knows vmcs12 or vmcs02.
"""

from __future__ import annotations

from lzero.hypervisor.nested.instructions import handle_vmx_instruction
from lzero.hypervisor.nested.nested import Nested

__all__ = ["Nested", "handle_vmx_instruction"]
