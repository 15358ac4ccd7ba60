"""Text recordings: every line and event format, the fast parser against the definition, and what cannot be read."""

from __future__ import annotations

import gzip
import io
import lzma
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lzero.errors import TraceFormatError, UsageError
from lzero.trace.load import import_trace, open_recording
from lzero.trace.readers.detect import Kind, detect
from lzero.trace.readers.events import Diagnosis, EventKind, event_dtype
from lzero.trace.readers.fastlines import parse_chunk, read_leftovers
from lzero.trace.readers.nativelines import native_parser
from lzero.trace.readers.slowline import parse_line
from lzero.trace.readers.text import read_text
from lzero.trace.store import open_trace
from textwriter import EVENT_FORMATS, LINE_FORMATS, Event, nested_events, random_event, render

native = native_parser()
PARSERS = [parse_chunk] if native is None else [parse_chunk, native]


def read(text: bytes, strict: bool = False) -> tuple[np.ndarray, Diagnosis]:
    diagnosis = Diagnosis("test", strict)
    batches = list(read_text(io.BytesIO(text), diagnosis))
    return np.concatenate([np.zeros(0, event_dtype()), *batches]), diagnosis


def read_slowly(text: bytes) -> tuple[np.ndarray, Diagnosis]:
    diagnosis = Diagnosis("test")
    lines = text.decode("utf-8", "replace").split("\n")
    parsed = [parse_line(line, f"line {number}", diagnosis) for number, line in enumerate(lines, 1)]
    found = [event.fields() for event in parsed if event is not None]
    diagnosis.events = len(found)
    return np.array(found, dtype=event_dtype()), diagnosis


@pytest.mark.parametrize("form", LINE_FORMATS)
@pytest.mark.parametrize("style", EVENT_FORMATS)
def test_fast_parser_reads_what_the_definition_reads(form: str, style: str) -> None:
    source = random.Random(f"{form} {style}")
    events = [random_event(source, source.choice([0, 5, 99999, 1234567]) * 10**9 + n * 1000) for n in range(400)]
    text = render(events, form, style)
    fast, diagnosis = read(text)
    slow, expected = read_slowly(text)
    assert len(slow) == sum(event.name != "kvm_pio" for event in events)
    assert (fast == slow).all() and len(fast) == len(slow)
    assert not diagnosis.problems and not expected.problems
    assert diagnosis.others == expected.others == len(events) - len(slow)


def test_ordinary_recordings_leave_nothing_to_the_slow_parser() -> None:
    for form, parse in ((form, parse) for form in LINE_FORMATS for parse in PARSERS):
        result = parse(render(nested_events(10), form))
        assert result.leftovers == []
        assert len(result.events) == 130


def test_fields_of_the_current_format() -> None:
    event = Event("kvm_exit", 770_850_307_000, vcpu=3, cpu=17, thread=7289, reason="EPT_VIOLATION", failed=True,
                  rip=0x1234, info1=0x181, info2=0x80000B0E, intr_info=0x800000FC, error_code=0x11)  # fmt: skip
    (row,), _ = read(render([event], "perf", "requests"))
    assert row.tolist() == (
        1,
        1,
        17,
        7289,
        3,
        770_850_307_000,
        48 | 1 << 31,
        0x1234,
        0x181,
        0x80000B0E,
        0x800000FC,
        0x11,
    )


@pytest.mark.parametrize(
    ("reason", "isa", "number"),
    [("npf", 2, 0x400), ("hlt", 2, 0x78), ("UD excp", 2, 0x46), ("HLT", 1, 12), ("PENDING_INTERRUPT", 1, 7),
     ("0x4b", 1, 75), ("1030", 2, 1030), ("VMON", 1, 27)],
)  # fmt: skip
def test_reasons_of_both_vendors_aliases_and_numbers(reason: str, isa: int, number: int) -> None:
    (row,), diagnosis = read(render([Event("kvm_exit", 10**9, reason=reason)]))
    assert (row["isa"], row["reason"]) == (isa, number)
    assert not diagnosis.problems


def test_unknown_reason_is_kept_and_located() -> None:
    text = render([Event("kvm_exit", 10**9), Event("kvm_exit", 2 * 10**9, reason="NEW_THING")])
    rows, diagnosis = read(text)
    assert rows["reason"].tolist() == [10, 0xFFFF]
    assert diagnosis.problems == {"unknown reason": 1}
    assert "line 2: unknown exit reason 'NEW_THING'" in str(diagnosis.located[0])


@pytest.mark.parametrize(
    ("line", "lost"),
    [(b"CPU:3 [LOST 120 EVENTS]", 120), (b"CPU 1: [77 EVENTS DROPPED]", 77), (b"CPU:2 [EVENTS DROPPED]", 1),
     (b"  qemu 12 [001]  770.850307: PERF_RECORD_LOST lost 5", 5)],
)  # fmt: skip
def test_lost_events_are_counted_and_located(line: bytes, lost: int) -> None:
    good = render([Event("kvm_exit", 10**9)])
    rows, diagnosis = read(good + line + b"\n" + good)
    assert len(rows) == 2
    assert diagnosis.lost == lost
    assert diagnosis.located[0].where == "line 2"
    assert "counts are too low" in "\n".join(diagnosis.summary())


