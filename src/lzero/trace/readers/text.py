"""Text recordings as a stream: chunks of whole lines, parsed on all cores, delivered in order with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from lzero.trace.readers.events import Diagnosis

if TYPE_CHECKING:
    import numpy as np

    from lzero.trace.readers.fastlines import ChunkResult

__all__ = ["read_text"]

_CHUNK: Final = 4 << 20
_LONGEST_LINE: Final = 1 << 20  # without a newline for this long it is no text; the piece is reported and dropped


def read_text(stream: BinaryIO, diagnosis: Diagnosis, *, live: bool = False) -> Iterator[np.ndarray[Any, Any]]:
    """Batches of events of a ``perf script``, ``trace-cmd report`` or ftrace text.

    Parameters
    ----------
    stream:
        The text, from its first byte.
    diagnosis:
        Where problems are counted.
    live:
        Deliver what a pipe has as soon as it comes, instead of filling chunks.
    """
    from lzero.trace.readers.fastlines import parse_chunk, read_leftovers

    line = 0
    if live:
        for chunk in _chunks(stream, diagnosis, live=True):
            result = parse_chunk(chunk)
            yield read_leftovers(result, line, diagnosis)
            line += result.lines
        return
    workers = os.cpu_count() or 1
    waiting: deque[Future[ChunkResult]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="lzero-text") as pool:
        try:
            for chunk in _chunks(stream, diagnosis, live=False):
                waiting.append(pool.submit(parse_chunk, chunk))
                if len(waiting) > workers + 1:
                    result = waiting.popleft().result()
                    yield read_leftovers(result, line, diagnosis)
                    line += result.lines
            while waiting:
                result = waiting.popleft().result()
                yield read_leftovers(result, line, diagnosis)
                line += result.lines
        finally:
            for future in waiting:
                future.cancel()


def _chunks(stream: BinaryIO, diagnosis: Diagnosis, *, live: bool) -> Iterator[bytes]:
    """Pieces of whole lines, each ending in a newline; one is added to a cut last line."""
    read = getattr(stream, "read1", stream.read) if live else stream.read
    rest = b""
    offset = 0
    while True:
        try:
            piece = read(_CHUNK)
        except (OSError, EOFError, ValueError) as error:
            # A damaged or cut compressed file: what was unpacked before is kept.
            diagnosis.problem("unreadable input", f"offset {offset:#x}", f"cannot read on: {error}")
            piece = b""
        if not piece:
            break
        offset += len(piece)
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield _clean(rest + piece[:cut])
            rest = piece[cut:]
        else:
            rest += piece
            if len(rest) > _LONGEST_LINE:
                diagnosis.problem(
                    "line too long", f"offset {offset:#x}", f"no line end in {len(rest)} bytes: is this text?"
                )
                rest = b""
    if rest:
        yield _clean(rest + b"\n")


def _clean(chunk: bytes) -> bytes:
    """The chunk with plain line ends: a recording that went through another system may have CR LF."""
    return chunk.replace(b"\r\n", b"\n") if b"\r" in chunk else chunk
