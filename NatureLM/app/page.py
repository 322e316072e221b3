"""The page: header, tabs, and what they share."""

from __future__ import annotations

import html
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from NatureLM.app.context import AppContext, PageParts
from NatureLM.app.events import handler
from NatureLM.app.settings import AppSettings
from NatureLM.errors import UsageError

if TYPE_CHECKING:
    import gradio as gr

TITLE = "NatureLM"
TABS = {
    "ask": "Ask",
    "identify": "Identify",
    "teach": "Teach by example",
    "long": "Long recording",
    "folder": "Folder",
    "experiments": "Experiments",
    "about": "About",
}
_POLL_SECONDS = 1.0
_DELETE_UPLOADS = (3600, 24 * 3600)  # seconds: look so often for files that are older than that


def build(settings: AppSettings, context: AppContext | None = None) -> gr.Blocks:
    """The whole page, of a new app or of the one whose context is given.

    Raises UsageError where Gradio is not installed.
    """
    gradio = need_gradio()
    context = context or AppContext(settings)
    # Components remember this folder when they are made.
    os.environ["GRADIO_TEMP_DIR"] = str(context.uploads)
    with gradio.Blocks(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=_DELETE_UPLOADS
    ) as page:
        _header(context)
        handed_over = gradio.State(None)
        with gradio.Tabs(elem_id="tabs") as tabs:
            context.parts = PageParts(tabs, handed_over)
            for name, label in TABS.items():
                with gradio.Tab(label, id=name, elem_id=f"tab-{name}"):
                    import_module(f"NatureLM.app.tabs.{name}").build(context)

        @handler
        def left(request: Any) -> None:
            context.visitors.closed(request.session_hash)

        page.unload(left)
    return cast("gr.Blocks", page)


def need_gradio() -> Any:
    """Gradio, with its telemetry off; raises UsageError where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Else the browser keeps what was asked and answered after the page is closed.
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return import_module("gradio")
    except ImportError:
        raise UsageError(
            "the web app needs gradio, which is not installed: pip install 'naturelm-audio[app]'"
        ) from None


def _header(context: AppContext) -> None:
    """Name, one sentence, and how far the model is."""
    import gradio as gr

    gr.HTML(
        f"<h1>{TITLE}</h1><p>Ask questions of animal sound. Everything stays on this computer.</p>",
        elem_id="header",
        js_on_load=None,
    )
    status = gr.HTML(status_line(context), elem_id="status", js_on_load=None)
    timer = gr.Timer(_POLL_SECONDS)

    def look() -> tuple[str, Any]:
        waiting = context.state in ("waiting", "loading")
        return status_line(context), gr.Timer(active=waiting)

    timer.tick(
        look, outputs=[status, timer], show_progress="hidden", queue=False, api_visibility="private"
    )


def status_line(context: AppContext) -> str:
    """HTML that says whether questions can be answered yet."""
    name = html.escape(context.model_name)
    text = {
        "waiting": f"The model {name} is loading …",
        "loading": f"The model {name} is loading …",
        "ready": f"The model {name} is ready.",
        "failed": f"The model {name} could not be loaded: {html.escape(context.error or '')}",
    }[context.state]
    return f'<p role="status" class="model {context.state}">{text}</p>'
