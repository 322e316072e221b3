"""NatureLM-audio: BEATs → window-level Q-Former → projection → language model with α · LoRA.

Shapes: B windows, S samples, P patches, E encoder width, Q audio positions of a window, D width of
the language model, R rows, L positions, K scored positions, V vocabulary.

Attributes carry the names of the published checkpoint's tensors. Source: NatureLM-audio (ICLR
2025), section 3, and the reference implementation's behaviour.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils.generic import ModelOutput

from NatureLM.config.schema import Quantization
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.generation.audio_cache import LEAST_ROWS, EncodedClip, by_windows
from NatureLM.generation.engine import Answer, Engine, GenerationOptions, Request
from NatureLM.generation.labels import LabelChoice, LabelScores, Normalize, label_choices
from NatureLM.generation.prefill import merge_prompt_parts, to_device
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
from NatureLM.models.audio_side import AudioSide, fit_window
from NatureLM.models.checkpoint.load import load_model, open_checkpoint, reading
from NatureLM.models.checkpoint.peft_io import layers_to_adapt
from NatureLM.models.checkpoint.tensors import Precision, state_of, write_tensors
from NatureLM.models.configuration import PAD_TOKEN, NatureLMConfig
from NatureLM.models.fit import Outline
from NatureLM.models.quantized import quantize_layers
from NatureLM.models.registry import named
from NatureLM.prompts import check_placeholders, prompt_parts, render, token_ids

IGNORE = -100  # where nothing is to be predicted
_END_TOKENS = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")
_SMALL_ENCODER = 384  # width
_ENCODE_BATCH = 16  # windows encoded at once; bounds the memory of the attention scores


class NatureLMProcessor(ProcessorMixin):
    """Tokenizer, prompt template and the facts of the audio input.

    `prompts, audios = processor(waveforms, queries)` gives what `NatureLM.generate` takes.
    """

    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sample_rate: int = 16000,
        window_seconds: float = 10.0,
        prompt_template: str = "{}",
        **kwargs: Any,
    ) -> None:
        # Meant for word pieces; on byte-level tokens it would take spaces out of answers.
        tokenizer.clean_up_tokenization_spaces = False
        super().__init__(tokenizer, **kwargs)  # type: ignore[no-untyped-call]
        self.sample_rate = sample_rate
        self.window_seconds = window_seconds
        self.prompt_template = prompt_template

    @classmethod
    def from_config(
        cls, config: NatureLMConfig, tokenizer: PreTrainedTokenizerBase
    ) -> NatureLMProcessor:
        """The processor of a model; gives the tokenizer the `[PAD]` that the reference adds."""
        if tokenizer.pad_token != PAD_TOKEN:
            tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        return cls(tokenizer, config.sample_rate, config.window_seconds, config.prompt_template)

    def render(self, query: str) -> str:
        """The complete prompt of a question."""
        return render(self.prompt_template, query)

    def prepare_audio(self, samples: Any, seconds: float | None = None) -> Tensor:
        """A mono waveform at the model's sample rate, cut or padded with silence to one window.

        seconds: length of the window; the model's, which is the longest, where it is None

        Returns float32 (or float64 as given) of shape (window samples,), clamped to [-1, 1].
        """
        longest = self.window_seconds
        seconds = longest if seconds is None else min(seconds, longest)
        return fit_window(samples, round(seconds * self.sample_rate))

    def __call__(
        self, audios: list[Any], queries: list[str], **_: Any
    ) -> tuple[list[str], list[list[Tensor]]]:
        """Complete prompts and one prepared clip for each."""
        prompts = [self.render(query) for query in queries]
        return prompts, [[self.prepare_audio(audio)] for audio in audios]


class NatureLM(AudioSide, AdapterMixin, PreTrainedModel):
    """The audio-language model: `from_pretrained` loads one, a bare config gives random weights."""

    config_class = NatureLMConfig
    processor_class = NatureLMProcessor
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
        wav_BS = to_device(wav_BS, self.ln_audio.weight.device)
        is_plain = padding_mask_BS is None and not torch.is_grad_enabled()
        if is_plain and wav_BS.device.type == "cpu":
            many = len(wav_BS) >= LEAST_ROWS * torch.get_num_threads()
            if many or len(self.ln_audio.weight) <= _SMALL_ENCODER:
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
        answers = self.answer_prompts(
            prompts, audios, alpha=alpha, options=options, eos_ids=eos_ids
        )
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
        choices = label_choices(labels, len(prompts), normalize)
        answers = self.answer_prompts(prompts, audios, alpha=alpha, choices=choices)
        return [answer.scores for answer in answers if answer.scores is not None]

    def answer_prompts(
        self,
        prompts: Sequence[str],
        audios: Sequence[Sequence[Any]],
        *,
        alpha: Alpha | None = None,
        options: GenerationOptions | None = None,
        eos_ids: Sequence[int] | None = None,
        choices: Sequence[LabelChoice] | None = None,
    ) -> list[Answer]:
        """The engine's answers, in the order of the prompts; see `generate`.

        choices: lists of labels that prompts are answered from

        A prompt's number is that of its random stream. Raises what kept a prompt from an answer,
        except that an answer with NaN logits has its ids and no text.
        """
        self._check_pairs(prompts, audios)
        clips: dict[str, Any] = {}
        requests: list[Request] = []
        rows = zip(prompts, audios, self.alphas_for(alpha, len(prompts)), strict=True)
        for place, (prompt, row, row_alpha) in enumerate(rows):
            names = tuple(f"{id(clip):x}" for clip in row)  # hexadecimal, as the engine has hashes
            for name, clip in zip(names, row, strict=True):
                is_encoded = isinstance(clip, Tensor) and clip.ndim == 2
                clips[name] = EncodedClip(name, clip) if is_encoded else clip
            choice = None if choices is None else choices[place]
            requests.append(Request(place, prompt, names, row_alpha, place, choice))
        engine = Engine(self, options, eos_ids=eos_ids, capture=False)
        found = {answer.key: answer for answer in engine.run(requests, clips.__getitem__)}
        answers = [found[request.key] for request in requests]
        for answer in answers:
            if answer.error is not None and not answer.ids:
                raise answer.error
        return answers

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


# -- the loss: cross-entropy on answer tokens only ----------------------------------------------


@dataclass
class LossOutput(ModelOutput):
    """Loss and counts of a batch; counts are numbers of answer tokens."""

    loss: Tensor | None = None
    correct: Tensor | None = None
    total: Tensor | None = None
    per_example_loss: Tensor | None = None
    correct_per_sample: Tensor | None = None
    total_per_sample: Tensor | None = None


class SoftTarget(NamedTuple):
    """One of several tokens that may stand at a position, and how likely it is there."""

    row: int
    position: int
    token: int
    share: float


@dataclass(frozen=True)
class AnswerRows:
    """Prompts with their answers, padded on the right, and what is to be predicted.

    soft: tokens of the positions in `targets_RL` that are not certain
    """

    embeds_RLD: Tensor
    mask_RL: Tensor
    targets_RL: Tensor
    soft: Sequence[SoftTarget] = ()

    @property
    def scored_positions(self) -> Tensor:
        """Positions whose prediction is scored in some row: a range, shape (K,)."""
        first = int((self.targets_RL != IGNORE).int().argmax(dim=1).min())
        last = self.targets_RL.shape[1] - 1
        return torch.arange(first - 1, last, device=self.targets_RL.device)


def answer_rows(
    prompts_LD: Sequence[Tensor],
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    embed_tokens: nn.Embedding,
    max_answer_tokens: int,
    soft: Sequence[Mapping[str, float] | None] = (),
) -> AnswerRows:
    """Append each answer's tokens (cut at `max_answer_tokens`) to its prompt's embeddings.

    soft: for each prompt, answers with how likely each is; None for one that is certain
    """
    device = prompts_LD[0].device
    rows: list[Tensor] = []
    targets: list[Tensor] = []
    soft_targets: list[SoftTarget] = []

    @cache  # rows with shares name the same answers again and again
    def tokens_of(text: str) -> tuple[int, ...]:
        return tuple(token_ids(text, tokenizer)[:max_answer_tokens])

    for row, (prompt_LD, answer) in enumerate(zip(prompts_LD, answers, strict=True)):
        tokens = tokens_of(answer)
        if row < len(soft) and (likely := soft[row]) is not None:
            shares = {tokens_of(text): share for text, share in likely.items()}
            soft_targets += _soft_targets(row, prompt_LD.shape[0], tokens, shares)
        ids = torch.tensor(tokens, dtype=torch.long, device=device)
        rows.append(torch.cat([prompt_LD, embed_tokens(ids)]))
        ignored = ids.new_full((prompt_LD.shape[0],), IGNORE)
        targets.append(torch.cat([ignored, ids]))
    lengths = torch.tensor([row.shape[0] for row in rows], device=device)
    positions = torch.arange(int(lengths.max()), device=device)
    return AnswerRows(
        pad_sequence(rows, batch_first=True),
        (positions < lengths[:, None]).long(),
        pad_sequence(targets, batch_first=True, padding_value=IGNORE),
        soft_targets,
    )


def _soft_targets(
    row: int, start: int, tokens: tuple[int, ...], shares: Mapping[tuple[int, ...], float]
) -> Iterator[SoftTarget]:
    """What may follow each part of the row's own answer, among the answers that begin like it."""
    for place in range(len(tokens)):
        follows: dict[int, float] = defaultdict(float)
        for other, share in shares.items():
            if len(other) > place and other[:place] == tokens[:place] and share > 0:
                follows[other[place]] += share
        whole = sum(follows.values())
        if len(follows) > 1:
            for token, share in follows.items():
                yield SoftTarget(row, start + place, token, share / whole)


