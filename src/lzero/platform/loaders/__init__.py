"""Loaders: recognise a guest's image, put it into memory, and say in which state the processor enters it."""

from __future__ import annotations

from lzero.platform.loaders.entry import EntryMode, EntryState, Segment
from lzero.platform.loaders.images import ImageKind, LoadOptions, Module, detect, load

__all__ = ["EntryMode", "EntryState", "ImageKind", "LoadOptions", "Module", "Segment", "detect", "load"]
