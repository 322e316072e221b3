"""Token ids that come one by one → pieces of text whose concatenation is the whole text."""

from __future__ import annotations

from typing import Any

_BROKEN = "\ufffd"


class TextStream:
    """Decodes a growing list of token ids.

    A token may hold only a part of a character. Such a part decodes to U+FFFD until the rest is
    there, so what stands at the end as U+FFFD is held back.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self.text = ""
        """What was given out so far."""

    def push(self, token: int) -> str:
        """Take a token; the text that is certain now and was not given out before."""
        self._ids.append(token)
        return self._give(self._decoded().rstrip(_BROKEN))

    def finish(self) -> str:
        """No token comes any more: what was held back."""
        return self._give(self._decoded())

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def _give(self, text: str) -> str:
        new = text[len(self.text) :]
        self.text += new
        return new
