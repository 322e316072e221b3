"""Entry points of the commands `naturelm` and `beans`."""

from __future__ import annotations

from NatureLM.cli.errors import make_output_robust
from NatureLM.cli.lazy import Verb, group, run_verb

NATURELM_VERBS = {
    "infer": Verb("NatureLM.cli.infer:infer", "Ask questions about recordings."),
    "inference-app": Verb(
        "NatureLM.cli.inference_app:inference_app", "Ask questions on a page in the browser."
    ),
    "embed": Verb("NatureLM.cli.embed:embed", "Turn windows of recordings into vectors."),
    "search": Verb("NatureLM.cli.search:search", "Find windows that sound like a clip."),
    "export": Verb(
        "NatureLM.cli.export:export", "Turn answers into a table for spreadsheets or Raven."
    ),
    "schema": Verb("NatureLM.cli.schema:schema", "Print the JSON Schema of configuration files."),
    "models": Verb("NatureLM.cli.models:models", "List the models that can be named."),
    "train": Verb("NatureLM.cli.train:train", "Train or fine-tune a model."),
    "convert": Verb(
        "NatureLM.cli.convert:convert", "Turn an old .pth checkpoint into safetensors."
    ),
    "merge": Verb("NatureLM.cli.merge:merge", "Write the adapter into the weights of a model."),
    "tune-alpha": Verb(
        "NatureLM.cli.tune_alpha:tune_alpha", "Find the α to use on recordings with known answers."
    ),
    "calibrate": Verb("NatureLM.cli.calibrate:calibrate", "Make confidences mean what they say."),
    "report": Verb(
        "NatureLM.cli.report:report", "Draw answers: a page with figures, tables and answers."
    ),
    "cache": Verb("NatureLM.cli.cache:cache", "Show or clear audio embeddings kept on disk."),
}

BEANS_VERBS = {
    "run": Verb("NatureLM.cli.beans_run:run", "Ask a model about samples (the default verb)."),
    "info": Verb("NatureLM.cli.beans_info:info", "Show the components of BEANS-Zero."),
    "score": Verb("NatureLM.cli.beans_score:score", "Score answers, ours or anybody's."),
    "compare": Verb("NatureLM.cli.beans_compare:compare", "Compare two runs sample by sample."),
    "report": Verb("NatureLM.cli.report:report", "The same as naturelm report."),
    "fetch": Verb("NatureLM.cli.beans_fetch:fetch", "Fetch components of BEANS-Zero."),
    "make-mini": Verb(
        "NatureLM.cli.beans_make_mini:make_mini", "Make a benchmark of clips of your own."
    ),
}

naturelm_app = group(
    "naturelm",
    "Ask questions of animal sound: audio and a text prompt in, text out.",
    NATURELM_VERBS,
)
beans_app = group(
    "beans",
    "BEANS-Zero, the zero-shot benchmark of animal sound.",
    BEANS_VERBS,
    default="run",
)


def naturelm() -> None:
    """The command `naturelm`."""
    make_output_robust()
    naturelm_app()


def beans() -> None:
    """The command `beans`."""
    make_output_robust()
    beans_app()


def infer_main() -> None:
    """`naturelm infer` as a program of its own."""
    make_output_robust()
    run_verb("infer", NATURELM_VERBS["infer"])


def beans_main() -> None:
    """The command `beans` as a program of its own."""
    beans()
