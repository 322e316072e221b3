"""The architecture inside vLLM: our audio side in front of vLLM's own language model.

vLLM imports this by the name that `register` gives it. Clips take `audio_positions` places of the
audio token each; everything else of a prompt is text, so positions are those of our engine.

Shapes: N clips, S samples, Q audio positions of a clip, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsLoRA,
    SupportsMultiModal,
    SupportsPP,
)
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)
from vllm.utils.torch_utils import set_default_torch_dtype

from NatureLM.audio.windows import read_noted_clip
from NatureLM.errors import NatureLMError
from NatureLM.models.audio_side import AudioSide
from NatureLM.prompts import AUDIO_TAG
from NatureLM.vllm.processing_naturelm import NatureLMAudioProcessor

_ENCODE_BATCH = 16  # clips encoded at once; bounds the memory of the attention scores


class NatureLMProcessingInfo(BaseProcessingInfo):
    """What vLLM asks of the model's sound."""

    def get_hf_processor(self, **kwargs: object) -> NatureLMAudioProcessor:
        return self.ctx.get_hf_processor(NatureLMAudioProcessor, **kwargs)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"audio": None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        return {"audio": self.get_hf_config().audio_positions()}

    def get_data_parser(self) -> MultiModalDataParser:
        return SoundParser(
            self.get_hf_config(), expected_hidden_size=self._get_expected_hidden_size()
        )


class SoundParser(MultiModalDataParser):
    """Sound of any rate and channels → mono at the model's rate, as our own service reads clips.

    config: of the model; what is longer than its window is cut
    """

    def __init__(self, config: Any, **more: Any) -> None:
        super().__init__(target_sr=config.sample_rate, **more)
        self._rate, self._seconds = config.sample_rate, config.window_seconds

    def _get_audio_with_sr(self, audio: Any) -> tuple[NDArray[np.float32], float | None]:
        """The clip; nothing is left to resample. Raises ValueError for what cannot be heard."""
        samples, rate = super()._get_audio_with_sr(audio)
        try:
            clip, _ = read_noted_clip(
                samples,
                input_sample_rate=self._rate if rate is None else rate,
                duration=self._seconds,
                sample_rate=self._rate,
            )
        except NatureLMError as error:
            raise ValueError(str(error)) from None
        return clip, None


class NatureLMDummyInputs(BaseDummyInputsBuilder[NatureLMProcessingInfo]):
    """The largest inputs, by which vLLM plans its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return self.info.get_hf_config().audio_token * mm_counts.get("audio", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any
    ) -> dict[str, Any]:
        return {
            "audio": self._get_dummy_audios(
                length=self.info.get_hf_config().window_samples,
                num_audios=mm_counts.get("audio", 0),
                overrides=mm_options.get("audio"),
            )
        }


class NatureLMMultiModalProcessor(BaseMultiModalProcessor[NatureLMProcessingInfo]):
    """Puts the positions of each clip where the prompt has the audio token."""

    def _get_hf_mm_text(self, mm_counts: Mapping[str, int]) -> str:
        return self.dummy_inputs.get_dummy_text(mm_counts)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"input_values": MultiModalFieldConfig.batched("audio")}

    def _get_prompt_updates(
        self,
        mm_items: Any,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: Any,
    ) -> Sequence[PromptUpdate]:
        config = self.info.get_hf_config()
        token = config.audio_token_id
        places = [token] * config.audio_positions()
        return [PromptReplacement(modality="audio", target=[token], replacement=places)]


@MULTIMODAL_REGISTRY.register_processor(
    NatureLMMultiModalProcessor, info=NatureLMProcessingInfo, dummy_inputs=NatureLMDummyInputs
)
class NatureLMForConditionalGeneration(
    AudioSide, nn.Module, SupportsMultiModal, SupportsLoRA, SupportsPP
):
    """The model that vLLM runs; the audio side stays in float32, as in our engine."""

    llama_model: Any
    packed_modules_mapping = {  # noqa: RUF012 (as vLLM declares it)
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality.startswith("audio"):
            return AUDIO_TAG
        raise ValueError(f"the model hears audio only, not {modality}")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config, self._dtype = config, vllm_config.model_config.dtype
        host: Any = self  # with the methods of vLLM's interfaces
        with (
            host._mark_tower_model(vllm_config, "audio"),
            set_default_torch_dtype(torch.float32),
        ):
            self.build_audio_side(config, config.text_config.hidden_size)
        with host._mark_language_model(vllm_config):
            self.llama_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "llama_model"),
            )
        self.make_empty_intermediate_tensors = self.llama_model.make_empty_intermediate_tensors

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (positions, D). The audio token has no row, wherever it comes from: a prompt
        that spells it out without sound must not end the engine."""
        known = input_ids.masked_fill(input_ids >= self.config.text_config.vocab_size, 0)
        host: Any = super()
        return host.embed_input_ids(known, multimodal_embeddings, is_multimodal=is_multimodal)

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """The audio embeddings (Q, D) of each clip."""
        given = kwargs.get("input_values")
        if given is None:
            return []
        clips: list[Tensor] = [one.flatten() for one in given]  # type: ignore[attr-defined]
        found: list[Tensor] = []
        for first in range(0, len(clips), _ENCODE_BATCH):
            wav_NS = torch.stack(clips[first : first + _ENCODE_BATCH]).float()
            found += self.encode_audio(wav_NS).to(self._dtype).unbind()
        return found

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.llama_model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        return self.llama_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights)

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="llama_model",
            connector=["audio_Qformer", "audio_llama_proj", "ln_audio"],
            tower_model="beats",
        )
