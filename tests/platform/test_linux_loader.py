"""Linux by the 64-bit boot protocol: the zero page, both entries, every compressor, bad images; Debian's kernel where
it was fetched.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bootimages import BzImage, Elf
from lzero.errors import ImageError
from lzero.platform.loaders import EntryMode, ImageKind, LoadOptions, detect, load
from lzero.platform.loaders import payload as payloads
from lzero.platform.loaders.payload import unpack
from lzero.platform.memory import GuestMemory

MIB = 1 << 20
KERNEL = Elf(
    body=b"Linux version 6.1 " + bytes(range(256)) * 64, bits=64, machine=62, physical=0x1000000, entry=0x1000010
).encode()


def lz4_legacy(data: bytes) -> bytes:
    """The kernel's LZ4 format with literals only."""
    length = len(data) - 15
    block = b"\xf0" + b"\xff" * (length // 255) + bytes([length % 255]) + data
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block + struct.pack("<I", len(data))


COMPRESSORS = {
    "gzip": gzip.compress,
    "bzip2": lambda data: bz2.compress(data) + struct.pack("<I", len(data)),
    "xz": lambda data: lzma.compress(data) + struct.pack("<I", len(data)),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE) + struct.pack("<I", len(data)),
    "zstd": lambda data: zstandard.compress(data) + struct.pack("<I", len(data)),
    "lz4": lz4_legacy,
}


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(64 * MIB)


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(data)
    return path


def zero_page(memory: GuestMemory, offset: int, size: int) -> int:
    return int.from_bytes(memory.read(0x2000 + offset, size), "little")


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_the_payload_is_unpacked_and_entered_directly(memory: GuestMemory, tmp_path: Path, compressor: str) -> None:
    path = write(tmp_path, BzImage(payload=COMPRESSORS[compressor](KERNEL)).encode())
    assert detect(path) is ImageKind.LINUX
    state = load(path, memory)
    assert (state.mode, state.rip, state.registers["rsi"]) == (EntryMode.LONG64, 0x1000010, 0x2000)
    assert memory.read(0x1000000, 13) == b"Linux version"


@pytest.mark.parametrize(("payload", "entry"), [(b"unknown", "elf"), (gzip.compress(KERNEL), "decompressor")])
def test_otherwise_the_images_own_decompressor_is_entered(
    memory: GuestMemory, tmp_path: Path, payload: bytes, entry: str
) -> None:
    state = load(write(tmp_path, BzImage(payload=payload).encode()), memory, LoadOptions(kernel_entry=entry))
    assert state.rip == 0x1000200
    assert memory.read_u8(state.rip) == 0xCC


def test_the_zero_page(memory: GuestMemory, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"070701" * 1000)
    options = LoadOptions(args=("console=ttyS0",), append="quiet", initrd=initrd, rsdp=0xF0000)
    state = load(write(tmp_path, BzImage(payload=gzip.compress(KERNEL)).encode()), memory, options)
    assert state.registers["rsi"] == 0x2000
    assert zero_page(memory, 0x1FE, 2) == 0xAA55
    assert zero_page(memory, 0x202, 4) == int.from_bytes(b"HdrS", "little")
    assert zero_page(memory, 0x210, 1) == 0xFF
    assert zero_page(memory, 0x70, 8) == 0xF0000
    assert memory.read(zero_page(memory, 0x228, 4), 20) == b"console=ttyS0 quiet\0"
    address, size = zero_page(memory, 0x218, 4), zero_page(memory, 0x21C, 4)
    assert size == 6000
    assert address % 4096 == 0
    assert address + size <= 64 * MIB
    assert memory.read(address, 6) == b"070701"
    count = zero_page(memory, 0x1E8, 1)
    entries = [struct.unpack("<QQI", memory.read(0x22D0 + 20 * i, 20)) for i in range(count)]
    assert entries == [(e.base, e.size, e.type) for e in memory.e820()]


def test_kaslr_is_off_where_no_decompressor_ran(memory: GuestMemory, tmp_path: Path) -> None:
    path = write(tmp_path, BzImage(payload=gzip.compress(KERNEL)).encode())
    load(path, memory)
    assert zero_page(memory, 0x211, 1) & 3 == 1
    load(path, memory, LoadOptions(kernel_entry="decompressor"))
    assert zero_page(memory, 0x211, 1) & 3 == 3


def test_the_first_4_gib_are_mapped_onto_themselves(memory: GuestMemory, tmp_path: Path) -> None:
    state = load(write(tmp_path, BzImage(payload=gzip.compress(KERNEL)).encode()), memory)
    assert state.cr0 >> 31 and state.cr4 & 0x20 and state.efer == 0x500
    for address in (0, 0x1000010, 0x3FFFFFFF, 0xFFFFF000):
        table = state.cr3
        for shift in (39, 30):
            table = memory.read_u64(table + 8 * (address >> shift & 511)) & ~0xFFF
        page = memory.read_u64(table + 8 * (address >> 21 & 511))
        assert page & 0x81 == 0x81
        assert page & ~0xFFF == address & ~0x1FFFFF


def test_an_unpacked_kernel(memory: GuestMemory, tmp_path: Path) -> None:
    path = write(tmp_path, KERNEL)
    assert detect(path) is ImageKind.LINUX_ELF
    assert load(path, memory).rip == 0x1000010


