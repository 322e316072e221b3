"""Windows as vectors: made from recordings, kept in an index, searched for what is alike."""

from __future__ import annotations
