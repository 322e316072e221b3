"""The model as transformers loads it from a folder by `auto_map`; it is copied into the folder.

Shapes: R rows, L positions, N clips, S samples, Q audio positions of a clip, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from NatureLM.models.audio_side import AudioSide
from NatureLM.vllm.configuration_naturelm import NatureLMConfig


class NatureLMForConditionalGeneration(AudioSide, PreTrainedModel, GenerationMixin):
    """BEATs, Q-Former and projection in front of a causal language model.

    `NatureLMAudioProcessor` makes its inputs: `input_ids` (R, L) with the audio token at every
    position of a clip, and `input_values` (N, S), the clips of all rows in order. The audio side
    stays in float32, whatever the language model's precision.
    """

    config_class = NatureLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _keep_in_fp32_modules_strict = {  # noqa: RUF012 (as transformers declares it)
        "beats", "ln_audio", "audio_Qformer", "audio_query_tokens", "audio_llama_proj",
    }  # fmt: skip
    # One table of relative positions, which the first layer's name stands for in the files.
    _tied_weights_keys = {  # noqa: RUF012
        r"beats\.encoder\.layers\.(?!0\.)\d+\.self_attn\.relative_attention_bias\.weight": (
            "beats.encoder.layers.0.self_attn.relative_attention_bias.weight"
        ),
    }

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.build_audio_side(config, config.text_config.hidden_size)
        self.llama_model = AutoModelForCausalLM.from_config(
            config.text_config, trust_remote_code=False
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: Any) -> None:
        """All weights come from the files; the language model has buffers of its own to compute."""
        if module in set(self.llama_model.modules()):
            self.llama_model._init_weights(module)

    def get_input_embeddings(self) -> Any:
        return self.llama_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.llama_model.get_output_embeddings()

    def get_audio_features(self, input_values: Tensor, **_: Any) -> Tensor:
        """Waveforms (N, S) in [-1, 1] at the model's rate → audio embeddings (N, Q, D)."""
        return self.encode_audio(input_values)

    def merged_embeddings(self, input_ids: Tensor, input_values: Tensor | None) -> Tensor:
        """Input embeddings (R, L, D) with the clips in place of the audio token."""
        is_audio_RL = input_ids == self.config.audio_token_id
        embeds_RLD: Tensor = self.get_input_embeddings()(input_ids.masked_fill(is_audio_RL, 0))
        places = int(is_audio_RL.sum())
        if input_values is None:
            if places:
                raise ValueError(f"the prompts have {places} audio positions and no input_values")
            return embeds_RLD
        audio_PD = self.get_audio_features(input_values).flatten(0, 1)
        if places != len(audio_PD):
            raise ValueError(
                f"the prompts have {places} audio positions, and the clips take {len(audio_PD)}; "
                "take input_ids and input_values from one call of the processor"
            )
        return embeds_RLD.masked_scatter(is_audio_RL[..., None], audio_PD.to(embeds_RLD))

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the language model returns."""
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids, or inputs_embeds")
            inputs_embeds = self.merged_embeddings(input_ids, input_values)
        return self.llama_model(inputs_embeds=inputs_embeds, **kwargs)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self, input_ids: Tensor | None = None, input_values: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers: the prompts' ids, and the new ones behind them.

        The language model is given embeddings, since the audio token may have no row in its
        vocabulary; so penalties of repetition see the answer alone, as in the reference.
        """
        if kwargs.get("do_sample"):
            kwargs.setdefault("temperature", 1.0)  # the folder says 0, so that vLLM does not sample
        if input_ids is None:
            return super().generate(**kwargs)  # type: ignore[misc]
        embeds_RLD = self.merged_embeddings(input_ids, input_values)
        made = super().generate(inputs_embeds=embeds_RLD, **kwargs)  # type: ignore[misc]
        new_RL: Any = made if isinstance(made, Tensor) else made.sequences
        prompts_RL = input_ids.repeat_interleave(len(new_RL) // len(input_ids), dim=0)
        whole_RL: Any = torch.cat([prompts_RL, new_RL.to(prompts_RL)], dim=1)
        if isinstance(made, Tensor):
            return whole_RL
        made.sequences = whole_RL
        return made
