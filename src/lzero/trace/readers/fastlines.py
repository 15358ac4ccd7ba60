"""The ordinary lines of a trace, a whole chunk at a time.

A chunk of text becomes columns in a few hundred vector operations (:mod:`lzero.trace.readers.swar`): event names are
found at their colons, time, CPU and thread are read backwards from there, the body forwards. A line that differs in
anything from the expected shape is handed to :mod:`lzero.trace.readers.slowline`, so this module needs to be quick
and right, not complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np

from lzero.trace.readers.events import Diagnosis, EventKind, event_dtype
from lzero.trace.readers.reasons import trace_names
from lzero.trace.readers.slowline import EVENT_KINDS, parse_line
from lzero.trace.readers.swar import (
    U64,
    Words,
    decimal_prefix,
    decimal_suffix,
    hex8,
    is_hex,
    label,
    prefix_length,
    suffix_length,
    word_view,
)

__all__ = ["ChunkResult", "Leftover", "parse_chunk", "read_leftovers"]

_PAD: Final = 384  # bytes before and after the text: however a line is cut, no place below is further outside
_LONGEST_LINE: Final = 4096
_SPACE, _NEWLINE, _COLON, _DOT, _BRACKET, _CLOSE = (ord(c) for c in " \n:.[]")
_NAME_WORDS: Final = 4  # reason names of up to 31 characters
_HASH_BITS: Final = 14

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Leftover:
    """A line for the slow parser: its number in the chunk (from 0) and its text."""

    line: int
    text: bytes


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What the fast way made of a chunk: events with their line numbers, the number of other events, and the lines
    left over.
    """

    events: Array
    event_lines: Array
    others: int
    leftovers: list[Leftover]
    lines: int


class _Text:
    """The padded bytes of a chunk with their word view."""

    __slots__ = ("data", "words")

    def __init__(self, chunk: bytes) -> None:
        self.data = np.zeros(len(chunk) + 2 * _PAD, dtype=np.uint8)
        self.data[_PAD : _PAD + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)
        self.words = word_view(self.data)

    def at(self, place: Array) -> Words:
        """The words that start at `place`."""
        word: Words = self.words[place]
        return word

    def before(self, place: Array) -> Words:
        """The words that end just before `place`."""
        word: Words = self.words[place - 8]
        return word

    def has(self, place: Array, text: bytes) -> Array:
        """Whether `text` (at most eight bytes) stands at `place`."""
        mask, value = label(text)
        result: Array = (self.words[place] & mask) == value
        return result


def parse_chunk(chunk: bytes) -> ChunkResult:
    """Parse whole lines (the last byte is a newline)."""
    text = _Text(chunk)
    newlines = np.flatnonzero(text.data == _NEWLINE)
    colons = np.flatnonzero(text.data == _COLON)
    starts = np.concatenate(([_PAD], newlines[:-1] + 1)) if len(newlines) else np.zeros(0, np.int64)
    tails = text.words[colons - 8]
    found = _event_names(text, colons, tails)
    place = colons[found.index]
    line = np.searchsorted(newlines, place)
    # Two event names in one line: let the slow parser decide which is the event.
    single = np.bincount(line, minlength=len(newlines))[line] == 1
    timed = _times(text, tails, colons)
    events, good = _parse_events(text, place, found, colons, timed, starts[line])
    good &= single
    claimed = np.zeros(len(newlines), dtype=bool)
    claimed[line] = True
    other = _other_events(text, timed, colons, starts, newlines, claimed)
    claimed[line[~good]] = False
    rest = np.flatnonzero(~claimed & ~other)
    leftovers = [Leftover(int(n), bytes(text.data[starts[n] : newlines[n]])) for n in rest.tolist()]
    return ChunkResult(events[good], line[good], int(np.count_nonzero(other)), leftovers, len(newlines))


def read_leftovers(result: ChunkResult, first_line: int, diagnosis: Diagnosis) -> Array:
    """All events of a chunk in line order: the fast ones, and those the slow parser gets from the leftovers."""
    diagnosis.others += result.others
    found: list[tuple[int, ...]] = []
    lines: list[int] = []
    for left in result.leftovers:
        where = f"line {first_line + left.line + 1}"
        if len(left.text) > _LONGEST_LINE:
            diagnosis.problem("line too long", where, f"a line of {len(left.text)} bytes")
            continue
        event = parse_line(left.text.decode("utf-8", "replace"), where, diagnosis)
        if event is not None:
            found.append(event.fields())
            lines.append(left.line)
    diagnosis.events += len(result.events) + len(found)
    if not found:
        return result.events
    together = np.concatenate((result.events, np.array(found, dtype=event_dtype())))
    order = np.argsort(np.concatenate((result.event_lines, np.array(lines))), kind="stable")
    ordered: Array = together[order]
    return ordered


