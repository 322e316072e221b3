"""Nothing is tied to 16 kHz, ten seconds or Llama: other families, rates and windows work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, PreTrainedConfig, Qwen2Config

from NatureLM.models import NatureLM

QWEN = Qwen2Config(
    vocab_size=606,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    eos_token_id=604,
)
NEOX = GPTNeoXConfig(
    vocab_size=606,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    eos_token_id=604,
)


@pytest.mark.parametrize(
    ("text_config", "targets"),
    [(QWEN, ["q_proj", "v_proj", "up_proj"]), (NEOX, ["query_key_value"])],
)
def test_another_language_model_at_another_rate(
    text_config: PreTrainedConfig, targets: list[str], build_model: Any, tmp_path: Path
) -> None:
    model = build_model(
        text_config=text_config.to_dict(),
        lora_target_modules=targets,
        sample_rate=32000,
        window_seconds=5.0,
        fbank_cfg={"num_mel_bins": 64, "high_frequency": 15000.0},
    )
    adapted = {
        n.split(".lora_A")[0].rsplit(".", 1)[1]
        for n, _ in model.named_parameters()
        if ".lora_A" in n
    }
    assert adapted == set(targets)
    wav = 0.1 * torch.randn(3 * 32000, generator=torch.Generator().manual_seed(0))
    prompt = model.processor.render("What is it?")

    def ask(asked: NatureLM, beams: int) -> list[str]:
        return asked.generate(
            [prompt] * 3, [[wav]] * 3, alpha=[0.0, 0.5, 1.0], max_new_tokens=5, num_beams=beams
        )

    # 498 frames of 5 s make 31 x 4 patches, 124 // 17 groups.
    assert model.encode_audio(model.processor.prepare_audio(wav)[None]).shape == (1, 7, 48)
    model.save_pretrained(tmp_path)
    loaded = NatureLM.from_pretrained(tmp_path)
    assert loaded.config.sample_rate == loaded.processor.sample_rate == 32000
    for beams in (1, 2):
        answers = ask(model, beams)
        assert ask(loaded, beams) == answers
        for alpha, answer in zip((0.0, 0.5, 1.0), answers, strict=True):
            alone = model.generate(
                [prompt], [[wav]], alpha=alpha, max_new_tokens=5, num_beams=beams
            )
            assert alone == [answer]


def test_the_pipeline_cuts_windows_for_the_model(build_model: Any) -> None:
    from NatureLM.inference.pipeline import Pipeline

    model = build_model(sample_rate=32000, window_seconds=5.0)
    wav = 0.1 * torch.randn(12 * 16000, generator=torch.Generator().manual_seed(0)).numpy()
    (answer,) = Pipeline(model)(
        [wav], "What is it?", window_length_seconds=5.0, hop_length_seconds=5.0, max_new_tokens=2
    )
    assert "#10.00s - 12.00s#: " in answer
