"""A model as the configuration asks for it, the same at every door."""

from NatureLM.app.chat import load_pipeline
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


def test_the_app_loads_what_the_command_line_loads() -> None:
    config = load_config(None, [f"model.prompt_template={TEMPLATE}"])
    pipeline = load_pipeline(AppSettings(config=config))
    assert pipeline.model.processor.prompt_template == TEMPLATE
    assert pipeline.cfg is config