@cache
def _name_patterns() -> list[tuple[EventKind, int, U64, list[tuple[int, U64, U64]]]]:
    """For each event name: kind, length, its last eight bytes, and what to compare before those (distance back, mask,
    value).
    """
    patterns = []
    for name, kind in EVENT_KINDS.items():
        raw = name.encode()
        rest = [(back, *label(raw[-back : len(raw) - back + 8])) for back in range(16, len(raw) + 1, 8)]
        if len(raw) % 8:
            rest.append((len(raw), *label(raw[:8])))
        patterns.append((kind, len(raw), U64(int.from_bytes(raw[-8:], "little")), rest))
    return patterns


@dataclass(frozen=True, slots=True)
class _Names:
    """Event names found: index of their colon, kind, where the name (with its system) starts, whether it has a
    system.
    """

    index: Array
    kind: Array
    start: Array
    system: Array


def _event_names(text: _Text, colons: Array, tails: Words) -> _Names:
    """The event names we want, in the order of the text."""
    indices, kinds, starts, systems = [], [], [], []
    for kind, length, tail, rest in _name_patterns():
        index = np.flatnonzero(tails == tail)
        if not len(index):
            continue
        place = colons[index]
        match = np.ones(len(index), dtype=bool)
        for back, mask, value in rest:
            match &= (text.words[place - back] & mask) == value
        start = place - length
        before = text.data[start - 1]
        system = (before == _COLON) & text.has(start - 5, b" kvm:")
        match &= system | (before == _SPACE)
        indices.append(index[match])
        kinds.append(np.full(np.count_nonzero(match), kind, dtype=np.uint8))
        starts.append(np.where(system, start - 4, start)[match])
        systems.append(system[match])
    if not indices:
        empty = np.zeros(0, dtype=np.int64)
        return _Names(empty, empty.astype(np.uint8), empty, empty.astype(bool))
    index = np.concatenate(indices)
    order = np.argsort(index, kind="stable")
    every_kind, start, system = (np.concatenate(part)[order] for part in (kinds, starts, systems))
    return _Names(index[order], every_kind, start, system)


def _times(text: _Text, tails: Words, colons: Array) -> Array:
    """Which colons end a time: three to nine digits after a dot, of which only six or nine are a shape we read."""
    digits = suffix_length(tails, "digits").astype(np.int64)
    timed: Array = (digits >= 3) & (text.data[colons - digits - 1] == _DOT)
    nano = np.flatnonzero(digits == 8)
    timed[nano] |= text.data[colons[nano] - 10] == _DOT
    return timed


def _other_events(text: _Text, timed: Array, colons: Array, starts: Array, newlines: Array, claimed: Array) -> Array:
    """Which lines are of an event we have no use for: as ours up to the time, then ``name:`` or ``system:name:``."""
    result = np.zeros(len(newlines), dtype=bool)
    index = np.flatnonzero(timed[:-1]) if len(timed) else np.zeros(0, np.int64)
    line = np.searchsorted(newlines, colons[index])
    index, line = index[~claimed[line]], line[~claimed[line]]
    # The first time of the line decides, as in the slow parser.
    line, first = np.unique(line, return_index=True)
    index = index[first]
    if not len(index):
        return result
    clock = colons[index]
    good = _parse_prefix(text, clock, starts[line], np.zeros(len(clock), dtype=event_dtype()))
    name = _skip_spaces(text, clock + 1)
    good &= name > clock + 1
    end = colons[index + 1]
    good &= _is_name(text, name, end)
    system = text.data[end + 1] != _SPACE
    good &= system | ~text.has(name, b"kvm:")  # a name that was cut: the slow parser says so
    second = colons[np.minimum(index + 2, len(colons) - 1)]
    good &= ~system | _is_name(text, end + 1, second)
    good &= text.data[np.where(system, second, end) + 1] == _SPACE
    result[line[good]] = True
    return result


