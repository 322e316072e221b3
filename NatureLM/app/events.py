"""What the handlers of the page's events have in common."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from inspect import signature
from typing import Any, TypeVar

from NatureLM.errors import NatureLMError

F = TypeVar("F", bound=Callable[..., Any])


def handler(function: F) -> F:
    """Mark a function that answers an event, so that Gradio fills its special parameters.

    `request` gets the `gr.Request`, `event` the `gr.EventData` (`gr.SelectData` as `select`).
    Gradio looks at annotations for that, which are mere text here because it is imported late.
    """
    import gradio as gr

    kinds = {"request": gr.Request, "event": gr.EventData, "select": gr.SelectData}
    names = signature(function).parameters
    function.__annotations__ = {name: kinds[name] for name in names if name in kinds}
    return function


def what_went_wrong(error: Exception) -> str:
    """A sentence for the page; where the program itself is at fault, the rest goes to stderr."""
    if isinstance(error, NatureLMError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    return (
        f"The program failed at this ({type(error).__name__}); the terminal that it runs in says "
        "more. Everything else goes on."
    )
