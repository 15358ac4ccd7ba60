"""What a machine is made from: every choice of ``lzero run`` and of :class:`lzero.Machine`, as plain checked data.

Nothing here loads an engine, so a mistake in the options is reported before anything heavy starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, get_args

from lzero.errors import ImageError, UsageError

__all__ = [
    "ClockKind",
    "EntryMode",
    "KernelEntry",
    "MachineOptions",
    "TimeoutKind",
    "parse_address",
    "parse_duration",
    "parse_frequency",
    "parse_size",
]

ClockKind = Literal["virtual", "host"]
TimeoutKind = Literal["guest", "host"]
KernelEntry = Literal["elf", "decompressor"]
EntryMode = Literal["real16", "protected32", "long64"]

DEFAULT_MEMORY = "512M"
DEFAULT_CPU_CLOCK = "1GHz"
MINIMUM_MEMORY = 1 << 20
"""Bytes: below this there is no room for the BIOS areas every image expects."""
MAXIMUM_MEMORY = 256 << 30
"""Bytes: the engine keeps its own page tables above the guest's 2^39 physical addresses."""
PAGE = 4096

_BINARY_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_FREQUENCY_UNITS = {"": 1, "HZ": 1, "KHZ": 10**3, "MHZ": 10**6, "GHZ": 10**9}
_DURATION_UNITS = {
    "": Fraction(1),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "min": Fraction(60),
    "h": Fraction(3600),
}
_NUMBER = r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)"


def _quantity(text: str) -> tuple[Fraction, str] | None:
    match = re.fullmatch(_NUMBER, text.strip(), re.ASCII)
    return (Fraction(match["number"]), match["unit"]) if match else None


def parse_size(text: str) -> int:
    """Bytes meant by a size such as ``512M``, ``4GiB`` or ``1.5G``; units are powers of 1024, none means bytes.

    Raises :class:`UsageError` for anything else, including ``MB`` and ``GB``, which mean different sizes to different
    programs.

    >>> parse_size("512M"), parse_size("4GiB"), parse_size("1.5K")
    (536870912, 4294967296, 1536)
    """
    quantity = _quantity(text)
    if quantity is None:
        raise UsageError(f"{text!r} is no size: write a number and a unit, such as 512M or 4GiB")
    number, unit = quantity
    name = unit.upper()
    if name.endswith("IB"):
        name = name[:-2]
    elif len(name) > 1 and name.endswith("B"):
        raise UsageError(f"{text!r}: the unit {unit} is ambiguous; write {name[0]} or {name[0]}iB for powers of 1024")
    elif name == "B":
        name = ""
    if name not in _BINARY_UNITS or (not name and unit.upper().endswith("IB")):
        raise UsageError(f"{text!r}: unknown unit {unit!r}; the units are K, M, G and T (or KiB, MiB, GiB, TiB)")
    size = number * _BINARY_UNITS[name]
    if size.denominator != 1:
        raise UsageError(f"{text!r} is not a whole number of bytes")
    return int(size)


def parse_frequency(text: str) -> int:
    """Hertz meant by a frequency such as ``2.4GHz``; without a unit, hertz. Raises :class:`UsageError`.

    >>> parse_frequency("2.4GHz")
    2400000000
    """
    quantity = _quantity(text)
    if quantity is None or quantity[1].upper() not in _FREQUENCY_UNITS:
        raise UsageError(f"{text!r} is no frequency: write a number and a unit, such as 2.4GHz or 100MHz")
    number, unit = quantity
    hertz = number * _FREQUENCY_UNITS[unit.upper()]
    if hertz.denominator != 1:
        raise UsageError(f"{text!r} is not a whole number of hertz")
    return int(hertz)


def parse_duration(text: str) -> tuple[float, TimeoutKind]:
    """Seconds and whose seconds they are, from ``10``, ``1.5s``, ``500ms``, ``2m``, ``guest:10`` or ``host:30``.

    Without a prefix they are the guest's. Raises :class:`UsageError`.

    >>> parse_duration("host:2m")
    (120.0, 'host')
    """
    kind, colon, amount = text.partition(":")
    if not colon:
        kind, amount = "guest", text
    if kind not in get_args(TimeoutKind):
        raise UsageError(f"{text!r}: {kind!r} has no clock; write guest:{amount} or host:{amount}")
    quantity = _quantity(amount)
    if quantity is None or quantity[1] not in _DURATION_UNITS:
        raise UsageError(f"{text!r} is no duration: write seconds, or a number with ms, s, m or h, such as 10 or 500ms")
    seconds = float(quantity[0] * _DURATION_UNITS[quantity[1]])
    return seconds, "host" if kind == "host" else "guest"