def _is_name(text: _Text, start: Array, end: Array) -> Array:
    """Whether the bytes between make an identifier of at most 31 characters."""
    length = np.zeros(len(start), dtype=np.int64)
    for step in range(4):
        run = prefix_length(text.at(start + 8 * step), "name").astype(np.int64)
        length += np.where(length == 8 * step, run, 0)
        if not (length == 8 * (step + 1)).any():
            break
    digit = (text.data[start] >= ord("0")) & (text.data[start] <= ord("9"))
    good: Array = (length > 0) & (start + length == end) & ~digit
    return good


def _parse_events(
    text: _Text, place: Array, names: _Names, colons: Array, timed: Array, starts: Array
) -> tuple[Array, Array]:
    """Events of the lines whose event name ends at `place`, and which of them were of the expected shape."""
    kinds = names.kind
    events = np.zeros(len(place), dtype=event_dtype())
    events["kind"] = kinds
    events["isa"] = 1
    events["vcpu"] = -1
    if not len(place):
        return events, np.zeros(0, dtype=bool)
    # The time's colon is the one before the event name's, or one further back when the name has its system before it.
    clock_index = np.maximum(names.index - 1 - names.system.astype(np.int64), 0)
    clock = colons[clock_index]
    good = (clock > starts) & (clock < names.start)
    good &= _only_spaces(text, clock + 1, names.start)
    # An earlier time in the line (two lines run together, a comm with a time in it) is for the slow parser to judge.
    latest = np.concatenate(([0], np.maximum.accumulate(np.where(timed, colons, 0))))
    good &= latest[clock_index] < starts
    good &= (text.data[place + 1] == _SPACE) | (text.data[place + 1] == _NEWLINE)
    good &= _parse_prefix(text, clock, starts, events)
    body = place + 1
    body = _skip_spaces(text, body)
    numbered = text.has(body, b"vcpu ")
    width = prefix_length(text.at(body + 5), "digits")
    good &= ~numbered | (width > 0) & (width < 5)
    vcpu = decimal_prefix(text.at(body + 5), width % U64(5)).astype(np.int64)
    after = np.where(numbered, body + 5 + width.astype(np.int64), body)
    events["vcpu"] = np.where(numbered, vcpu, -1)
    exits = np.flatnonzero(kinds == EventKind.EXIT)
    if len(exits):
        part = events[exits]
        fine = _parse_exits(text, np.where(numbered, after + 1, after)[exits], part)
        fine &= ~numbered[exits] | (text.data[after[exits]] == _SPACE)
        events[exits] = part
        good[exits] &= fine
    good &= (kinds == EventKind.EXIT) | ~numbered | _ends_word(text.data[after])
    return events, good


def _ends_word(byte: Array) -> Array:
    result: Array = (byte == _SPACE) | (byte == _NEWLINE) | (byte == ord(",")) | (byte == ord("\r"))
    return result


def _only_spaces(text: _Text, start: Array, end: Array) -> Array:
    """Whether the bytes between are one or more spaces, at most 24."""
    count = np.zeros(len(start), dtype=np.int64)
    for step in range(3):
        run = prefix_length(text.at(start + 8 * step), "spaces").astype(np.int64)
        count += np.where(count == 8 * step, run, 0)
        if not (count == 8 * (step + 1)).any():
            break
    result: Array = (count > 0) & (count == end - start)
    return result


def _skip_spaces(text: _Text, place: Array) -> Array:
    for _ in range(4):
        run = prefix_length(text.at(place), "spaces").astype(np.int64)
        place = place + run
        if not (run == 8).any():
            break
    return place