def test_headers_and_other_events_are_no_problems() -> None:
    header = b"CPU 1 is empty\n# tracer: nop\n#\n# entries-in-buffer/entries-written: 2/2   #P:8\n\ncpus=8\n"
    other = b"  swapper     0 [002]   770.850306: sched:sched_switch: prev_comm=a prev_pid=1\n"
    rows, diagnosis = read(header + other + render([Event("kvm_exit", 10**9)]))
    assert len(rows) == 1 and diagnosis.others == 1 and not diagnosis.problems


def test_thread_group_column_of_ftrace() -> None:
    line = b" CPU 0/KVM-7289    (   7280) [023] d..2.  2925.640967: kvm_entry: vcpu 5\n"
    (row,), diagnosis = read(line)
    assert (row["thread"], row["cpu"], row["vcpu"], row["kind"]) == (7289, 23, 5, EventKind.ENTRY)
    assert not diagnosis.problems


@pytest.mark.parametrize("cut", range(1, 190, 7))
def test_cut_line_is_located_and_the_rest_kept(cut: int) -> None:
    line = render([Event("kvm_exit", 10**9, thread=7)])
    rows, diagnosis = read(line + line[: len(line) - 1 - cut])
    assert len(rows) == 1
    if line[: len(line) - 1 - cut].strip():
        assert sum(diagnosis.problems.values()) == 1
        assert diagnosis.located[0].where == "line 2"
        with pytest.raises(TraceFormatError, match="test: line 2"):
            read(line + line[: len(line) - 1 - cut], strict=True)


def test_numbers_out_of_range_are_problems() -> None:
    rows, diagnosis = read(
        b"a 1 [99999] 1.000000: kvm:kvm_entry: vcpu 0\n"
        b"a 1 [001] 99999999999999.000000: kvm:kvm_entry: vcpu 0\n"
        b"a 1 [001] 1.000000: kvm:kvm_entry: vcpu 70000\n"
    )
    assert diagnosis.problems == {"number out of range": 3}
    assert len(rows) == 1


def test_text_without_line_ends_is_given_up_with_a_place() -> None:
    rows, diagnosis = read(render([Event("kvm_exit", 10**9)]) + b"x" * (5 << 20))
    assert len(rows) == 1
    assert diagnosis.problems["line too long"] >= 1


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_lines_mean_the_same_to_every_parser(data: st.DataObject) -> None:
    source = random.Random(data.draw(st.integers(0, 10**6)))
    form, style = data.draw(st.sampled_from(LINE_FORMATS)), data.draw(st.sampled_from(EVENT_FORMATS))
    text = bytearray(render([random_event(source, 10**9 * n) for n in range(4)], form, style))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        if data.draw(st.booleans()):
            text[place] = data.draw(st.sampled_from(b" :[]-.x0zF\n\xff"))
        else:
            del text[place]
    content = bytes(text).rstrip(b"\n") + b"\n"
    slow, slow_diagnosis = read_slowly(content)
    for parse in PARSERS:
        fast_diagnosis = Diagnosis("test")
        fast = read_leftovers(parse(content), 0, fast_diagnosis)
        assert fast.tolist() == slow.tolist()
        assert fast_diagnosis.problems == slow_diagnosis.problems
        assert fast_diagnosis.others == slow_diagnosis.others


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_without_a_crash(content: bytes) -> None:
    read(content)
    detect(content)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, zstandard.ZstdCompressor().compress])
def test_compressed_inputs(tmp_path: Path, pack: object) -> None:
    path = tmp_path / "trace"
    path.write_bytes(pack(render(nested_events(50))))  # type: ignore[operator]  # each parameter is a function
    recording = open_recording(str(path))
    assert recording.input.kind is Kind.TEXT
    assert sum(len(rows) for rows in recording.rows()) == 250
    recording.close()


def test_cut_compressed_input_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    path.write_bytes(gzip.compress(render(nested_events(5000)))[:-2000])
    recording = open_recording(str(path))
    assert sum(len(rows) for rows in recording.rows()) > 10_000
    assert recording.diagnosis.problems["unreadable input"] == 1
    recording.close()


def test_foreign_and_missing_inputs_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(TraceFormatError, match="not a recording lzero knows"):
        open_recording(str(path))
    with pytest.raises(UsageError, match="cannot open"):
        open_recording(str(tmp_path / "missing"))


def test_import_numbers_several_recordings_on(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(render(nested_events(3)))
    target = tmp_path / "t.parquet"
    import_trace([str(tmp_path / "a"), str(tmp_path / "b")], target)
    frame = open_trace(target).collect()
    assert frame["seq"].to_list() == list(range(30))
    assert frame["parent"].to_list()[:6] == [-1, 0, 0, 0, 0, -1]
    assert frame["parent"].to_list()[15:21] == [-1, 15, 15, 15, 15, -1]


def test_failed_import_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "t.parquet"
    (tmp_path / "good").write_bytes(render(nested_events(3)))
    (tmp_path / "bad").write_bytes(render(nested_events(3)) + b"cut li")
    import_trace([str(tmp_path / "good")], target)
    before = target.read_bytes()
    with pytest.raises(TraceFormatError):
        import_trace([str(tmp_path / "bad")], target, strict=True)
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good", "t.parquet"]