def test_an_initrd_stays_below_the_kernels_limit(memory: GuestMemory, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(bytes(0x1001))
    image = BzImage(payload=gzip.compress(KERNEL), initrd_maximum=0x1FFFFFF)
    load(write(tmp_path, image.encode()), memory, LoadOptions(initrd=initrd))
    assert zero_page(memory, 0x218, 4) == 0x1FFE000


BAD_IMAGES = {
    "old": (BzImage(version=0x0205), {}, r"boot protocol 2\.05"),
    "32 bits": (BzImage(extended_flags=0), {}, "64-bit entry"),
    "truncated": (BzImage(payload=b"abc", payload_size=100), {}, "truncated"),
    "damaged payload": (BzImage(payload=gzip.compress(KERNEL)[:100]), {}, "damaged"),
    "damaged xz": (BzImage(payload=b"\xfd7zXZ\x00" + b"\xff" * 64), {}, "damaged"),
    "damaged lz4": (BzImage(payload=b"\x02\x21\x4c\x18\xff\xff\xff\x7f1234"), {}, "damaged"),
    "too little memory": (BzImage(init_size=0x10000000), {"kernel_entry": "decompressor"}, "give more memory"),
    "long command line": (BzImage(command_line_size=10), {"append": "x" * 11}, "takes a command line of 10 bytes"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_say_what_is_wrong(memory: GuestMemory, tmp_path: Path, name: str) -> None:
    image, options, message = BAD_IMAGES[name]
    with pytest.raises(ImageError, match=message):
        load(write(tmp_path, image.encode()), memory, LoadOptions(**options))


def test_an_initrd_that_does_not_fit(memory: GuestMemory, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(bytes(60 * MIB))
    with pytest.raises(ImageError, match="do not fit between the kernel's end"):
        load(write(tmp_path, BzImage(payload=gzip.compress(KERNEL)).encode()), memory, LoadOptions(initrd=initrd))


@given(st.binary(max_size=200), st.integers(1, 20), st.integers(1, 300))
def test_lz4_copies_repeat(literals: bytes, offset: int, length: int) -> None:
    literals = literals.ljust(20, b"x")
    extension, match = len(literals) - 15, length + 3
    token = 0xF0 | min(match - 4, 15)
    block = bytes([token]) + (b"\xff" * (extension // 255)) + bytes([extension % 255]) + literals
    block += struct.pack("<H", offset)
    if match - 4 >= 15:
        block += b"\xff" * ((match - 19) // 255) + bytes([(match - 19) % 255])
    expected = bytearray(literals)
    for _ in range(match if match >= 4 else 4):
        expected.append(expected[-offset])
    block += b"\xc0" + b"end of block"  # a block ends with literals
    payload = b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block + bytes(4)
    assert unpack(payload) == payloads._lz4(payload) == bytes(expected) + b"end of block"
    assert payloads._lz4_block(block) == bytes(expected) + b"end of block"


def test_lz4_without_the_hosts_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "_host_lz4", lambda: None)
    assert unpack(lz4_legacy(KERNEL)) == KERNEL


@given(st.binary(max_size=100))
def test_both_lz4_readers_agree_on_garbage(block: bytes) -> None:
    library = payloads._host_lz4()
    if library is None:
        pytest.skip("liblz4 is not installed")
    try:
        expected = payloads._lz4_block(block)
    except (ValueError, IndexError):
        return  # what one refuses the other may read as a block that ends early, or refuse
    try:
        assert library(block) == expected
    except ValueError:
        pass  # the library also refuses blocks that end with a copy


@given(st.sampled_from(sorted(COMPRESSORS)), st.data())
def test_damaged_payloads_unpack_or_are_image_errors(name: str, data: st.DataObject) -> None:
    payload = bytearray(COMPRESSORS[name](KERNEL))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(8, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(bytes(payload[: data.draw(st.integers(8, len(payload)))]))
    except ImageError:
        pass


def test_flat_binaries(tmp_path: Path) -> None:
    memory = GuestMemory(2 * MIB)
    path = write(tmp_path, b"\xf4" * 16)
    real = load(path, memory, LoadOptions(load_address=0x7C00, entry_mode=EntryMode.REAL16))
    assert (real.mode, real.segments["cs"].base + real.rip) == (EntryMode.REAL16, 0x7C00)
    high = load(path, memory, LoadOptions(load_address=0x12345, entry_mode=EntryMode.REAL16))
    assert high.segments["cs"].base + high.rip == 0x12345
    assert high.rip <= 0xFFFF
    protected = load(path, memory, LoadOptions(load_address=0x100000))
    assert (protected.mode, protected.rip) == (EntryMode.PROTECTED32, 0x100000)
    long = load(path, memory, LoadOptions(load_address=0x100000, entry_mode=EntryMode.LONG64))
    assert (long.mode, long.cr3) == (EntryMode.LONG64, 0x3000)
    assert memory.read_u8(0x100000) == 0xF4


@pytest.mark.parametrize(
    ("address", "mode"), [(0x200000 - 8, "protected32"), (0x100000, "real16"), (1 << 32, "long64"), (1 << 63, "long64")]
)
def test_flat_binaries_that_do_not_fit(tmp_path: Path, address: int, mode: str) -> None:
    path = write(tmp_path, b"\xf4" * 16)
    with pytest.raises(ImageError, match=hex(address)):
        load(path, GuestMemory(2 * MIB), LoadOptions(load_address=address, entry_mode=EntryMode(mode)))