def _parse_prefix(text: _Text, clock: Array, starts: Array, events: Array) -> Array:
    """Time, CPU and thread, read backwards from the time's colon: ``comm-12 [003] d..1 5.123456:``, ``comm 12 [003]
    5.123456:``.
    """
    fraction = text.before(clock)
    micro = text.data[clock - 7] == _DOT
    nano = ~micro & (text.data[clock - 10] == _DOT)
    digits = suffix_length(fraction, "digits")
    good = micro & (digits == 6) | nano & (digits == 8)
    time = decimal_suffix(fraction, np.where(micro, U64(6), U64(8))) * np.where(micro, U64(1000), U64(1))
    if nano.any():
        top = text.data[clock - 9].astype(U64) - U64(0x30)
        good &= ~nano | (top < 10)
        time += np.where(nano, top * U64(100_000_000), U64(0))
    dot = clock - np.where(nano, 10, 7)
    seconds = text.before(dot)
    width = suffix_length(seconds, "digits")
    good &= (width > 0) & (width < 8)
    events["time_ns"] = decimal_suffix(seconds, width) * U64(1_000_000_000) + time
    place = dot - width.astype(np.int64)
    spaces = suffix_length(text.before(place), "spaces").astype(np.int64)
    good &= (spaces > 0) & (spaces < 8)
    place = place - spaces
    flagged = text.data[place - 1] != _CLOSE
    if flagged.any():
        flags = suffix_length(text.before(place), "nonspaces").astype(np.int64)
        good &= ~flagged | (flags < 8)
        before = place - flags
        gap = suffix_length(text.before(before), "spaces").astype(np.int64)
        good &= ~flagged | (gap > 0) & (gap < 8)
        place = np.where(flagged, before - gap, place)
    good &= (text.data[place - 1] == _CLOSE) & (place > starts)
    result: Array = good & _parse_task(text, place - 1, events)
    return result


def _parse_task(text: _Text, close: Array, events: Array) -> Array:
    """CPU and thread before the closing bracket."""
    digits = text.before(close)
    width = suffix_length(digits, "digits")
    good = (width > 0) & (width < 5)
    width = width % U64(5)
    events["cpu"] = decimal_suffix(digits, width).astype(np.int16)
    bracket = close - width.astype(np.int64) - 1
    good &= text.data[bracket] == _BRACKET
    spaces = suffix_length(text.before(bracket), "spaces").astype(np.int64)
    good &= (spaces > 0) & (spaces < 8)
    end = bracket - spaces
    digits = text.before(end)
    width = suffix_length(digits, "digits")
    good &= (width > 0) & (width < 8)
    events["thread"] = decimal_suffix(digits, width).astype(np.int32)
    before = text.data[end - width.astype(np.int64) - 1]
    result: Array = good & ((before == _SPACE) | (before == ord("-")) | (before == ord("/")))
    return result


def _parse_exits(text: _Text, place: Array, events: Array) -> Array:
    """The body of kvm_exit from ``reason`` on."""
    good = text.has(place, b"reason ")
    name = place + 7
    codes, isas, length, known = _reasons(text, name)
    good &= known
    place = name + length
    failed = text.has(place, b" FAILED_") & text.has(place + 8, b"VMENTRY")
    place = place + np.where(failed, 15, 0)
    events["reason"] = codes | np.where(failed, np.uint32(1 << 31), np.uint32(0))
    events["isa"] = isas
    good &= text.has(place, b" rip 0x")
    place = place + 7
    value, width = _hex_number(text, place)
    good &= width > 0
    events["rip"] = value
    place = place + width
    new = text.has(place, b" info1 0")
    if new.all():
        return good & _parse_info(text, place, events)
    if not new.any():
        return good & _parse_old_info(text, place, events)
    # Both formats in one chunk: glued-together recordings. Each gets its own columns.
    for mask, parse in ((new, _parse_info), (~new, _parse_old_info)):
        chosen = np.flatnonzero(mask)
        part = events[chosen]
        good[chosen] &= parse(text, place[chosen], part)
        events[chosen] = part
    return good


def _parse_info(text: _Text, place: Array, events: Array) -> Array:
    """`` info1 0x<16> info2 0x<16> intr_info 0x<8> error_code 0x<8>[ requests 0x<16>]``: fixed places once info1 is
    found.
    """
    good: Array = text.data[place + 8] == ord("x")
    good &= text.has(place + 25, b" info2 0") & (text.data[place + 33] == ord("x"))
    good &= text.has(place + 50, b" intr_in") & text.has(place + 58, b"fo 0x")
    good &= text.has(place + 71, b" error_c") & text.has(place + 79, b"ode 0x")
    words = [text.at(place + offset) for offset in (9, 17, 34, 42, 63, 85)]
    for word in words:
        good &= is_hex(word)
    events["info1"] = hex8(words[0]) << U64(32) | hex8(words[1])
    events["info2"] = hex8(words[2]) << U64(32) | hex8(words[3])
    events["intr_info"] = hex8(words[4])
    events["error_code"] = hex8(words[5])
    end = text.data[place + 93]
    done = end == _NEWLINE
    if done.all():
        return good
    rest = text.has(place + 93, b" request") & text.has(place + 101, b"s 0x")
    rest &= is_hex(text.at(place + 105)) & is_hex(text.at(place + 113)) & (text.data[place + 121] == _NEWLINE)
    result: Array = good & (done | rest)
    return result


