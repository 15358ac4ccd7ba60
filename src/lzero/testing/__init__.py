"""Guard a hypervisor's exits in its own tests: a pytest plugin, costs per exit reason, and budgets in a TOML file.

See ``docs/testing.md``. The plugin is ``lzero.testing.plugin``, which pytest finds by itself.
"""

from lzero.testing.budget import Budget, Verdict, check, load_budgets
from lzero.testing.exits import Cost, Exits
from lzero.testing.guest import GuestMachine, GuestRun

__all__ = ["Budget", "Cost", "Exits", "GuestMachine", "GuestRun", "Verdict", "check", "load_budgets"]
