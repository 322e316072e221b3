"""Prompts: queries, placeholders and the chat template around them."""

from __future__ import annotations

from NatureLM.prompts.template import AUDIO_TAG, PLACEHOLDER, render

__all__ = ["AUDIO_TAG", "PLACEHOLDER", "render"]
