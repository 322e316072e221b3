"""Prompts: queries, placeholders and the chat template around them."""

from __future__ import annotations

from NatureLM.prompts.chat import ChatTemplate
from NatureLM.prompts.template import AUDIO_TAG, PLACEHOLDER, render, with_clips

__all__ = ["AUDIO_TAG", "PLACEHOLDER", "ChatTemplate", "render", "with_clips"]
