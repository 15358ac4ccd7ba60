"""``lzero run``: what its words become, and which of them it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lzero.cli import main
from lzero.errors import ImageError, LzeroError, UsageError
from lzero.options import MachineOptions, parse_address, parse_duration, parse_frequency, parse_size
from lzero.result import Ended, RunResult
from lzero.trace.aggregates import Aggregates, Totals

CPUID, HLT = 10, 12


class Recorded:
    """Stands in for the machine: keeps the options it was given and returns a fixed result."""

    def __init__(self, result: RunResult) -> None:
        self.result = result
        self.options: MachineOptions | None = None

    def __call__(self, options: MachineOptions) -> RunResult:
        self.options = options
        return self.result


def some_exits() -> Aggregates:
    return Aggregates(exits={(1, CPUID): Totals(count=3), (1, HLT): Totals(count=5), (2, CPUID): Totals(count=1)})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded(RunResult(Ended.POWER_OFF, aggregates=some_exits(), host_seconds=0.5, engine_version="unicorn"))
    monkeypatch.setattr("lzero.cli.run.run_machine", recorded)
    return recorded


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(b"kernel")
    return path


def options_of(machine: Recorded, *words: object) -> MachineOptions:
    assert main(["run", *map(str, words)]) == machine.result.exit_status
    assert machine.options is not None
    return machine.options


def test_nothing_but_an_image(machine: Recorded, image: Path) -> None:
    assert options_of(machine, image) == MachineOptions(image=image)


def test_every_option_arrives(machine: Recorded, image: Path, tmp_path: Path) -> None:
    fields = tmp_path / "fields.toml"
    fields.write_text("")
    options = options_of(
        machine, "--module", f"{image} one two", "--module", image, "--memory=4GiB", "--cpu-clock=2.4GHz",
        "--clock=host", "--timeout=host:90", "--record", tmp_path / "x.parquet", "--dispatch=chain",
        "--json", tmp_path / "x.json", "--quiet", "--ignore-msrs", "--shadow-vmcs", fields,
        "--kernel-entry=decompressor", image, "cpuid", "timeout=3",
    )  # fmt: skip
    assert options == MachineOptions(
        image=image,
        args=("cpuid", "timeout=3"),
        modules=(f"{image} one two", str(image)),
        memory_bytes=4 << 30,
        tsc_hz=2_400_000_000,
        clock="host",
        timeout_s=90.0,
        timeout_kind="host",
        record=tmp_path / "x.parquet",
        dispatch="chain",
        json=tmp_path / "x.json",
        quiet=True,
        ignore_msrs=True,
        shadow_vmcs=str(fields),
        kernel_entry="decompressor",
    )


def test_linux_options_arrive(machine: Recorded, image: Path) -> None:
    options = options_of(machine, image, "--initrd", image, "--append", "console=ttyS0 quiet", "--nested=off")
    assert (options.initrd, options.append, options.nested) == (image, "console=ttyS0 quiet", False)


def test_flat_binary_options_arrive(machine: Recorded, image: Path) -> None:
    options = options_of(machine, image, "--load-address=0x7c00", "--entry-mode=real16")
    assert (options.load_address, options.entry_mode) == (0x7C00, "real16")


def test_options_may_follow_the_image_and_dashes_end_them(machine: Recorded, image: Path) -> None:
    options = options_of(machine, image, "a", "--memory", "64M", "--", "--memory", "-x")
    assert options.memory_bytes == 64 << 20
    assert options.args == ("a", "--memory", "-x")


def test_summary_and_table(machine: Recorded, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = tmp_path / "summary.json"
    options_of(machine, image, "--json", summary)
    assert json.loads(summary.read_text()) == {
        "ended": "power-off",
        "exit_status": 0,
        "debug_exit": None,
        "message": "",
        "exits": 9,
        "exits_by_reason": {"L1": {"HLT": 5, "CPUID": 3}, "L2": {"CPUID": 1}},
        "host_seconds": 0.5,
        "guest_seconds": 0.0,
        "engine_version": "unicorn",
    }
    captured = capsys.readouterr()
    # Standard output is the guest's: nothing of lzero's may be mixed into it.
    assert captured.out == ""
    for column in ("VM-EXIT", "Samples", "Samples%", "Time%", "Min Time", "Max Time", "Avg time"):
        assert column in captured.err
    assert re.search(r"HLT +5 +62\.50%", captured.err)
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_quiet_prints_nothing(machine: Recorded, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options_of(machine, image, "--quiet")
    assert capsys.readouterr() == ("", "")


def test_a_bad_end_is_said_even_when_quiet(machine: Recorded, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine.result = RunResult(Ended.TRIPLE_FAULT, message="RIP 0x8 in long mode")
    options_of(machine, image, "--quiet")
    assert capsys.readouterr().err == "lzero: triple-fault: RIP 0x8 in long mode\n"


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (RunResult(Ended.DEBUG_EXIT, debug_exit=0), 1),
        (RunResult(Ended.DEBUG_EXIT, debug_exit=1), 3),
        (RunResult(Ended.DEBUG_EXIT, debug_exit=0x7F), 255),
        # A process returns eight bits: the highest of the value is lost, as on other machines.
        (RunResult(Ended.DEBUG_EXIT, debug_exit=0x80), 1),
        (RunResult(Ended.POWER_OFF), 0),
        (RunResult(Ended.FAULT), 68),
        (RunResult(Ended.INTERNAL_ERROR), 70),
        (RunResult(Ended.TRIPLE_FAULT), 80),
        (RunResult(Ended.HALTED), 82),
        (RunResult(Ended.RESET), 84),
        (RunResult(Ended.TIMEOUT), 124),
        (RunResult(Ended.INTERRUPTED), 130),
    ],
    ids=lambda value: str(value.ended) if isinstance(value, RunResult) else str(value),
)
def test_exit_status(machine: Recorded, image: Path, result: RunResult, status: int) -> None:
    machine.result = result
    assert main(["run", "--quiet", str(image)]) == status


def test_a_debug_exit_has_a_value_and_nothing_else_has() -> None:
    with pytest.raises(ValueError, match="debug-exit"):
        RunResult(Ended.DEBUG_EXIT)
    with pytest.raises(ValueError, match="power-off"):
        RunResult(Ended.POWER_OFF, debug_exit=1)


MISTAKES = {
    "no image": ("/nowhere/kernel", 66, "cannot read the image /nowhere/kernel: No such file"),
    "directory": ("{dir}", 66, "is a directory: give the file of the image"),
    "device": ("/dev/null", 66, "/dev/null is a device or a pipe"),
    "memory without unit": ("{image} --memory=512", 64, "512M?"),
    "memory unit": ("{image} --memory=512MB", 64, "write M or MiB"),
    "memory word": ("{image} --memory=lots", 64, "'lots' is no size"),
    "negative memory": ("{image} --memory=-1G", 64, "is no size"),
    "no memory": ("{image} --memory=0", 64, "from 1M"),
    "too much memory": ("{image} --memory=1T", 64, "to 256G"),
    "odd memory": ("{image} --memory=1048577", 64, "4 KiB page"),
    "clock": ("{image} --clock=wall", 64, "choose virtual or host"),
    "cpu clock": ("{image} --cpu-clock=fast", 64, "is no frequency"),
    "cpu clock range": ("{image} --cpu-clock=10", 64, "1MHz to 100GHz"),
    "timeout": ("{image} --timeout=soon", 64, "is no duration"),
    "timeout zero": ("{image} --timeout=0", 64, "more than zero"),
    "timeout whose": ("{image} --timeout=wall:3", 64, "guest:3 or host:3"),
    "nested": ("{image} --nested=maybe", 64, "nested=maybe: write on or off"),
    "shadow without nested": ("{image} --nested=off --shadow-vmcs=default", 64, "needs --nested=on"),
    "shadow file": ("{image} --shadow-vmcs=/nowhere.toml", 64, "cannot read the shadow-VMCS field list"),
    "initrd and module": ("{image} --initrd={image} --module={image}", 64, "give one of them"),
    "initrd missing": ("{image} --initrd=/nowhere", 64, "cannot read the initrd /nowhere"),
    "module missing": ("{image} --module=/nowhere", 64, "cannot read the module /nowhere"),
    "kernel entry": ("{image} --kernel-entry=bios", 64, "choose elf or decompressor"),
    "address": ("{image} --load-address=here", 64, "is no address"),
    "address outside": ("{image} --memory=1M --load-address=0x100000", 64, "outside the guest's memory"),
    "flat with arguments": ("{image} --load-address=0 argument", 64, "takes no arguments"),
    "entry mode": ("{image} --load-address=0 --entry-mode=v8086", 64, "choose real16 or protected32 or long64"),
    "same output": ("{image} --record={dir}/x --json={dir}/x", 64, "different files"),
    "output over input": ("{image} --record={image}", 64, "would be overwritten"),
    "output directory": ("{image} --record={dir}", 64, "is a directory"),
    "output nowhere": ("{image} --json=/nowhere/x.json", 64, "/nowhere does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_message(
    mistake: str, machine: Recorded, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, status, said = MISTAKES[mistake]
    assert main(["run", *words.format(image=image, dir=tmp_path).split()]) == status
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("lzero: error: ")
    assert captured.err.count("\n") == 1
    assert machine.options is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1", 1), ("512M", 512 << 20), ("4GiB", 4 << 30), ("4 gib", 4 << 30), ("1.5K", 1536), ("2t", 2 << 40),
     ("7b", 7)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1..5M", "1,5M", "5iB", "5KB", "5Q", "0.3", "1e3", "٣M", "-5", "5 M B"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(repr(text))):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "duration"),
    [("10", (10.0, "guest")), ("1.5s", (1.5, "guest")), ("500ms", (0.5, "guest")), ("host:2m", (120.0, "host")),
     ("guest:1h", (3600.0, "guest"))],
)  # fmt: skip
def test_durations(text: str, duration: tuple[float, str]) -> None:
    assert parse_duration(text) == duration


@given(st.text())
def test_whatever_is_written_is_understood_or_refused(text: str) -> None:
    for parse in (parse_size, parse_frequency, parse_duration, parse_address):
        try:
            parse(text)
        except UsageError as refusal:
            assert text in str(refusal) or repr(text) in str(refusal)


@given(st.text())
def test_whatever_file_is_named_is_opened_or_refused(text: str) -> None:
    try:
        MachineOptions(image=Path(text))
    except ImageError as refusal:
        assert isinstance(refusal, LzeroError)


def test_options_from_python(image: Path) -> None:
    assert MachineOptions.of(str(image), ["a"], memory=1 << 20, timeout=1.5, nested=False) == MachineOptions(
        image=image, args=("a",), memory_bytes=1 << 20, timeout_s=1.5, nested=False
    )


def test_an_unknown_option_from_python_is_named(image: Path) -> None:
    with pytest.raises(UsageError, match="no option colour"):
        MachineOptions.of(image, colour="red")


def test_an_unknown_bundled_guest_is_named() -> None:
    with pytest.raises(ImageError, match="no bundled guest 'nobody'"):
        MachineOptions.of("guest:nobody")
