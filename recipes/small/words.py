"""Where the projection begins: sounds near the words for them, by least squares.

The base's own embeddings of a name's tokens, averaged, are what an audio embedding of a sound with
this name should be; stretches after the end of a clip should be as the average of all tokens. This
takes seconds where the language model would need thousands of answers to say the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from NatureLM.audio.windows import read_clip
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.load import read_tokenizer
from NatureLM.models.checkpoint.tensors import index_folder
from NatureLM.models.registry import EMBEDDED
from recipes.tiny.architecture import WINDOW_DELAYS
from recipes.tiny.data import Clip

PROJECTION = "projection.safetensors"
_EMBEDDINGS = "model.embed_tokens.weight"
_RIDGE = 3.0
_AT_ONCE = 16

Floats = npt.NDArray[np.float64]


def write_projection(clips: Sequence[Clip], base: Path, folder: Path) -> Path:
    """Fit the projection from the embedded model's Q-Former into the base, and write it.

    base: folder of the language model
    """
    heard, seconds = _heard(clips)
    meant, silence = _meant([clip.label for clip in clips], base)
    counts = Counter(clip.label for clip in clips)
    groups = heard.shape[2]
    sounding = np.arange(groups) * 10.0 / groups < np.asarray(seconds)[:, None]  # (clips, groups)
    wanted = np.where(sounding[..., None], meant[:, None], silence)
    weight = np.array([counts[clip.label] ** -0.5 for clip in clips])
    weights = np.where(sounding, weight[:, None], 0.1 * weight.mean())
    delays = heard.shape[1]
    weight_OI, bias_O = ridge(
        heard.reshape(-1, heard.shape[-1]),
        np.repeat(wanted[:, None], delays, axis=1).reshape(-1, wanted.shape[-1]),
        np.repeat(weights[:, None], delays, axis=1).ravel(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PROJECTION
    tensors = {"weight": weight_OI, "bias": bias_O}
    save_file({f"audio_llama_proj.{name}": _float32(one) for name, one in tensors.items()}, path)
    return path


def ridge(inputs: Floats, targets: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted least squares with a little weight decay: matrix (outputs, inputs) and bias."""
    ones = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    weighted = ones * weights[:, None]
    penalty = _RIDGE * weights.mean() * np.eye(ones.shape[1])
    penalty[-1, -1] = 0
    found = np.linalg.solve(weighted.T @ ones + penalty, weighted.T @ targets)
    return found[:-1].T, found[-1]


def _heard(clips: Sequence[Clip]) -> tuple[Floats, list[float]]:
    """What the Q-Former makes of the clips (clips, delays, groups, width); seconds of each."""
    model = NatureLM.from_pretrained(EMBEDDED, audio_only=True)
    model.config.window_delays = [0.0, *WINDOW_DELAYS]
    seen: list[Tensor] = []
    model.audio_llama_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found: list[Tensor] = []
    seconds: list[float] = []
    processor: Any = model.processor
    with torch.inference_mode():
        for first in range(0, len(clips), _AT_ONCE):
            waves = [
                read_clip(clip.path, duration=10.0, sample_rate=processor.sample_rate)
                for clip in clips[first : first + _AT_ONCE]
            ]
            seconds += [len(wave) / processor.sample_rate for wave in waves]
            model.encode_audio(torch.stack([processor.prepare_audio(wave) for wave in waves]))
            # of each delay (windows x groups, 1, width)
            passes = [one.reshape(len(waves), -1, one.shape[-1]) for one in seen]
            found.append(torch.stack(passes, dim=1))
            seen.clear()
    return torch.cat(found).double().numpy(), seconds


def _meant(labels: Sequence[str], base: Path) -> tuple[Floats, Floats]:
    """Mean embedding of each label's tokens (labels, width), and of all tokens (width)."""
    table = index_folder(base)[_EMBEDDINGS].read(torch.float32, torch.device("cpu"))
    tokenizer = read_tokenizer(base)
    means = {
        label: table[tokenizer(f" {label}", add_special_tokens=False).input_ids].mean(dim=0)
        for label in set(labels)
    }
    stacked = torch.stack([means[label] for label in labels])
    return stacked.double().numpy(), table.double().mean(dim=0).numpy()


def _float32(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
