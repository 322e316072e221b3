"""The tab About: which model it is, what it cannot do, and what may be done with it."""

from __future__ import annotations

from html import escape

import NatureLM
from NatureLM.app.context import AppContext
from NatureLM.app.ui import html
from NatureLM.models.registry import find
from NatureLM.species import names_on_card
from NatureLM.util import format_bytes, format_duration


def build(context: AppContext) -> None:
    """Put the tab's components into the page."""

    html(about(context), elem_id="about")


def about(context: AppContext) -> str:
    """The page as HTML."""
    return "".join(
        f'<section class="about-part"><h2>{title}</h2>{body}</section>'
        for title, body in (
            ("The model", _model(context)),
            ("What it cannot do", _limits(context)),
            ("The published model", _real_model()),
            ("Where the data go", _privacy(context)),
        )
    )


def _model(context: AppContext) -> str:
    entry = find(context.model_name)
    facts = [("Name", context.model_name)]
    if entry is not None:
        facts += [
            ("What it is", entry.description),
            ("Parameters", entry.parameters),
            ("Licence", entry.license),
        ]
    facts += [("Software", f"NatureLM {NatureLM.__version__}, Apache-2.0")]
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts)
    names = names_on_card(context.model_name)
    known = (
        f"<details><summary>It knows {len(names)} names of animals</summary>"
        f"<p>{escape(', '.join(names))}</p></details>"
        if names
        else ""
    )
    return f"<dl>{rows}</dl>{known}"


def _limits(context: AppContext) -> str:
    limits = context.limits
    embedded = find(context.model_name)
    small = (
        "<li>The embedded model is small. It calls every animal by one of the names it knows, "
        "whatever it hears. It is for trying things out, not for science.</li>"
        if embedded is not None and embedded.embedded
        else ""
    )
    return (
        f"<ul>{small}"
        f"<li>It hears up to {context.sample_rate / 2000:g} kHz. Bats are above that: open "
        "<em>Bats</em> below the sounds to slow them down.</li>"
        "<li>It hears ten seconds at once; longer recordings are asked about in windows.</li>"
        "<li>Answers are guesses. Look at the spectrogram, and listen.</li>"
        f"<li>A file may have {format_bytes(limits.upload_bytes)}, a clip may last "
        f"{format_duration(limits.ask_seconds, short=True)}, and {limits.clips} clips fit into one "
        "question.</li>"
        "</ul>"
    )


def _real_model() -> str:
    return (
        "<p>NatureLM-audio (ICLR 2025) has 8 billion parameters and knows thousands of species. "
        "Its weights are for non-commercial use (CC BY-NC-SA 4.0), and the language model in it "
        "comes from Meta under the Llama 3.1 licence. With a graphics card of 24 GB:</p>"
        "<ol><li>Ask for access to <code>meta-llama/Llama-3.1-8B-Instruct</code> on the Hugging "
        "Face Hub.</li><li><code>hf auth login</code></li>"
        "<li><code>naturelm inference-app --model naturelm-audio</code></li></ol>"
    )


def _privacy(context: AppContext) -> str:
    return (
        "<p>Sounds and questions stay on the computer that runs this page. Clips and "
        "conversations are removed when the page is closed. Jobs of <em>Long recording</em> and "
        f"<em>Folder</em> stay in <code>{escape(context.runs_dir.name)}</code> until you remove "
        "them.</p>"
    )
