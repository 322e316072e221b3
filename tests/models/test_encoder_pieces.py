"""On a processor the encoder takes a few windows at a time; what comes out is the same."""

from __future__ import annotations

import pytest
import torch

from NatureLM.models import beats
from tests.builders import BuildModel


@pytest.mark.parametrize("masked", [False, True])
def test_pieces_are_the_whole(
    masked: bool, build_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model().double()
    sound = torch.Generator().manual_seed(0)
    wav = torch.randn(5, model.config.window_samples, generator=sound, dtype=torch.float64) * 0.1
    mask = None
    if masked:
        mask = torch.arange(wav.shape[1]) >= torch.tensor([[9], [7], [5], [3], [8]]) * 16000
    sizes: list[int] = []
    model.beats.encoder.layers[0].register_forward_hook(lambda _, x, out: sizes.append(len(out)))
    with torch.no_grad():
        whole = model.encode_audio(wav, mask)
        assert sizes == [5]
        monkeypatch.setattr(beats, "_QUICK_NUMBERS", 1)
        single = model.encode_audio(wav, mask)
    assert sizes == [5, 1, 1, 1, 1, 1]
    torch.testing.assert_close(single, whole, rtol=1e-9, atol=1e-12)
    model.encode_audio(wav, mask)
    assert sizes[-1] == 5, "where something is learnt, a batch stays whole"
