"""Nothing a guest writes to the board may raise: random accesses to all of it, with time passing in between."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lzero.platform.interrupts.lapic import MsrFault
from pcboard import Board

PORTS = st.one_of(
    st.sampled_from(
        [*range(0x20, 0x22), *range(0x40, 0x44), 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, *range(0xA0, 0xA2)]
        + [*range(0xE0, 0xE8), *range(0xF4, 0xF8), *range(0x3F8, 0x400), 0x4D0, 0x4D1, *range(0x510, 0x51C)]
        + [*range(0x600, 0x60C), *range(0xCF8, 0xD00), 0x2000, 0x2017]
    ),
    st.integers(0, 0xFFFF),
)
ADDRESSES = st.one_of(
    st.integers(0, 0x3F).map(lambda index: 0xFEE00000 + 16 * index),
    st.sampled_from([0xFEC00000, 0xFEC00010, 0xFEC00040]),
    st.integers(0xFEC00000, 0xFEC00FFF),
    st.integers(0xFEE00000, 0xFEE00FFF),
    st.integers(0xFF000000, 0xFF00FFFF),
    st.integers(0, (1 << 52) - 8),
)
APIC_BASES = st.tuples(
    st.sampled_from([0xFEC00000, 0xFEE00000, 0xFF000000, 0xFF00F000, 0, 0x80000000]),
    st.sampled_from([0x100, 0x900, 0xD00]),
).map(sum)
VALUES = st.one_of(st.integers(0, 0xFF), st.integers(0, 0xFFFF_FFFF), st.integers(0, (1 << 64) - 1))
MSRS = st.one_of(st.integers(0x800, 0x8FF), st.just(0x1B), st.just(0x6E0))

STEPS = st.one_of(
    st.tuples(st.just("in"), PORTS, st.sampled_from([1, 2, 4])),
    st.tuples(st.just("out"), PORTS, st.sampled_from([1, 2, 4]), VALUES),
    st.tuples(st.just("read"), ADDRESSES, st.sampled_from([1, 2, 4, 8])),
    st.tuples(st.just("write"), ADDRESSES, st.sampled_from([1, 2, 4, 8]), VALUES),
    st.tuples(st.just("irq"), st.integers(0, 23), st.booleans()),
    st.tuples(st.just("time"), st.integers(0, 10**12)),
    st.tuples(st.just("msr"), MSRS, VALUES),
    st.tuples(st.just("msr"), st.just(0x1B), APIC_BASES),
    st.tuples(st.just("take")),
    st.tuples(st.just("feed"), st.binary(max_size=40)),
)


def perform(board: Board, step: tuple[object, ...]) -> None:
    match step:
        case ("in", int(port), int(size)):
            assert 0 <= board.bus.port_read(port, size) < 1 << 8 * size
        case ("out", int(port), int(size), int(value)):
            board.bus.port_write(port, size, value & (1 << 8 * size) - 1)
        case ("read", int(gpa), int(size)):
            assert 0 <= board.bus.mmio_read(gpa, size) < 1 << 8 * size
        case ("write", int(gpa), int(size), int(value)):
            board.bus.mmio_write(gpa, size, value & (1 << 8 * size) - 1)
        case ("irq", int(gsi), bool(level)):
            board.pc.irq(gsi, level)
        case ("time", int(ns)):
            board.skip(ns)
        case ("msr", int(msr), int(value)):
            access_msr(board, msr, value)
        case ("take",):
            if board.pc.pending_interrupt():
                assert 0 <= board.pc.acknowledge_interrupt() <= 0xFF
        case ("feed", bytes(data)):
            board.pc.feed_console(data)


def access_msr(board: Board, msr: int, value: int) -> None:
    lapic = board.pc.lapic
    try:
        if msr == 0x1B:
            lapic.base = value
        elif msr == 0x6E0:
            lapic.timer.tsc_deadline = value
        else:
            lapic.write_msr(msr, value)
            assert 0 <= lapic.read_msr(msr) < 1 << 64
    except MsrFault:
        pass


@settings(max_examples=400)
@given(st.lists(STEPS, max_size=60))
def test_no_access_raises_and_what_the_run_loop_reads_stays_true(steps: list[tuple[object, ...]]) -> None:
    board = Board(memory_size=1 << 20)
    for step in steps:
        perform(board, step)
        lapic, pic = board.pc.lapic, board.pc.pic
        extint = pic.first.request() is not None and lapic.accepts_extint
        assert board.pc.pending_interrupt() == (lapic.highest_request() is not None or extint)
        assert board.pc.nmi_pending == lapic.nmi_pending
        assert not lapic.irr >> 256
        assert not lapic.isr >> 256


@settings(max_examples=50)
@given(st.lists(STEPS, max_size=40))
def test_two_boards_do_the_same(steps: list[tuple[object, ...]]) -> None:
    boards = (Board(1 << 20), Board(1 << 20))
    for step in steps:
        for board in boards:
            perform(board, step)
    first, second = boards
    assert first.console.getvalue() == second.console.getvalue()
    assert first.clock.next_deadline_ns() == second.clock.next_deadline_ns()
    assert first.pc.exit_request == second.pc.exit_request
    assert (first.pc.lapic.irr, first.pc.lapic.isr) == (second.pc.lapic.irr, second.pc.lapic.isr)
