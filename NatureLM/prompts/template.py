"""A question becomes the complete text that the model was trained on."""

from __future__ import annotations

PLACEHOLDER = "<AudioHere>"
AUDIO_TAG = f"<Audio>{PLACEHOLDER}</Audio>"


def with_audio(query: str) -> str:
    """The query, with the audio in front if it names no place for it, stripped."""
    if PLACEHOLDER not in query:
        query = f"{AUDIO_TAG} {query}"
    return query.strip()


def render(template: str, query: str) -> str:
    """The complete prompt: the query with its audio places, put into `{}` of the template."""
    return template.replace("{}", with_audio(query))
