"""The entries of the zoo, one file each."""

from __future__ import annotations

from astrozoo.entries import celeste, strong_lens
from astrozoo.entry import Entry

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (celeste.ENTRY, strong_lens.ENTRY)