def answer_loss(logits_RKV: Tensor, rows: AnswerRows) -> LossOutput:
    """Mean over all answer tokens of the batch, and the same per row."""
    wanted_RK = rows.targets_RL[:, rows.scored_positions + 1]
    scored = wanted_RK != IGNORE
    logits_RKV = logits_RKV if logits_RKV.dtype == torch.float64 else logits_RKV.float()
    token_loss = F.cross_entropy(
        logits_RKV.flatten(0, 1), wanted_RK.flatten(), ignore_index=IGNORE, reduction="none"
    ).view_as(wanted_RK)
    if rows.soft:
        token_loss = token_loss + _soft_loss(logits_RKV, rows, int(rows.scored_positions[0]) + 1)
    totals = scored.sum(dim=1)
    hits = ((logits_RKV.argmax(dim=-1) == wanted_RK) & scored).sum(dim=1)
    return LossOutput(
        loss=token_loss.sum() / totals.sum(),
        correct=hits.sum(),
        total=totals.sum(),
        per_example_loss=token_loss.sum(dim=1) / totals,
        correct_per_sample=hits,
        total_per_sample=totals,
    )


def _soft_loss(logits_RKV: Tensor, rows: AnswerRows, first: int) -> Tensor:
    """(R, K): what the loss of uncertain positions is more than that of the row's own token."""
    device = logits_RKV.device
    row, position, token = torch.tensor([one[:3] for one in rows.soft], device=device).T
    shares = [one.share for one in rows.soft]
    own, place = rows.targets_RL[row, position], position - first
    # the normaliser of the softmax is the same for all tokens of a position, and drops out
    more = logits_RKV[row, place, own] - logits_RKV[row, place, token]
    more = more * torch.tensor(shares, dtype=more.dtype, device=device)
    return logits_RKV.new_zeros(logits_RKV.shape[:2]).index_put((row, place), more, accumulate=True)