def _parse_old_info(text: _Text, place: Array, events: Array) -> Array:
    """`` info <hex> <hex>``, without 0x; the second is the interruption information on VMX."""
    good = text.has(place, b" info ")
    value, width = _hex_number(text, place + 6)
    events["info1"] = value
    good &= width > 0
    place = place + 6 + width
    good &= text.data[place] == _SPACE
    second, width = _hex_number(text, place + 1)
    good &= (width > 0) & (text.data[place + 1 + width] == _NEWLINE)
    events["intr_info"] = second & U64(0xFFFFFFFF)
    return good


def _hex_number(text: _Text, place: Array) -> tuple[Words, Array]:
    """Value and width (0 to 16) of the hexadecimal number at `place`."""
    high, low = text.at(place), text.at(place + 8)
    first_width = prefix_length(high, "hex")
    if not (first_width == 8).any():
        width = first_width
        return hex8(high << (U64(8) - width << U64(3))), width.astype(np.int64)
    second_width = np.where(first_width == 8, prefix_length(low, "hex"), U64(0))
    short = hex8(high << (U64(8) - first_width << U64(3)))
    tail = hex8(low << (U64(8) - second_width << U64(3)))
    return short << (second_width << U64(2)) | tail, (first_width + second_width).astype(np.int64)


@dataclass(frozen=True, slots=True)
class _ReasonTable:
    """Names hashed into slots without a collision: hash, reason and numbering per slot."""

    factors: tuple[U64, ...]
    hashes: Words
    codes: Array
    isas: Array


@cache
def _reason_table() -> _ReasonTable:
    """Search factors under which all names of up to 31 characters fall into different slots."""
    names = {name: value for name, value in trace_names().items() if len(name) < 8 * _NAME_WORDS and " " not in name}
    raw = [name.encode().ljust(8 * _NAME_WORDS, b"\0") for name in names]
    words = np.frombuffer(b"".join(raw), dtype="<u8").reshape(-1, _NAME_WORDS)
    random = np.random.default_rng(1)
    while True:
        factors = tuple(U64(n | 1) for n in random.integers(0, 2**63, _NAME_WORDS, dtype=np.uint64).tolist())
        hashes = _hash([words[:, n] for n in range(_NAME_WORDS)], factors)
        slots = hashes >> U64(64 - _HASH_BITS)
        if len(np.unique(slots)) == len(slots):
            break
    table = np.zeros(1 << _HASH_BITS, dtype=np.uint64)
    codes = np.zeros(1 << _HASH_BITS, dtype=np.uint32)
    isas = np.zeros(1 << _HASH_BITS, dtype=np.uint8)
    table[slots] = hashes
    codes[slots] = [code for _, code in names.values()]
    isas[slots] = [isa for isa, _ in names.values()]
    return _ReasonTable(factors, table, codes, isas)


def _hash(words: list[Words], factors: tuple[U64, ...]) -> Words:
    result = words[0] * factors[0]
    for word, factor in zip(words[1:], factors[1:], strict=True):
        result = (result ^ result >> U64(29)) * factors[0] + word * factor
    return result


def _reasons(text: _Text, place: Array) -> tuple[Array, Array, Array, Array]:
    """Reason, numbering, length of the name at `place`, and whether the name is known."""
    table = _reason_table()
    length = np.zeros(len(place), dtype=np.int64)
    words: list[Words] = []
    for step in range(_NAME_WORDS):
        if step and not (length == 8 * step).any():
            words.append(np.zeros(len(place), dtype=np.uint64))
            continue
        word = text.at(place + 8 * step)
        run = np.where(length == 8 * step, prefix_length(word, "nonspaces"), U64(0))
        words.append(word & ~(~U64(0) << (run << U64(3))))
        length += run.astype(np.int64)
    hashes = _hash(words, table.factors)
    slots = (hashes >> U64(64 - _HASH_BITS)).astype(np.int64)
    return table.codes[slots], table.isas[slots], length, (table.hashes[slots] == hashes) & (length > 0)
