"""Windows that are heard at several delays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from NatureLM.errors import ConfigError
from NatureLM.models import NatureLM
from tests.builders import BuildModel

DELAYS = [0.0, 0.08, 0.4]
UNEVEN = [0.0, 0.0813, 0.4]  # no whole hop


@pytest.fixture(scope="module", params=(DELAYS, UNEVEN), ids=("whole hops", "uneven"))
def delayed(request: pytest.FixtureRequest, build_model: BuildModel) -> NatureLM:
    return build_model(window_delays=request.param)


@pytest.fixture(scope="module")
def wav(delayed: NatureLM) -> torch.Tensor:
    noise = torch.randn(
        2, delayed.config.window_samples, generator=torch.Generator().manual_seed(0)
    )
    return noise * 0.1


@torch.no_grad()
def test_the_mean_of_what_each_delay_gives(
    delayed: NatureLM, wav: torch.Tensor, build_model: BuildModel
) -> None:
    plain = build_model()
    each = []
    for delay in delayed.config.window_delays or ():
        samples = round(delay * plain.config.sample_rate)
        later = torch.cat([wav.new_zeros(2, samples), wav[:, : wav.shape[1] - samples]], dim=1)
        each.append(plain.encode_audio(later))
    assert not torch.allclose(each[0], each[1], atol=1e-4), "a delay is heard"
    torch.testing.assert_close(delayed.encode_audio(wav), torch.stack(each).mean(dim=0))


@torch.no_grad()
def test_what_is_padded_moves_along(delayed: NatureLM, wav: torch.Tensor) -> None:
    mask = torch.zeros(wav.shape, dtype=torch.bool)
    mask[:, wav.shape[1] // 2 :] = True
    whole = F.pad(wav, (0, 0))
    whole[mask] = 0.0
    assert delayed.encode_audio(whole, mask).shape == delayed.encode_audio(whole).shape


def test_training_hears_the_first(delayed: NatureLM, wav: torch.Tensor) -> None:
    heard: list[int] = []
    handle = delayed.beats.register_forward_hook(lambda *_: heard.append(1))
    try:
        delayed.encode_audio(wav)
        assert len(heard) == len(DELAYS)
        delayed.train()
        delayed.encode_audio(wav)
    finally:
        delayed.eval()
        handle.remove()
    assert len(heard) == len(DELAYS) + 1


def test_delays_must_lie_in_the_window(build_model: BuildModel) -> None:
    with pytest.raises(ConfigError, match="window_delays must be seconds from 0 to less than"):
        build_model(window_delays=[0.1, 10.0])
    with pytest.raises(ConfigError, match="window_delays"):
        build_model(window_delays=[-0.1])


def test_delays_are_saved(delayed: NatureLM, tmp_path: Path) -> None:
    delayed.save_pretrained(tmp_path)
    assert NatureLM.from_pretrained(tmp_path).config.window_delays == delayed.config.window_delays


def test_other_delays_are_another_state_of_the_model(build_model: BuildModel) -> None:
    """What was kept of sound under the delays of before is not taken for it."""
    from NatureLM.generation.audio_cache import audio_fingerprint, audio_state

    model = build_model()
    before = audio_state(model), audio_fingerprint(model)
    assert (audio_state(model), audio_fingerprint(model)) == before
    model.config.window_delays = [0.0, 0.1]
    assert audio_state(model) != before[0]
    assert audio_fingerprint(model) != before[1]
