"""Log-mel filter bank as in Kaldi's `compute-fbank-feats`, batched, on the model's device.

Shapes: B recordings or windows, S samples, T frames, N samples of a transform, F mel bins.

The reference model uses Kaldi's defaults with 128 bins: frames of 25 ms every 10 ms, edges snipped,
DC removed per frame, pre-emphasis, povey window, power spectrum, natural log floored at float32's
epsilon. This module reproduces that from its definition; nothing is fetched or compiled.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from NatureLM.config.model import FbankConfig
from NatureLM.errors import AudioError

_PCM_SCALE = 2.0**15  # Kaldi works on 16-bit sample values
_BLOCK_FRAMES = 512  # on a CPU the work of so many frames stays in its cache
_LOG_FLOOR = torch.finfo(torch.float32).eps


def kaldi_fbank(wav_BS: Tensor, sample_rate: int, config: FbankConfig) -> Tensor:
    """Log-mel energies of waveforms in [-1, 1].

    Returns a tensor (B, T, F) of the dtype of `wav_BS` (float32 or float64), not normalised.
    Raises `AudioError` when the waveforms are shorter than one frame.
    """
    if wav_BS.ndim != 2:
        raise ValueError(f"waveforms must have shape (batch, samples), got {tuple(wav_BS.shape)}")
    length, shift, window_N, mel_bank = _tables(sample_rate, config, wav_BS.dtype, wav_BS.device)
    if wav_BS.shape[1] < length:
        raise AudioError(
            None,
            f"it has {wav_BS.shape[1]} samples, and one frame of {config.frame_length_ms:g} ms "
            f"needs {length}",
            kind="TooShortAudio",
        )
    log_mel = partial(
        _log_mel,
        length=length,
        preemphasis=config.preemphasis,
        window_N=window_N,
        mel_bank=mel_bank,
    )
    # Frames are as long as the transform, whose window is zero where they go too far.
    padded_BS = F.pad(wav_BS * _PCM_SCALE, (0, len(window_N) - length))
    frames_BTN = padded_BS.unfold(1, len(window_N), shift)
    if wav_BS.device.type != "cpu" or wav_BS.requires_grad:
        return log_mel(frames_BTN)
    out_BTF = wav_BS.new_empty(*frames_BTN.shape[:2], config.num_mel_bins)
    for frames_TN, out_TF in zip(frames_BTN, out_BTF, strict=True):
        for first in range(0, len(frames_TN), _BLOCK_FRAMES):
            block = slice(first, first + _BLOCK_FRAMES)
            out_TF[block] = log_mel(frames_TN[block])
    return out_BTF


def _log_mel(
    frames: Tensor, *, length: int, preemphasis: float, window_N: Tensor, mel_bank: Tensor
) -> Tensor:
    """Log-mel energies (..., T, F) of frames (..., T, N) of 16-bit sample values, of which
    `length` count."""
    frames = frames - frames[..., :length].mean(dim=-1, keepdim=True)
    predicted = frames * preemphasis
    frames[..., 1:].sub_(predicted[..., :-1])
    frames[..., :1].sub_(predicted[..., :1])  # the first sample is its own predecessor
    spectrum = torch.fft.rfft(frames.mul_(window_N), dim=-1)
    # not `abs().square()`, whose root takes half the time of all this
    power = spectrum.real.square().addcmul(spectrum.imag, spectrum.imag)
    energies: Tensor = power @ mel_bank
    return energies.clamp_min(_LOG_FLOOR).log()


def normalised_fbank(wav_BS: Tensor, sample_rate: int, config: FbankConfig) -> Tensor:
    """The encoder's input (B, T, F): `(fbank - mean) / (2 std)`, as BEATs was trained."""
    fbank_BTF = kaldi_fbank(wav_BS, sample_rate, config)
    if fbank_BTF.requires_grad:
        return (fbank_BTF - config.mean) / (2 * config.std)
    return fbank_BTF.sub_(config.mean).div_(2 * config.std)  # it is ours: no copy needed


@lru_cache(maxsize=16)
def _tables(
    sample_rate: int, config: FbankConfig, dtype: torch.dtype, device: torch.device
) -> tuple[int, int, Tensor, Tensor]:
    """Samples of a frame, and from one to the next; Povey window with zeros behind it (N,), and mel
    bank (bins of the spectrum, F).

    They are made in float32 whatever `dtype` is: the model was trained with float32 tables, and
    near the floor of the logarithm a more exact window already shows in the fourth decimal.
    """
    length, shift = config.frame_samples(sample_rate)
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        n_fft = 2 ** math.ceil(math.log2(length))
        povey = F.pad(torch.hann_window(length, periodic=False).pow(0.85), (0, n_fft - length))
        bank = _mel_bank(sample_rate, config, n_fft)
        return length, shift, povey.to(device, dtype), bank.to(device, dtype)


def _mel_bank(sample_rate: int, config: FbankConfig, n_fft: int) -> Tensor:
    """Triangles that are linear in mel, (n_fft / 2 + 1, F); Kaldi leaves the Nyquist bin out."""
    low_mel = _mel(config.low_frequency)
    step = (_mel(config.high_frequency or sample_rate / 2) - low_mel) / (config.num_mel_bins + 1)
    numbers = torch.arange(config.num_mel_bins)
    left, centre, right = (low_mel + (numbers + side) * step for side in (0.0, 1.0, 2.0))
    hertz = torch.arange(n_fft // 2) * (sample_rate / n_fft)
    mel_bins = (1127.0 * (1.0 + hertz / 700.0).log()).unsqueeze(1)
    rising = (mel_bins - left) / (centre - left)
    falling = (right - mel_bins) / (right - centre)
    triangles = torch.minimum(rising, falling).clamp_min(0)
    return torch.cat([triangles, triangles.new_zeros(1, config.num_mel_bins)])


def _mel(hertz: float) -> float:
    return 1127.0 * math.log(1.0 + hertz / 700.0)
