"""Conversations: questions that follow one another, answered as text that comes piece by piece."""

from __future__ import annotations

from NatureLM.conversation.conversation import Conversation, Turn
from NatureLM.conversation.errors import ContextFull, ConversationClosed

__all__ = ["ContextFull", "Conversation", "ConversationClosed", "Turn"]
