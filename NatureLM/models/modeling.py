"""NatureLM-audio: BEATs → window-level Q-Former → projection → language model with α · LoRA.

Shapes: B windows, S samples, P patches, E encoder width, Q audio positions of a window, D width of
the language model, R rows.

Attributes carry the names of the published checkpoint's tensors. Source: NatureLM-audio (ICLR
2025), section 3, and the reference implementation's behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from NatureLM.config.schema import Quantization
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.generation.audio_cache import LEAST_ROWS, by_windows
from NatureLM.generation.engine import answer_prompts
from NatureLM.generation.labels import LabelScores, Normalize, label_choices
from NatureLM.generation.prefill import check_placeholders, merge_prompt_parts, prompt_parts
from NatureLM.generation.requests import GenerationOptions
from NatureLM.merging.lora import (
    OWN_ADAPTER,
    AdaptedModel,
    Alpha,
    active_alpha,
    active_scaling,
    add_adapter,
    alpha_per_row,
    as_row_scale,
    linear_shapes,
)
from NatureLM.models.adapters import AdapterMixin
from NatureLM.models.audio_side import AudioSide
from NatureLM.models.checkpoint.load import load_model, open_checkpoint, reading
from NatureLM.models.checkpoint.peft_io import layers_to_adapt
from NatureLM.models.checkpoint.tensors import Precision, state_of, write_tensors
from NatureLM.models.configuration import NatureLMConfig, NatureLMProcessor
from NatureLM.models.fit import Outline
from NatureLM.models.loss import LossOutput, answer_loss, answer_rows
from NatureLM.models.quantized import quantize_layers
from NatureLM.models.registry import named

_END_TOKENS = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")
_SMALL_ENCODER = 384  # width
_ENCODE_BATCH = 16  # windows encoded at once; bounds the memory of the attention scores


class NatureLM(AudioSide, AdapterMixin, PreTrainedModel):
    """The audio-language model: `from_pretrained` loads one, a bare config gives random weights."""

    config_class = NatureLMConfig
    base_model_prefix = ""
    main_input_name = "wav"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    config: NatureLMConfig

    def __init__(self, config: NatureLMConfig, processor: NatureLMProcessor | None = None) -> None:
        super().__init__(config)
        if config.text_config is None:
            raise UsageError("the model configuration names no language model (text_config)")
        self.processor = processor
        self.fingerprint = None  # of the files it was loaded from
        self.revisions: dict[str, str] = {}  # commits of those that came from the Hub
        self.folded, self.attached = None, {}
        self.offloaded = 0  # layers of the language model that stay in RAM beside a card
        with reading("the model configuration", "language model (text_config)"):
            language_model = AutoModelForCausalLM.from_config(
                config.text_config, trust_remote_code=False
            )
        width = language_model.get_input_embeddings().weight.shape[1]

        self.build_audio_side(config, width)
        self.llama_model = language_model
        if config.lora:
            layers = layers_to_adapt(config, linear_shapes(language_model))
            add_adapter(language_model, OWN_ADAPTER, layers, config.lora_dropout)
            self.llama_model = AdaptedModel(language_model)
        if config.quantized is not None:
            quantize_layers(self.language_model, cast(Quantization, config.quantized))
        self.llama_embed_tokens = cast(nn.Embedding, self.language_model.get_input_embeddings())
        self.set_trainable()

    # -- parts ------------------------------------------------------------------------------

    @property
    def language_model(self) -> PreTrainedModel:
        """The causal language model itself, with the LoRA layers inside."""
        model = self.llama_model
        inner = model.get_base_model() if isinstance(model, AdaptedModel) else model
        return cast(PreTrainedModel, inner)

    @property
    def tokenizer(self) -> Any:
        if self.processor is None:
            raise NatureLMError("this model was built without a tokenizer; use from_pretrained")
        return self.processor.tokenizer

    @property
    def eos_ids(self) -> list[int]:
        """All ids that end an answer: the tokenizer's, the model's own and Llama 3's end tokens."""
        tokenizer = self.tokenizer
        vocabulary = tokenizer.get_vocab()
        found = {vocabulary[token] for token in _END_TOKENS if token in vocabulary}
        for source in (self.language_model.generation_config, self.config.text_config, tokenizer):
            ids = getattr(source, "eos_token_id", None)
            found.update(ids if isinstance(ids, (list, tuple)) else [ids])
        return sorted(token for token in found if token is not None)

    def set_trainable(
        self,
        *,
        beats: bool = False,
        qformer: bool = True,
        projection: bool = True,
        lora: bool = True,
        language_model: bool = False,
    ) -> None:
        """Choose which parts are trained; the defaults are the published ones (BEATs frozen)."""
        if language_model and self.config.quantized is not None:
            raise UsageError(
                f"the weights of the language model are {self.config.quantized}, which nothing can "
                "train: leave the language model frozen (its adapter can learn), or start from the "
                "model that it was quantised from"
            )
        for name, parameter in self.named_parameters():
            if name.startswith("beats."):
                trained = beats
            elif name.startswith("audio_llama_proj."):
                trained = projection
            elif name.startswith(("llama_model.", "llama_embed_tokens.")):
                trained = lora if ".lora_" in name else language_model
            else:
                trained = qformer
            parameter.requires_grad_(trained)

    # -- audio ------------------------------------------------------------------------------

    def encode_audio(self, wav_BS: Tensor, padding_mask_BS: Tensor | None = None) -> Tensor:
        """Waveforms → audio embeddings (B, Q, D); see `AudioSide.encode_audio`."""
        return self._encode(super().encode_audio, wav_BS, padding_mask_BS)

    def encode_patches(self, wav_BS: Tensor, padding_mask_BS: Tensor | None = None) -> Tensor:
        """Waveforms → patches (B, P, E); see `AudioSide.encode_patches`."""
        return self._encode(super().encode_patches, wav_BS, padding_mask_BS)

    def _encode(
        self, encode: Callable[..., Tensor], wav_BS: Tensor, padding_mask_BS: Tensor | None
    ) -> Tensor:
        """Each window by one core where that is soonest: of a small encoder, and of a large one
        where no core is left over."""
        is_plain = padding_mask_BS is None and not torch.is_grad_enabled()
        if is_plain and self.device.type == "cpu":
            many = len(wav_BS) >= LEAST_ROWS * torch.get_num_threads()
            if many or self.beats.width <= _SMALL_ENCODER:
                return by_windows(encode, wav_BS)
        return encode(wav_BS, padding_mask_BS)

    def encode_clips(self, audios: Sequence[Sequence[Any]]) -> list[list[Tensor]]:
        """The clips of rows as audio embeddings (Q, D); one that stands in several rows, once."""
        assert self.processor is not None
        waiting: dict[int, Tensor] = {}
        encoded: dict[int, Tensor] = {}
        for clip in (clip for row in audios for clip in row):
            if isinstance(clip, Tensor) and clip.ndim == 2:
                encoded[id(clip)] = clip
            elif id(clip) not in waiting:
                waiting[id(clip)] = self.processor.prepare_audio(clip)
        keys = list(waiting)
        for first in range(0, len(keys), _ENCODE_BATCH):
            chunk = keys[first : first + _ENCODE_BATCH]
            audio_BQD = self.encode_audio(torch.stack([waiting[key] for key in chunk]))
            encoded.update(zip(chunk, audio_BQD, strict=True))
        return [[encoded[id(clip)] for clip in row] for row in audios]

    # -- text -------------------------------------------------------------------------------

    def input_embeddings(
        self, prompts: Sequence[str], audios: Sequence[Sequence[Any]]
    ) -> list[Tensor]:
        """Input embeddings (length, D) of each prompt with its audio in place."""
        self._check_pairs(prompts, audios)
        encoded = self.encode_clips(audios)
        return [
            merge_prompt_parts(prompt_parts(prompt, self.tokenizer), clips, self.llama_embed_tokens)
            for prompt, clips in zip(prompts, encoded, strict=True)
        ]

    def _check_pairs(self, prompts: Sequence[str], audios: Sequence[Sequence[Any]]) -> None:
        if len(prompts) != len(audios):
            raise UsageError(f"{len(prompts)} prompts were given with audio for {len(audios)}")
        for prompt, clips in zip(prompts, audios, strict=True):
            check_placeholders(prompt, len(clips))

    def alphas_for(self, alpha: Alpha | None, rows: int) -> list[float]:
        """α of every row: as asked, else the folded one, else 1; checked against the model."""
        if alpha is None:
            alpha = 1.0 if self.folded is None else self.folded.alpha
        alphas = alpha_per_row(alpha, rows)
        if self.folded is not None:
            self.folded.check(torch.tensor(alphas, dtype=torch.float64), active_scaling()[1])
        elif not self.config.lora and any(value != 1.0 for value in alphas):
            raise UsageError("this model has no LoRA adapter (it was merged); alpha must be 1")
        return alphas

    def generate_ids(
        self,
        prompts: Sequence[str],
        audios: Sequence[Sequence[Any]],
        *,
        alpha: Alpha | None = None,
        options: GenerationOptions | None = None,
        eos_ids: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Generated token ids of each prompt; see `generate`."""
        alphas = self.alphas_for(alpha, len(prompts))
        self._check_pairs(prompts, audios)
        answers = answer_prompts(self, prompts, audios, alphas, options=options, eos_ids=eos_ids)
        return [list(answer.ids) for answer in answers]

    def generate(
        self,
        prompts: Sequence[str],
        audios: Sequence[Sequence[Any]],
        *,
        alpha: Alpha | None = None,
        **options: Any,
    ) -> list[str]:
        """Answer each prompt.

        `prompts` are complete strings (the template already around them; `processor.render` does
        it). `audios[i]` lists the clips for the placeholders of `prompts[i]`: waveforms (samples,)
        at the model's sample rate, or encoded audio (Q, D) from `encode_audio`. `alpha` is one
        number or one per prompt (by default 1, or what the model is folded at). `options` are
        those of `GenerationOptions`. An answer never depends on the other prompts of the call.
        """
        ids = self.generate_ids(prompts, audios, alpha=alpha, options=GenerationOptions(**options))
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in ids]

    def score_labels(
        self,
        prompts: Sequence[str],
        audios: Sequence[Sequence[Any]],
        labels: Sequence[str] | Sequence[Sequence[str]],
        *,
        alpha: Alpha | None = None,
        normalize: Normalize = "sum",
    ) -> list[LabelScores]:
        """How likely each label is as the answer to each prompt.

        `prompts`, `audios` and `alpha` are those of `generate`. `labels` is one list for all
        prompts or one list per prompt. `normalize`: "sum" takes the log-likelihood of a label and
        of the end after it, "mean" divides it by the number of tokens, "prior" takes off what it is
        under the prompt without its audio. Each prompt is run once, and all labels in one tree.
        Raises UsageError for lists that are empty, have a label twice, or one that is no string.
        """
        self._check_pairs(prompts, audios)
        alphas = self.alphas_for(alpha, len(prompts))
        choices = label_choices(labels, len(prompts), normalize)
        answers = answer_prompts(self, prompts, audios, alphas, choices=choices)
        return [answer.scores for answer in answers if answer.scores is not None]

    # -- training ---------------------------------------------------------------------------

    def loss(self, batch: dict[str, Any], alpha: Alpha | None = None) -> LossOutput:
        """Cross-entropy over the answer tokens of a batch.

        `batch` holds `prompts` (complete strings), `audios` (clips for their placeholders) and
        `answers`; an answer is followed by `end_sym` and cut at `max_txt_len` tokens. With `soft`,
        a row may give several answers with how likely each is ({text: share}): then it learns the
        shares of what may follow each part of its own answer.
        """
        prompts, answers = batch["prompts"], batch["answers"]
        alphas = self.alphas_for(alpha, len(prompts))
        rows = answer_rows(
            self.input_embeddings(prompts, batch["audios"]),
            [answer + self.config.end_sym for answer in answers],
            self.tokenizer,
            self.llama_embed_tokens,
            self.config.max_txt_len,
            [
                likely and {text + self.config.end_sym: share for text, share in likely.items()}
                for likely in batch.get("soft", ())
            ],
        )
        scale = as_row_scale(alphas, device=rows.embeds_RLD.device, dtype=rows.embeds_RLD.dtype)
        with active_alpha(scale):
            logits = self.language_model(
                inputs_embeds=rows.embeds_RLD,
                attention_mask=rows.mask_RL,
                use_cache=False,
                logits_to_keep=rows.scored_positions,
            ).logits
        return answer_loss(logits, rows)

    def forward(self, **batch: Any) -> LossOutput:
        """`loss`, so that wrappers for distributed training find it."""
        return self.loss(batch)

    # -- files ------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        path_or_id: str | Path,
        *,
        llama_path: str | Path | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        adapter: str | Path | None = None,
        audio_only: bool = False,
        weights_hash: str | None = None,
        quantize: str | None = None,
        check: Callable[[Outline, Precision], None] | None = None,
    ) -> NatureLM:
        """Load a model by name (`naturelm-tiny`), folder or Hugging Face id.

        Reads the published layout (constructor arguments and tensors, all or only those that
        differ from the base language model) and that of `save_pretrained`. `llama_path` says
        where the base is, if not where the checkpoint says. `dtype` is that of all weights; by
        default float32, and on accelerators bfloat16 for the language model, as published; "auto"
        takes the best that fits (float32 on processors, bfloat16, integers), and logs which.
        `adapter` names a folder (or Hub id) in PEFT's format, or another NatureLM checkpoint,
        whose LoRA adapter takes the place of the model's own; every α then scales that one.
        With `audio_only` the language model is not read: the model can encode audio only.
        `revision` is a commit, tag or branch on the Hub; model, base and adapter may be named with
        theirs, too (`owner/name@revision`), and `revisions` says which commits they came to.
        `weights_hash` refuses other weights than those of this `fingerprint`; of 64 digits, it is
        that of every byte.
        `quantize` ("int8", "int4") rounds the weights of the language model's linear layers while
        they are read, so that they take a half or a quarter of the memory of bfloat16; `dtype` is
        then that of all else, by default bfloat16 in the language model and float32 before it. Of
        a model that was written so it says what it must be.
        Raises `CheckpointError` with one report of everything that does not fit, and UsageError,
        before weights are read, where the device has no room for them (`models.fit`); `check` is
        called instead, by training, which needs more.
        """
        reader = open_checkpoint(path_or_id, llama_path=llama_path, revision=revision)
        model = load_model(
            cls,
            reader,
            dtype=dtype,
            device=device,
            adapter=adapter,
            audio_only=audio_only,
            weights_hash=weights_hash,
            quantize=quantize,
            check=check,
        )
        model.name_or_path = named(path_or_id, revision)
        return model

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, max_shard_size: str | int = "5GB"
    ) -> None:
        """Write config, tokenizer and safetensors (sharded above `max_shard_size`) to a folder."""
        self._check_savable()
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(state_of(self), folder, max_shard_size=max_shard_size)
        self.save_settings(folder)

    def save_settings(self, folder: Path) -> None:
        """Write what stands beside the weights: configuration, generation settings, tokenizer."""
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        if self.language_model.generation_config is not None:
            self.language_model.generation_config.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
