"""What a run starts from: a checkpoint, or parts (language model, encoder) and random rest.

First values of tensors that no file gives are a pure function of the seed and their name: BEATs as
in its paper (DeepNorm's gains, BERT's normal distribution elsewhere), the Q-Former as BERT, LoRA as
in its paper (B is zero, so that training starts from the base model).

Training takes memory beside the weights, and what a device has not is refused before they are read:
what learns has a float32 weight, a gradient, two moments and what an update makes of them; every
clip of a batch leaves what its backward pass needs. Beside measured runs: docs/how-to/fine-tune.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from NatureLM.config.model import BeatsConfig
from NatureLM.config.schema import Config, DatasetsConfig, ModelConfig, RunConfig
from NatureLM.data.sample import Example
from NatureLM.errors import ConfigError
from NatureLM.memory import MEMORY_VARIABLE, free_memory
from NatureLM.models.beats import BEATs
from NatureLM.models.checkpoint.gguf import base_folder
from NatureLM.models.checkpoint.load import (
    build_on_meta,
    commits,
    fill_tensor,
    read_base_config,
    read_tokenizer,
    reading,
    reference_config,
    restore_computed_buffers,
)
from NatureLM.models.checkpoint.peft_io import CONFIG_FILE
from NatureLM.models.checkpoint.tensors import (
    Precision,
    TensorRef,
    first_of,
    index_folder,
    precision_of,
    read_header,
    tensor_refs,
)
from NatureLM.models.configuration import NatureLMConfig
from NatureLM.models.cuda_layers import use_cuda_layers
from NatureLM.models.fit import Outline, Work, layers_of, need_of
from NatureLM.models.modeling import NatureLM
from NatureLM.models.registry import find_checkpoint
from NatureLM.training.data import NONE_LABEL
from NatureLM.training.objectives import (
    AudioText,
    DistillationTargets,
    EncoderClassifier,
    LanguageModel,
    Objective,
)
from NatureLM.training.optim import asks_for_fsdp
from NatureLM.util import derive_seed, format_bytes

_LEARNT = 4 + 4 + 8 + 8  # bytes for each number: itself, gradient, moments, their update
_AVERAGED = 4  # more with run.ema_decay
_PROMPT, _ANSWER = 40, 10  # tokens, beside those of the sound
_INNER, _WIDTH = 4, 7.5  # numbers kept of a position and layer, in widths of its parts

_DEEP_NORM = ("v_proj.", "out_proj.", "fc1.", "fc2.")


def initial_tensor(ref: TensorRef, config: NatureLMConfig, seed: int) -> Tensor:
    """The first value of a tensor of the model, float32 on the CPU."""
    module, attribute = ref.holders[0]
    name, shape = ref.stored_name, ref.shape
    generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
    value = torch.empty(shape)
    if ref.is_buffer:
        return torch.arange(shape[-1])[None]
    if isinstance(module, nn.LayerNorm):
        return torch.ones(shape) if attribute == "weight" else torch.zeros(shape)
    if name.startswith("beats."):
        return _beats_tensor(name.removeprefix("beats."), value, config.beats, generator)
    if ".lora_B." in name:
        return value.zero_()
    if ".lora_" in name:
        return _uniform(value, shape[1], generator)
    if name.startswith("audio_llama_proj."):
        return _uniform(
            value, module.in_features if isinstance(module, nn.Linear) else 1, generator
        )
    if attribute == "bias":
        return value.zero_()
    return value.normal_(0, config.qformer.initializer_range, generator=generator)


def _uniform(value: Tensor, inputs: int, generator: torch.Generator) -> Tensor:
    bound = 1 / math.sqrt(inputs)
    return value.uniform_(-bound, bound, generator=generator)


def _beats_tensor(name: str, value: Tensor, cfg: BeatsConfig, generator: torch.Generator) -> Tensor:
    """The first value of a tensor of BEATs that is not of a norm; `name` is that within BEATs."""
    width = cfg.encoder_embed_dim
    conv_spread = math.sqrt(4 * (1 - cfg.dropout) / (cfg.conv_pos * width))
    if name.endswith("grep_a"):
        return value.fill_(1)
    if name.endswith("weight_g"):
        # the norm that weight_v has on average, so that both start as one normal weight
        return value.fill_(conv_spread * math.sqrt(width * width / cfg.conv_pos_groups))
    if name.endswith(".bias"):
        return value.zero_()
    if name.endswith("weight_v"):
        return value.normal_(0, conv_spread, generator=generator)
    if name.startswith("patch_embedding."):
        return _uniform(value, math.prod(value.shape[1:]), generator)
    if cfg.deep_norm and ".layers." in name:
        if any(part in name for part in _DEEP_NORM):
            gain = (8 * cfg.encoder_layers) ** -0.25
            return nn.init.xavier_normal_(value, gain=gain, generator=generator)
        if "q_proj." in name or "k_proj." in name:
            return nn.init.xavier_normal_(value, generator=generator)
    return value.normal_(0, 0.02, generator=generator)


_CPU = torch.device("cpu")
QFORMER = ("audio_Qformer.", "audio_query_tokens", "ln_audio.")


def make_objective(
    config: Config,
    train: Sequence[Example],
    device: torch.device = _CPU,
    soft: DistillationTargets | None = None,
) -> Objective:
    """The network and loss of `run.task`, on `device`, with the right parts learning.

    soft: a classifier's answers for the task "audio-text" to learn
    """
    run, data = config.run or RunConfig(), config.datasets or DatasetsConfig()
    if run.task == "text":
        return _language_model(config, run, device)
    if run.task == "encoder":
        return _encoder(config, run, data, train, device)
    model = start_model(config.model, data, run, device)
    freeze(model, config.model)
    _prepare(model.language_model, run, device)
    return AudioText(
        model,
        max_new_tokens=config.generate.max_new_tokens,
        soft=soft,
        rows=run.rows_per_pass,
    )


def freeze(model: NatureLM, config: ModelConfig) -> None:
    """Let learn what the configuration does not freeze; what learns is float32."""
    model.set_trainable(**parts_that_learn(config))
    for name, parameter in model.named_parameters():
        if name.startswith("beats.predictor."):
            parameter.requires_grad_(False)  # answers do not pass through it
        if parameter.requires_grad:
            parameter.data = parameter.data.float().clone()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("every part is frozen, so nothing can learn; see model.freeze_*")


def start_model(
    config: ModelConfig, data: DatasetsConfig, run: RunConfig, device: torch.device = _CPU
) -> NatureLM:
    """`model.ckpt` if it is given; else a new model on `llama_path`, `beats_path` and the seed."""
    dtype = None if run.amp else torch.float32
    if config.ckpt is not None:
        named = config.llama_path if "llama_path" in config.model_fields_set else None
        return NatureLM.from_pretrained(
            config.ckpt,
            llama_path=named,
            revision=config.revision,
            weights_hash=config.weights_hash,
            dtype=dtype,
            device=device,
            check=lambda outline, one: check_memory(outline, one, device, config, run),
        )
    base = base_folder(config.llama_path, Path("."), weights=True)
    # The keys that describe the model itself, as the model's own configuration takes them.
    known = NatureLMConfig().to_dict()
    arguments: dict[str, object] = {k: v for k, v in config.model_dump().items() if k in known}
    arguments["window_seconds"] = data.audio_max_length_seconds
    model_config, tokenizer = reference_config(arguments, base)
    model = build_on_meta(NatureLM, model_config, tokenizer)
    given = {
        **part_tensors(config.beats_path, "beats."),
        **part_tensors(config.qformer_path, *QFORMER),
        **part_tensors(config.audio_llama_proj_model, "audio_llama_proj."),
    }
    base_stored, precision = index_folder(base), precision_of(dtype, device)
    refs = tensor_refs(model)
    check_memory(Outline(model, refs, {}), precision, device, config, run)
    for ref in refs:
        target = precision.of(ref.stored_name)
        if ref.base_names:
            fill_tensor(ref, first_of(base_stored, ref.base_names), target, device)
            continue
        value = _given_or_initial(ref, given, model_config, run.seed)
        ref.fill(value.to(device, target if value.is_floating_point() else value.dtype))
    restore_computed_buffers(model, device)
    model.revisions = commits({"base_revision": base})
    return model


def _given_or_initial(
    ref: TensorRef, given: Mapping[str, Tensor], config: NatureLMConfig, seed: int
) -> Tensor:
    """What a tensor starts with. Raises ConfigError for one that is given in another shape."""
    value = first_of(given, ref.names)
    if value is None:
        return initial_tensor(ref, config, seed)
    if tuple(value.shape) != ref.shape:
        raise ConfigError(
            f"{ref.stored_name} has shape {tuple(value.shape)} in the given weights, and "
            f"{ref.shape} in this model; beats_cfg must be that of the weights"
        )
    return value


def part_tensors(named: str | None, *prefixes: str) -> dict[str, Tensor]:
    """Tensors of one part from a safetensors file or folder, under their names in the model.

    The file may hold the whole model, or the part alone without its prefix if it has just one.
    BEATs' head is left out.
    """
    if named is None:
        return {}
    path = Path(named)
    if path.is_file() and path.suffix == ".safetensors":
        stored = {tensor.name: tensor for tensor in read_header(path)}
    else:
        stored = index_folder(find_checkpoint(named))
    if not any(name.startswith(prefixes) for name in stored):
        if len(prefixes) > 1:
            raise ConfigError(f"{named} holds no tensor whose name begins with {prefixes[0]}")
        stored = {prefixes[0] + name: tensor for name, tensor in stored.items()}
    return {
        name: tensor.read(torch.float32, _CPU)
        for name, tensor in stored.items()
        if name.startswith(prefixes) and not name.startswith("beats.predictor.")
    }


def _prepare(language_model: Any, run: RunConfig, device: torch.device) -> None:
    """Less memory if that is asked for, fewer kernels on a card, and plain attention on a CPU.

    There its backward pass is twice as fast for short rows.
    """
    if run.gradient_checkpointing:  # the new name of the method in transformers, or the old one
        enable = getattr(language_model, "activation_checkpointing_enable", None)
        enable = enable or language_model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if device.type == "cuda":
        use_cuda_layers(language_model)
    if device.type == "cpu":
        language_model.set_attn_implementation("eager")


def _language_model(config: Config, run: RunConfig, device: torch.device) -> Objective:
    """From the weights in `llama_path`, or from its config.json alone and the seed."""
    from transformers import AutoModelForCausalLM

    base = base_folder(config.model.llama_path, Path("."), weights=True)
    settings, tokenizer = read_base_config(base), read_tokenizer(base)
    model: Any
    with reading(base, "language model"):
        if any(base.glob("*.safetensors")):
            index_folder(base)  # refuses shards that are not there, or not in the folder
            if (base / CONFIG_FILE).exists():
                raise ConfigError(
                    f"{base} holds an adapter ({CONFIG_FILE}), and model.llama_path must name a "
                    "whole language model: merge the adapter into it first"
                )
            model = AutoModelForCausalLM.from_pretrained(
                base,
                config=settings,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
            )
        else:
            torch.manual_seed(derive_seed(run.seed, "init", "language model"))
            build: Any = AutoModelForCausalLM.from_config
            model = build(settings, trust_remote_code=False, dtype=torch.float32)
    _prepare(model, run, device)
    objective = LanguageModel(
        model.to(device),
        tokenizer,
        template=config.model.prompt_template,
        end_symbol=config.model.end_sym,
        max_answer_tokens=config.model.max_txt_len,
        all_tokens=run.loss_on == "all",
        max_new_tokens=config.generate.max_new_tokens,
    )
    objective.revisions = commits({"base_revision": base})
    return objective


def _encoder(
    config: Config,
    run: RunConfig,
    data: DatasetsConfig,
    train: Sequence[Example],
    device: torch.device,
) -> Objective:
    """A new BEATs, or that of `beats_path`, with a head for the labels of the training data."""
    classes = sorted({label for example in train for label in example.labels})
    if run.encoder.loss == "multi-label":
        classes = [label for label in classes if label != NONE_LABEL]
    if len(classes) < 2:
        raise ConfigError("the encoder task needs at least two different labels to tell apart")
    cfg = config.model.beats_cfg.model_copy(
        update={"finetuned_model": True, "predictor_class": len(classes)}
    )
    whole = NatureLMConfig(
        beats_cfg=cfg.model_dump(),
        fbank_cfg=config.model.fbank_cfg.model_dump(),
        sample_rate=config.model.sample_rate,
        window_seconds=data.audio_max_length_seconds,
    )
    given = part_tensors(config.model.beats_path, "beats.")
    with torch.device("meta"):
        beats = BEATs(cfg)
    holder = torch.nn.ModuleDict({"beats": beats})
    for ref in tensor_refs(holder):
        ref.fill(_given_or_initial(ref, given, whole, run.seed).to(device))
    return EncoderClassifier(
        beats,
        classes,
        run.encoder,
        fbank=config.model.fbank_cfg,
        sample_rate=config.model.sample_rate,
        window_samples=whole.window_samples,
    )


# Memory


def parts_that_learn(config: ModelConfig) -> dict[str, bool]:
    """What a configuration does not freeze, as `NatureLM.set_trainable` takes it."""
    return {
        "beats": not config.freeze_beats,
        "qformer": not config.freeze_audio_QFormer,
        "projection": not config.freeze_audio_llama_proj,
        "lora": config.lora,
        "language_model": not config.freeze_llama,
    }


def check_memory(
    outline: Outline,
    precision: Precision,
    device: torch.device,
    config: ModelConfig,
    run: RunConfig,
) -> None:
    """Raise ConfigError where a run takes more than the device has, before weights are read.

    A run whose weights are sharded over cards (FSDP) is not looked at.
    """
    if asks_for_fsdp():
        return
    weights = need_of(outline, precision, device.type, Work(0, 0)).total
    learnt, passes = (
        learnt_bytes(outline, precision, config, run),
        batch_bytes(outline, config, run),
    )
    free, total = free_memory(device), weights + learnt + passes
    if total <= free.bytes:
        return
    count = run.batch_size_train
    advice = "leave more parts of the model frozen, or train on a device with more"
    if weights + learnt + passes // count <= free.bytes:
        room = int((free.bytes - weights - learnt) // (passes // count))
        advice = f"run.batch_size_train: {room} fits, with a larger run.accum_grad_iters"
    elif not run.gradient_checkpointing:
        advice = "try run.gradient_checkpointing: true, and a smaller run.batch_size_train"
    raise ConfigError(
        f"training needs {format_bytes(total)} (weights {format_bytes(weights)}, what learns "
        f"{format_bytes(learnt)} more, {count} clips at a time {format_bytes(passes)}), and "
        f"{format_bytes(free.bytes)} of {free.what} are free: {advice} (the environment variable "
        f"{MEMORY_VARIABLE} says what is free, if this is wrong)"
    )


def learnt_bytes(
    outline: Outline, precision: Precision, config: ModelConfig, run: RunConfig
) -> int:
    """What the parameters that learn take more than as weights that do not."""
    outline.model.set_trainable(**parts_that_learn(config))
    each = _LEARNT + (_AVERAGED if run.ema_decay else 0)
    return sum(
        ref.tensor.numel() * (each - precision.of(ref.stored_name).itemsize)
        for ref in outline.refs
        if ref.tensor.requires_grad
    )


def batch_bytes(outline: Outline, config: ModelConfig, run: RunConfig) -> int:
    """What the clips of a batch leave for the backward pass."""
    model: Any = outline.model
    size = 2 if run.amp else 4
    text = model.language_model.config
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    positions = model.config.audio_positions() + _PROMPT + _ANSWER
    of_layer = (_INNER * inner + _WIDTH * text.hidden_size) * size
    layers = len(layers_of(model.language_model))
    kept = layers * of_layer
    if run.gradient_checkpointing:
        kept = layers * text.hidden_size * size + of_layer
    logits = 3 * _ANSWER * text.vocab_size * 4
    beats, patches = model.config.beats, model.config.patches(model.config.window_samples)
    of_encoder = beats.encoder_attention_heads * patches**2 + patches * (
        3 * beats.encoder_ffn_embed_dim + 8 * beats.encoder_embed_dim
    )
    passes = 1 if config.freeze_beats else beats.encoder_layers
    return int(run.batch_size_train * (positions * kept + logits + passes * of_encoder * size))
