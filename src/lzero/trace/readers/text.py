"""Text recordings as a stream: chunks of whole lines, parsed on all cores, delivered in order with bounded memory."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from lzero.trace.readers.events import Diagnosis

if TYPE_CHECKING:
    import numpy as np

    from lzero.trace.readers.fastlines import ChunkResult

__all__ = ["read_text"]

_CHUNK: Final = 4 << 20
_PIECE: Final = 256 << 10  # read at once from a pipe, and how many such pieces wait at most
_AHEAD: Final = 32
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
    from lzero.trace.readers.nativelines import native_parser

    parse = native_parser() or parse_chunk

    line = 0
    workers = os.cpu_count() or 1
    waiting: deque[Future[ChunkResult]] = deque()
    pieces = _Backlog(stream) if live else None
    with ThreadPoolExecutor(workers, thread_name_prefix="lzero-text") as pool:
        try:
            for chunk in _chunks(pieces or stream, diagnosis):
                waiting.append(pool.submit(parse, chunk))
                # Of a pipe that has nothing more for now, what came is delivered at once.
                while len(waiting) > workers + 1 or pieces is not None and waiting and pieces.empty:
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


class _Backlog:
    """A live stream read ahead by a thread, so that a read gives all that has come: small chunks only while little
    comes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._pieces: queue.Queue[bytes | Exception] = queue.Queue(_AHEAD)
        self._ended = False
        self._read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
        threading.Thread(target=self._fill, name="lzero-pipe", daemon=True).start()

    def _fill(self) -> None:
        while True:
            try:
                piece = self._read(_PIECE)
            except (OSError, EOFError, ValueError) as error:
                self._pieces.put(error)
                return
            self._pieces.put(piece)
            if not piece:
                return

    @property
    def empty(self) -> bool:
        """Whether nothing has come that was not read."""
        return self._pieces.empty()

    def read(self, size: int) -> bytes:
        """What has come, up to about `size` bytes; waits for the first; nothing at the end or after Ctrl-C."""
        found: list[bytes] = []
        length = 0
        if self._ended:
            return b""
        while not found or length < size and not self._pieces.empty():
            try:
                piece = self._pieces.get()
            except KeyboardInterrupt:
                # Ctrl-C is how a live pipe ends: what came is shown. A second one interrupts as usual.
                piece = b""
                self._ended = True
            if isinstance(piece, Exception) or not piece:
                if not found:
                    if isinstance(piece, Exception):
                        raise piece
                    return b""
                if not self._ended:
                    self._pieces.put(piece)  # the end, for the next read; the thread has stopped, so there is room
                break
            found.append(piece)
            length += len(piece)
        return b"".join(found)


def _chunks(stream: BinaryIO | _Backlog, diagnosis: Diagnosis) -> Iterator[bytes]:
    """Pieces of whole lines, each ending in a newline; one is added to a cut last line."""
    rest = b""
    offset = 0
    while True:
        try:
            piece = stream.read(_CHUNK)
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
