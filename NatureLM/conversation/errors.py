"""What can be wrong with a conversation."""

from __future__ import annotations

from NatureLM.errors import UsageError


class ContextFull(UsageError):  # noqa: N818 (the conversation is full, nothing is broken)
    """The text has become longer than the language model can take."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(
            f"the conversation has {needed} positions with this question, and the language model "
            f"takes {limit} in all, answer included: start a new conversation, or ask with a "
            "shorter question or fewer clips"
        )
        self.needed, self.limit = needed, limit


class ConversationClosed(UsageError):  # noqa: N818
    """The conversation was closed."""
