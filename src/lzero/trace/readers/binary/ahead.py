"""Run a generator on another core, a few items ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

__all__ = ["ahead"]

Item = TypeVar("Item")

_DEPTH: Final = 2
_PATIENCE_S: Final = 0.2


class _End:
    """The generator's end, with the error that ended it if there was one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Producer(Generic[Item]):
    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._queue: queue.Queue[Item | _End] = queue.Queue(_DEPTH)
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lzero-ahead", daemon=True)

    def __iter__(self) -> Iterator[Item]:
        self._thread.start()
        try:
            while not isinstance(item := self._queue.get(), _End):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            self._abandoned.set()
            self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as caught:  # noqa: BLE001  # it is raised again where the items are used
            error = caught
        self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        while not self._abandoned.is_set():
            try:
                self._queue.put(item, timeout=_PATIENCE_S)
                return True
            except queue.Full:
                continue
        return False


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items in the same order, made on a thread of their own.

    It pays where making them leaves Python's lock (reading files, numpy, native code). An error of the generator
    comes out where its next item would. The thread ends with the consumer, so the generator must not wait for
    something that may never come.
    """
    return iter(_Producer(items))
