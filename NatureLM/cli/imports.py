"""The heavy imports of a command's own process."""

from __future__ import annotations

import gc
import sys
from importlib import import_module

_MODEL = "NatureLM.models.modeling"


def import_model() -> None:
    """Import the model's code, with torch, transformers and peft, unless that was done.

    It makes a million objects that stay to the end. Looking for garbage among them, while they are
    made and ever after, takes a third of the time to a first answer; so they are kept out of it.
    Not for somebody else's process: what is garbage at that moment stays, too.
    """
    if _MODEL in sys.modules:
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        import_module(_MODEL)
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
