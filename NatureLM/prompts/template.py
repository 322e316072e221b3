"""A question becomes the complete text that the model was trained on."""

from __future__ import annotations

PLACEHOLDER = "<AudioHere>"
AUDIO_TAG = f"<Audio>{PLACEHOLDER}</Audio>"


def with_clips(query: str, clips: int) -> str:
    """The query, with places for so many clips in front if it names none, stripped."""
    if PLACEHOLDER not in query:
        query = f"{AUDIO_TAG} " * clips + query
    return query.strip()


def with_audio(query: str) -> str:
    """The query, with the audio in front if it names no place for it, stripped."""
    return with_clips(query, 1)


def render(template: str, query: str) -> str:
    """The complete prompt: the query with its audio places, put into `{}` of the template."""
    return template.replace("{}", with_audio(query))
