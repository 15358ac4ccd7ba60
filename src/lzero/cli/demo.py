"""``lzero demo``: the bundled hypervisor, its console and its exits. What ``make demo`` runs."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from lzero.cli.run import report, run_machine
from lzero.options import MachineOptions

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class Scene:
    """One run of the demo."""

    title: str
    image: str
    shadow_vmcs: str = "off"


SCENES = (
    Scene("A hypervisor (L1) and its guests (L2)", "guest:l1"),
    Scene("The same, with KVM's set of VMCS fields shadowed", "guest:l1", shadow_vmcs="default"),
)


@app.command()
def demo() -> None:
    """Run the bundled hypervisor and its guests; show the VM exits of both levels, with and without a shadow VMCS."""
    for scene in SCENES:
        typer.echo(f"== {scene.title}: lzero run {scene.image} --shadow-vmcs={scene.shadow_vmcs}\n", err=True)
        options = MachineOptions.of(scene.image, shadow_vmcs=scene.shadow_vmcs, timeout="host:120")
        result = run_machine(options)
        status = report(options, result)
        # The bundled guests end with the debug-exit value 0 when all went well.
        if result.debug_exit != 0:
            raise typer.Exit(status)
        typer.echo(err=True)
