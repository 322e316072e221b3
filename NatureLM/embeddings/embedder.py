"""Windows → one vector each, by the parts of a model that hear.

Shapes: B windows, S samples, P positions in time, E width.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from NatureLM.audio import Window
from NatureLM.errors import UsageError
from NatureLM.generation.memory import halving

if TYPE_CHECKING:
    from NatureLM.models import NatureLM

LAYERS = ("encoder", "projected")


class Embedder:
    """Makes vectors of windows: the mean over the positions of a layer that hold sound.

    layer: `encoder`, what the audio encoder says of each patch; `projected`, the vectors that
        stand in the language model's prompt
    batch: windows at once; half as many after each time that memory ran out
    note: told that memory ran out

    A window shorter than the model's is padded with silence, as everywhere; positions that lie
    wholly in the padding do not count.
    """

    def __init__(
        self,
        model: NatureLM,
        layer: str = "encoder",
        *,
        batch: int = 16,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        if layer not in LAYERS:
            raise UsageError(f"the layer is {layer!r}, and it must be one of {', '.join(LAYERS)}")
        if batch < 1:
            raise UsageError(f"the batch size is {batch}, and it must be at least 1")
        self.model, self.layer, self.batch, self._note = model, layer, batch, note
        self.fingerprint = _fingerprint(model, self._parts(), layer)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        if self.layer == "encoder":
            return int(self.model.beats.width)
        return int(self.model.audio_llama_proj.out_features)

    def vectors(
        self, windows: Sequence[Window], time_expansion: float = 1.0
    ) -> NDArray[np.float32]:
        """One vector for each window, float32 of shape (windows, width)."""
        made: list[NDArray[np.float32]] = []
        start = 0
        while start < len(windows):
            chosen = windows[start : start + self.batch]
            with halving(len(chosen), self._note, "windows were encoded") as room:
                made.append(self._batch_of(chosen, time_expansion))
                start += len(chosen)
            if room.halved is not None:
                self.batch = room.halved
        return np.concatenate(made) if made else np.empty((0, self.width), np.float32)

    @torch.inference_mode()
    def _batch_of(self, windows: Sequence[Window], time_expansion: float) -> NDArray[np.float32]:
        processor = self.model.processor
        assert processor is not None, "a loaded model has a processor"
        wav_BS = torch.stack([processor.prepare_audio(window.samples) for window in windows])
        encode = self.model.encode_patches if self.layer == "encoder" else self.model.encode_audio
        heard_BPE = encode(wav_BS).float()
        positions = heard_BPE.shape[1]
        share = time_expansion / self.model.config.window_seconds
        counts = [
            min(positions, max(1, math.ceil((one.end - one.start) * share * positions - 1e-6)))
            for one in windows
        ]
        counts_B = torch.tensor(counts, device=heard_BPE.device)
        is_sound_BP = torch.arange(positions, device=heard_BPE.device) < counts_B[:, None]
        summed_BE = (heard_BPE * is_sound_BP[:, :, None]).sum(dim=1)
        vectors: NDArray[np.float32] = (summed_BE / counts_B[:, None]).cpu().numpy()
        return vectors

    def _parts(self) -> list[tuple[str, nn.Module | Tensor]]:
        """What the vectors come from."""
        model = self.model
        if self.layer == "encoder":
            return [("beats", model.beats)]
        names = ("beats", "ln_audio", "audio_Qformer", "audio_query_tokens", "audio_llama_proj")
        return [(name, getattr(model, name)) for name in names if hasattr(model, name)]


def _fingerprint(model: Any, parts: Sequence[tuple[str, nn.Module | Tensor]], layer: str) -> str:
    """Names the exact weights and settings that decide the vectors.

    Adapters of the language model have no part in them, so an index outlives a fine-tuning of the
    language model.
    """
    config = model.config
    names = ["sample_rate", "window_seconds", "fbank_cfg"]
    if layer == "projected":
        names += ["max_pooling", "downsample_factor", "window_level_Qformer"]
        names += ["second_per_window", "second_stride", "patches_per_second"]
        names += ["window_delays"] if config.window_delays else []
    settings = {name: getattr(config, name) for name in names}
    digest = hashlib.blake2b(json.dumps([layer, settings], sort_keys=True).encode(), digest_size=8)
    for name, part in parts:
        state = part.state_dict() if isinstance(part, nn.Module) else {"": part}
        for key in sorted(state):
            tensor = state[key].detach()
            digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
