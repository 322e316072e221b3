"""How long a window takes on this device: two layers of the model's sizes, measured for seconds.

A model of the same sizes, but with two layers and few words, is made of made-up weights in each
precision; it encodes a window, reads a prompt and takes steps. What the second layer adds, times
the number of layers, is the time of the whole; the output head takes as long as so many weights of
a layer do. So the matrix rate, the bandwidth and what each call costs are those of this device.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from NatureLM.generation.decoding import DecodingSession
from NatureLM.memory import FreeMemory
from NatureLM.models.checkpoint.load import build_on_meta, restore_computed_buffers, without_lora
from NatureLM.models.checkpoint.tensors import Precision, tensor_refs
from NatureLM.models.configuration import NatureLMConfig
from NatureLM.models.cuda_layers import use_cuda_layers
from NatureLM.models.fit import Outline, Work, flag, layers_of, need_of, precisions
from NatureLM.models.modeling import NatureLM
from NatureLM.models.quantized import quantize_layers

_WORDS = 64  # of the vocabulary of what is measured
_PROMPT = 40  # tokens of a short question and of the template
_SECONDS, _MOST_TIMES = 0.5, 40  # that each part is measured for, and how often at most
_BEAMS = 2  # of a free answer, as published


@dataclass(frozen=True)
class WindowSeconds:
    """Seconds of encoding a window, of reading its prompt, and of a step of all rows."""

    encoding: float
    prompt: float
    step: float

    def of(self, tokens: int, windows: float = 1.0) -> float:
        """Of a window with an answer of so many tokens, where so many share each step."""
        return self.encoding + self.prompt + tokens * self.step / max(1.0, windows)


@torch.inference_mode()
def measure(
    config: NatureLMConfig, precision: Precision, device: str, *, rows: int = 2
) -> WindowSeconds:
    """Seconds of a window, where steps have so many rows."""
    model = _two_layers(config, precision, torch.device(device))
    language_model, width = model.language_model, model.llama_embed_tokens.weight.shape[1]
    both, name = layers_of(language_model), _name_of_layers(language_model)
    positions = config.audio_positions() + _PROMPT
    prompt_LD = torch.randn(positions, width).to(model.llama_embed_tokens.weight)
    tokens = torch.zeros(rows, dtype=torch.long, device=device)
    prompts, steps = [], []
    for count in (1, 2):
        language_model.set_submodule(name, both[:count])
        read = partial(DecodingSession, language_model, [prompt_LD], [1.0])
        prompts.append(_median(read, device, _SECONDS))
        session = DecodingSession(language_model, [prompt_LD] * rows, [1.0] * rows)
        steps.append(_median(partial(session.step, tokens), device, _SECONDS))
    wave_BS = torch.randn(1, config.window_samples, device=device) / 10
    encoding = _median(partial(model.encode_audio, wave_BS), device, _SECONDS)
    return _whole(config, both[0], width, encoding, prompts, steps)


def check_table(
    outline: Outline, device: str, free: FreeMemory, *, rows: int, tokens: int
) -> list[dict[str, Any]]:
    """What each precision that a device is good for takes and, where it fits, how long a window
    does; the best first, as plain data.

    rows: decoded at once, of which a window has two (beams)
    tokens: of an answer
    """
    config: NatureLMConfig = outline.model.config
    work = Work(rows, max(Work.positions, config.audio_positions() + _PROMPT + tokens))
    found = []
    for precision in precisions(outline, torch.device(device)):
        need = need_of(outline, precision, torch.device(device).type, work)
        seconds = None
        if need.within(free):
            taken = measure(config, precision, device, rows=rows)
            seconds = round(taken.of(tokens, rows / _BEAMS), 4)
        found.append(
            {
                "precision": precision.name,
                "option": flag(need),
                "weights_bytes": need.weights,
                "bytes": need.total,
                "fits": need.within(free),
                "seconds_per_window": seconds,
            }
        )
    return found


def _whole(
    config: NatureLMConfig,
    layer: nn.Module,
    width: int,
    encoding: float,
    prompts: list[float],
    steps: list[float],
) -> WindowSeconds:
    """The time of all layers, and of the output head, from that of one and of two."""
    text: Any = config.text_config
    numbers = sum(one.numel() for one in layer.parameters() if one.ndim > 1)
    more = text.num_hidden_layers - 1
    of_prompt, of_step = (max(0.0, two - one) for one, two in (prompts, steps))
    head = of_step * text.vocab_size * width / max(1, numbers)
    return WindowSeconds(encoding, prompts[0] + more * of_prompt, steps[0] + more * of_step + head)


def _two_layers(config: NatureLMConfig, precision: Precision, device: torch.device) -> NatureLM:
    """A model of these sizes with two layers, few words and made-up weights. Where α is folded into
    the weights, it has no adapter."""
    small = copy.deepcopy(config if precision.kind else without_lora(config))
    text: Any = small.text_config
    text.num_hidden_layers, text.vocab_size = 2, _WORDS
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:2]
    small.quantized = None
    model: NatureLM = build_on_meta(NatureLM, small, None)
    if precision.kind is not None:
        quantize_layers(model.language_model, precision.kind)
    for ref in tensor_refs(model):
        is_float = ref.tensor.is_floating_point()
        dtype = precision.of(ref.stored_name) if is_float else ref.tensor.dtype
        ref.fill(torch.full(ref.shape, 0.01 if is_float else 1, dtype=dtype, device=device))
    restore_computed_buffers(model, device)
    if device.type == "cuda":
        use_cuda_layers(model.language_model)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _name_of_layers(language_model: nn.Module) -> str:
    stack = layers_of(language_model)
    return str(next(name for name, one in language_model.named_modules() if one is stack))


def _median(work: Callable[[], Any], device: str, seconds: float) -> float:
    """Seconds of work that is repeated for so long, three times at least."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began

    end = time.perf_counter() + seconds
    once()
    taken = [once(), once()]
    while time.perf_counter() < end and len(taken) < _MOST_TIMES:
        taken.append(once())
    return median(taken)
