"""The machine a measurement ran on, as far as it tells: CPU, kernel, mitigations."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["HostDescription", "describe_host"]

_CPUINFO = Path("/proc/cpuinfo")
_VULNERABILITIES = Path("/sys/devices/system/cpu/vulnerabilities")
_SHOWN = ("spectre_v1", "spectre_v2", "retbleed", "indirect_target_selection", "spec_rstack_overflow")


@dataclass(frozen=True)
class HostDescription:
    """What has to stand beside every figure.

    Attributes
    ----------
    vulnerabilities:
        The kernel's own words per file of ``/sys/devices/system/cpu/vulnerabilities``.
    tsc_mhz:
        Frequency the kernel reports for the CPU (the TSC's, on CPUs with an invariant one); 0 if unknown.
    """

    cpu: str
    family: int
    model: int
    stepping: int
    cpus: int
    tsc_mhz: float
    hypervisor: bool
    kernel: str
    vulnerabilities: dict[str, str] = field(default_factory=dict)

    def short(self) -> str:
        """One line for tables and plans."""
        where = ", in a virtual machine" if self.hypervisor else ""
        return f"{self.cpu} (family {self.family}, model {self.model}, stepping {self.stepping}{where})"

    def lines(self) -> list[str]:
        """Lines to print before results."""
        rows = [
            f"CPU: {self.short()}, {self.cpus} CPUs, {self.tsc_mhz:.0f} MHz",
            f"kernel: {self.kernel}",
        ]
        rows += [
            f"kernel says, {name}: {self.vulnerabilities[name]}" for name in _SHOWN if name in self.vulnerabilities
        ]
        return rows

    def as_dict(self) -> dict[str, object]:
        """For the JSON results."""
        return asdict(self)


def describe_host() -> HostDescription:
    """Read the description; what the system does not tell is 0 or 'unknown'."""
    fields: dict[str, str] = {}
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            if not line.strip():
                break
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    vulnerabilities: dict[str, str] = {}
    if _VULNERABILITIES.is_dir():
        for path in sorted(_VULNERABILITIES.iterdir()):
            vulnerabilities[path.name] = path.read_text(encoding="utf-8").strip()
    return HostDescription(
        cpu=fields.get("model name", platform.processor() or "unknown"),
        family=int(fields.get("cpu family", "0")),
        model=int(fields.get("model", "0")),
        stepping=int(fields.get("stepping", "0") if fields.get("stepping", "0").isdigit() else 0),
        cpus=os.cpu_count() or 0,
        tsc_mhz=float(fields.get("cpu MHz", "0")),
        hypervisor="hypervisor" in fields.get("flags", "").split(),
        kernel=f"{platform.system()} {platform.release()}",
        vulnerabilities=vulnerabilities,
    )
