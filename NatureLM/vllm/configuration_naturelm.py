"""The configuration of a folder that transformers and vLLM load; it is copied into the folder.

The keys are those of `NatureLM.models.NatureLMConfig`, which reads the same file and checks every
value; here transformers only needs their defaults.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from NatureLM.models.audio_side import AudioSizes


class NatureLMConfig(AudioSizes, PreTrainedConfig):
    """Sizes of the audio side, and the language model's own configuration as `text_config`.

    audio_token, audio_token_id: what stands in a prompt for each position of a clip; the number may
        lie behind the language model's vocabulary
    """

    model_type = "naturelm"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (as transformers declares it)

    text_config: Any = None
    audio_token: str = "<AudioHere>"
    audio_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            values = dict(self.text_config)
            self.text_config = AutoConfig.for_model(values.pop("model_type"), **values)
        for name in ("beats_cfg", "qformer_cfg", "fbank_cfg"):
            setattr(self, name, getattr(self, name) or {})
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
