"""What happens when somebody opens the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def on_page_load(act: Callable[..., Any], outputs: Sequence[Any]) -> None:
    """Call a function whenever the page that is being built is opened."""
    from gradio.context import Context

    page = Context.root_block
    assert page is not None, "tabs are built within a page"
    page.load(
        act, None, list(outputs), queue=False, show_progress="hidden", api_visibility="private"
    )