def parse_address(text: str) -> int:
    """Guest-physical address written in decimal or, after ``0x``, in hexadecimal. Raises :class:`UsageError`.

    >>> hex(parse_address("0x7c00"))
    '0x7c00'
    """
    try:
        address = int(text, 0)
    except ValueError:
        address = -1
    if not 0 <= address < 1 << 64:
        raise UsageError(f"{text!r} is no address: write it as 0x100000 or in decimal, below 2^64")
    return address


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """Everything that decides how a machine runs. Two runs with equal options and ``clock="virtual"`` make equal exits.

    Making one checks it: values out of range and options that contradict each other raise :class:`UsageError`, files
    that are missing :class:`UsageError` or, for the image, :class:`ImageError`.

    Parameters
    ----------
    image:
        Guest image; its kind (multiboot, Linux bzImage, flat) is detected from its content.
    args:
        Words after the image: the command line of a multiboot kernel.
    modules:
        Multiboot modules, each ``FILE`` or ``FILE ARGUMENTS``. Not together with ``initrd``.
    initrd:
        Initial RAM disk of a Linux kernel.
    append:
        Command line of a Linux kernel (``args`` are put after it).
    memory_bytes:
        Guest RAM, a multiple of 4 KiB.
    tsc_hz:
        Guest TSC frequency in hertz.
    clock:
        ``virtual``: deterministic, idle time is skipped. ``host``: follows the host's clock.
    timeout_s, timeout_kind:
        End the run after so many seconds of the guest's clock or of the host's; ``None`` never.
    record:
        Parquet file for the exits; ``None`` records none.
    dispatch:
        Name of a dispatch strategy or path of a strategy file.
    json:
        File for the summary of the run.
    quiet:
        Print nothing but the guest's console and errors.
    ignore_msrs:
        Unknown MSRs read as 0 and take writes, with one warning each, instead of #GP.
    nested:
        Offer VMX to the guest.
    shadow_vmcs:
        ``off``, ``default`` (KVM's own field set) or the path of a TOML file of fields.
    kernel_entry:
        Where a Linux bzImage is entered: ``elf`` unpacks its payload on the host and enters the kernel directly,
        ``decompressor`` lets the guest unpack itself as on real machines.
    load_address, entry_mode:
        For a flat binary, which nothing identifies: where it is put (and entered), and in which processor mode.
    console:
        Binary stream for the guest's serial output; ``None`` is standard output.
    stdin:
        Binary stream for the guest's serial input; ``None`` is standard input.
    """

    image: Path
    args: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    initrd: Path | None = None
    append: str = ""
    memory_bytes: int = parse_size(DEFAULT_MEMORY)
    tsc_hz: int = parse_frequency(DEFAULT_CPU_CLOCK)
    clock: ClockKind = "virtual"
    timeout_s: float | None = None
    timeout_kind: TimeoutKind = "guest"
    record: Path | None = None
    dispatch: str = "table"
    json: Path | None = None
    quiet: bool = False
    ignore_msrs: bool = False
    nested: bool = True
    shadow_vmcs: str = "off"
    kernel_entry: KernelEntry = "elf"
    load_address: int | None = None
    entry_mode: EntryMode = "protected32"
    console: BinaryIO | None = None
    stdin: BinaryIO | None = None

    @classmethod
    def of(
        cls,
        image: str | Path,
        args: Iterable[str] = (),
        *,
        memory: str | int = DEFAULT_MEMORY,
        cpu_clock: str | int = DEFAULT_CPU_CLOCK,
        timeout: str | float | None = None,
        nested: str | bool = True,
        load_address: str | int | None = None,
        **choices: Any,
    ) -> Self:
        """Options as a person writes them: the words of ``lzero run``, or plain numbers.

        Parameters
        ----------
        image, args:
            As in the class; ``guest:NAME`` is an image that comes with lzero.
        memory:
            Size such as ``"512M"``, or bytes.
        cpu_clock:
            Frequency such as ``"2.4GHz"``, or hertz.
        timeout:
            Duration such as ``"10"`` or ``"host:30"``, or seconds of the guest's clock.
        nested:
            ``"on"``, ``"off"`` or a boolean.
        load_address:
            Address such as ``"0x7c00"``, or a number.
        choices:
            Any other parameter of the class. Paths may be text.

        Raises
        ------
        UsageError, ImageError
            As making an object of the class does.

        >>> MachineOptions.of("guest:hello", memory="64M", timeout="host:30").memory_bytes
        67108864
        """
        unknown = sorted(set(choices) - set(cls.__dataclass_fields__))
        if unknown:
            raise UsageError(f"a machine has no option {', '.join(unknown)}")
        if timeout is not None:
            choices["timeout_s"], choices["timeout_kind"] = (
                parse_duration(timeout) if isinstance(timeout, str) else (float(timeout), "guest")
            )
        for name in ("initrd", "record", "json"):
            if choices.get(name) is not None:
                choices[name] = Path(choices[name])
        return cls(
            image=_image(image),
            args=tuple(args),
            modules=tuple(choices.pop("modules", ())),
            memory_bytes=parse_size(memory) if isinstance(memory, str) else memory,
            tsc_hz=parse_frequency(cpu_clock) if isinstance(cpu_clock, str) else cpu_clock,
            nested=_switch("nested", nested) if isinstance(nested, str) else nested,
            load_address=parse_address(load_address) if isinstance(load_address, str) else load_address,
            **choices,
        )

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_contradictions()
        self._check_files()

    def _check_ranges(self) -> None:
        if not MINIMUM_MEMORY <= self.memory_bytes <= MAXIMUM_MEMORY:
            raise UsageError(
                f"memory of {self.memory_bytes} bytes: the machine takes from {MINIMUM_MEMORY >> 20}M "
                f"to {MAXIMUM_MEMORY >> 30}G{self._forgotten_unit()}"
            )
        if self.memory_bytes % PAGE:
            raise UsageError(f"memory of {self.memory_bytes} bytes is not a multiple of the 4 KiB page")
        if not 10**6 <= self.tsc_hz <= 10**11:
            raise UsageError(f"a TSC of {self.tsc_hz} Hz: choose from 1MHz to 100GHz")
        if self.timeout_s is not None and not (isfinite(self.timeout_s) and self.timeout_s > 0):
            raise UsageError(f"a timeout of {self.timeout_s} s: it must be more than zero")
        for name, value, choices in (
            ("clock", self.clock, get_args(ClockKind)),
            ("timeout kind", self.timeout_kind, get_args(TimeoutKind)),
            ("kernel entry", self.kernel_entry, get_args(KernelEntry)),
            ("entry mode", self.entry_mode, get_args(EntryMode)),
        ):
            if value not in choices:
                raise UsageError(f"unknown {name} {value!r}: choose {' or '.join(choices)}")
        if self.load_address is not None and not 0 <= self.load_address < self.memory_bytes:
            raise UsageError(
                f"load address {self.load_address:#x} lies outside the guest's memory of {self.memory_bytes:#x} bytes"
            )

    def _forgotten_unit(self) -> str:
        return f"; {self.memory_bytes}M?" if 0 < self.memory_bytes <= 1 << 16 else ""

    def _check_contradictions(self) -> None:
        if self.initrd is not None and self.modules:
            raise UsageError("--initrd is for a Linux kernel and --module for a multiboot kernel: give one of them")
        if not self.nested and self.shadow_vmcs != "off":
            raise UsageError(f"--shadow-vmcs={self.shadow_vmcs} needs --nested=on: without VMX nothing is shadowed")
        if self.load_address is not None and (self.initrd is not None or self.modules or self.append or self.args):
            raise UsageError("a flat binary (--load-address) takes no arguments, --append, --initrd or --module")
        outputs = [path.absolute() for path in (self.record, self.json) if path is not None]
        inputs = [path.absolute() for path in (self.image, self.initrd, *self._module_files()) if path is not None]
        if len(outputs) == 2 and outputs[0] == outputs[1]:
            raise UsageError(f"--record and --json both write {outputs[0]}: give them different files")
        for path in outputs:
            if path in inputs:
                raise UsageError(f"{path} would be overwritten: it is one of the guest's own files")

    def _module_files(self) -> list[Path]:
        return [Path(module.split(" ", 1)[0]) for module in self.modules]

    def _check_files(self) -> None:
        _check_readable(self.image, "image", ImageError)
        if self.initrd is not None:
            _check_readable(self.initrd, "initrd", UsageError)
        for path in self._module_files():
            _check_readable(path, "module", UsageError)
        if self.shadow_vmcs not in ("off", "default"):
            _check_readable(Path(self.shadow_vmcs), "shadow-VMCS field list (nor off nor default)", UsageError)
        for option, output in (("--record", self.record), ("--json", self.json)):
            if output is None:
                continue
            if output.is_dir():
                raise UsageError(f"{option} {output} is a directory: give a file")
            if not output.absolute().parent.is_dir():
                raise UsageError(f"{option} {output}: the directory {output.absolute().parent} does not exist")


def _image(image: str | Path) -> Path:
    """Path of an image, also of one named ``guest:NAME``, which comes with lzero."""
    name = str(image)
    if not name.startswith("guest:"):
        return Path(image)
    from lzero import guests

    return guests.path(name.removeprefix("guest:"))


def _switch(option: str, text: str) -> bool:
    if text not in ("on", "off"):
        raise UsageError(f"{option}={text}: write on or off")
    return text == "on"


def _check_readable(path: Path, what: str, error: type[ImageError] | type[UsageError]) -> None:
    try:
        if path.is_dir():
            raise error(f"{path} is a directory: give the file of the {what}")
        # A pipe could be read only once, and a loader looks at an image more than once.
        if path.exists() and not path.is_file():
            raise error(f"{path} is a device or a pipe: give a regular file for the {what}")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as failure:
        reason = failure.strerror if isinstance(failure, OSError) and failure.strerror else str(failure)
        raise error(f"cannot read the {what} {path}: {reason}") from failure
