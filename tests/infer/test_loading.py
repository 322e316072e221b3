"""A model as the configuration asks for it, the same at every door."""

from pathlib import Path

from NatureLM.app.context import AppContext
from NatureLM.app.settings import AppSettings
from NatureLM.config import load_config
from NatureLM.inference.loading import load_model
from NatureLM.models.registry import EMBEDDED

TEMPLATE = "Question: {} Answer:"


def test_the_prompt_template_of_the_configuration_is_used_and_else_the_models_own() -> None:
    own = load_model(EMBEDDED, load_config()).processor
    changed = load_config(None, [f"model.prompt_template={TEMPLATE}"])
    processor = load_model(EMBEDDED, changed).processor
    assert own is not None
    assert processor is not None
    assert processor.prompt_template == TEMPLATE != own.prompt_template


def test_the_app_loads_what_the_command_line_loads(tmp_path: Path) -> None:
    config = load_config(None, [f"model.prompt_template={TEMPLATE}"])
    context = AppContext(AppSettings(config=config, runs_dir=tmp_path))
    pipeline = context.pipeline(timeout=120)
    context.close()
    assert pipeline.model.processor.prompt_template == TEMPLATE
    assert pipeline.cfg is config
