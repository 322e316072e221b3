"""A model exported for vLLM: what the folder holds, and who reads it with which answers."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import BuildModel
from commands import naturelm
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from NatureLM.errors import UsageError
from NatureLM.generation.engine import GenerationOptions
from NatureLM.merging.lora import linear_shapes, lora_deltas
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.peft_io import open_adapter
from NatureLM.prompts import AUDIO_TAG, ChatTemplate, prompt_parts
from NatureLM.vllm.export import Exported, export_for_vllm, jinja_template

QUESTION = "What is the common name for the focal species in the audio?"


@pytest.fixture(scope="module", autouse=True)
def _modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies the code of a folder into its own; not into that of this user."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("modules")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
        patch.setattr(sys, "path", [*sys.path])
        yield
    for name in [one for one in sys.modules if one.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def folder(nano_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano checkpoint with adapters of two α."""
    out = tmp_path_factory.mktemp("exported") / "nano"
    export_for_vllm(nano_folder / "checkpoint", out, alphas=[0.4, 1.0])
    return out


def asked(nano: NatureLM, waveforms: dict[str, Tensor]) -> tuple[list[str], list[list[Tensor]]]:
    """Prompts with one clip and with two."""
    template, (one, two, _) = nano.config.prompt_template, waveforms.values()
    return (
        [
            template.replace("{}", f"{AUDIO_TAG} {QUESTION}"),
            template.replace("{}", f"{AUDIO_TAG} {AUDIO_TAG} Are these the same?"),
        ],
        [[one], [one, two]],
    )


def conversation(clips: list[Tensor], question: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "audio", "audio": one.numpy()} for one in clips]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def test_what_the_folder_holds(folder: Path, nano: NatureLM) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["NatureLMForConditionalGeneration"]
    assert config["model_type"] == "naturelm"
    assert config["lora"] is False
    assert config["llama_path"] is None
    assert config["audio_token_id"] == len(nano.tokenizer)
    for reference in config["auto_map"].values():
        module, _, name = reference.partition(".")
        assert f"class {name}(" in (folder / f"{module}.py").read_text()
    names = load_file(folder / "model.safetensors")
    assert not any(".lora_" in name or "base_layer" in name for name in names)
    assert "llama_model.model.embed_tokens.weight" in names
    settings = json.loads((folder / "adapters/alpha-0.4/adapter_config.json").read_text())
    assert settings["lora_alpha"] == pytest.approx(0.4 * nano.config.lora_alpha, rel=1e-12)
    assert settings["r"] == nano.config.lora_rank
    assert all(name.startswith("llama_model.model.") for name in settings["target_modules"])
    card = (folder / "README.md").read_text()
    assert "--lora-modules alpha-0.4=./adapters/alpha-0.4 alpha-1=./adapters/alpha-1" in card
    assert str(folder) not in card


def test_the_command_may_be_given_as_it_stands() -> None:
    name = "owls $(touch x) & more"
    command = Exported(Path("/models", name), {0.4: "alpha-0.4"}, 32).command()
    words = shlex.split(command)
    assert words[2] == f"/models/{name}"
    assert words[words.index("--served-model-name") + 1] == name
    assert f"alpha-0.4=/models/{name}/adapters/alpha-0.4" in words
    assert json.loads(words[-1]) == {"audio": 8}


def test_its_code_needs_nothing_of_this_package(folder: Path) -> None:
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            elif isinstance(node, ast.ImportFrom):
                assert (folder / f"{node.module}.py").is_file()
            assert not [name for name in names if name.startswith("NatureLM")], path


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_this_package_reads_it_with_the_same_answers(
    folder: Path, nano: NatureLM, nano_waveforms: dict[str, Tensor], alpha: float
) -> None:
    prompts, clips = asked(nano, nano_waveforms)
    options = {"num_beams": 1, "max_new_tokens": 8}
    expected = nano.generate(prompts, clips, alpha=alpha, **options)
    if alpha:
        name = f"alpha-{alpha:g}"
        model = NatureLM.from_pretrained(folder, adapter=folder / "adapters" / name)
    else:
        model = NatureLM.from_pretrained(folder)
    assert model.generate(prompts, clips, **options) == expected


def test_transformers_gives_our_answers(
    folder: Path, nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    """Texts, positions and first log-probabilities, of one clip and of two, at each α."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules.")
    prompts, clips = asked(nano, nano_waveforms)
    options = GenerationOptions(num_beams=1, max_new_tokens=8, logprobs=3)
    conversations = [
        conversation(clips[0], QUESTION),
        conversation(clips[1], "Are these the same?"),
    ]
    inputs = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_tensors="pt"
    )
    features = model.get_audio_features(inputs["input_values"])
    torch.testing.assert_close(features, nano.encode_audio(inputs["input_values"]))
    for alpha, adapter in ((0.0, None), (0.4, "alpha-0.4")):
        if adapter is not None:
            model.load_adapter(str(folder / "adapters" / adapter))
        answers = nano.answer_prompts(prompts, clips, alpha=alpha, options=options)
        made = model.generate(
            **inputs, max_new_tokens=8, return_dict_in_generate=True, output_logits=True
        )
        length = inputs["input_ids"].shape[1]
        for row, answer in enumerate(answers):
            text = processor.decode(made.sequences[row, length:], skip_special_tokens=True)
            assert text == answer.text
            found = made.logits[0][row].log_softmax(-1)
            for token, value in answer.log_probabilities[0].likeliest:
                assert found[token].item() == pytest.approx(value, abs=1e-4)


def test_positions_are_those_of_the_engine(folder: Path, nano: NatureLM) -> None:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    prompt = nano.config.prompt_template.replace("{}", f"Is {AUDIO_TAG} a {AUDIO_TAG}, or what?")
    clip = torch.zeros(16000)
    ids = processor(text=prompt, audio=[clip, clip])["input_ids"][0]
    first, *rest = prompt_parts(prompt, nano.tokenizer)
    expected = list(first)
    for part in rest:
        expected += [processor.audio_token_id] * nano.config.audio_positions() + part
    assert ids == expected
    with pytest.raises(ValueError, match="have 2 <AudioHere>, and there are 1 clips"):
        processor(text=prompt, audio=[clip])


TEMPLATES = {
    "llama": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "chatml": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "roles": "<|user|>{}<|end|><|assistant|>",
    "plain": "Question: {}\nAnswer: ",
    "words of the template itself": "PLACE TAG: {}\nANSWER or NEWLINE: ",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", ["", "You know {{ birds }}."])
def test_the_chat_template_writes_our_prompts(name: str, system: str, nano_folder: Path) -> None:
    template = TEMPLATES[name]
    tokenizer = AutoTokenizer.from_pretrained(nano_folder / "llama")
    tokenizer.chat_template = jinja_template(template)
    turns = [(f"{AUDIO_TAG} What 'is' this?", "A wren."), ('And "then"?\n', "Two."), ("Why?", "")]
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    first = [{"type": "audio"}, {"type": "text", "text": " What 'is' this? "}]
    messages.append({"role": "user", "content": first})
    for (_, answer), (question, _) in pairwise(turns):
        messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": question})
    stripped = [(question.strip(), answer) for question, answer in turns]
    expected = ChatTemplate.of(template).text(stripped, system=system)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == (tokenizer.bos_token or "") + expected


def test_texts_may_name_the_places_of_clips(nano_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nano_folder / "llama")
    tokenizer.chat_template = jinja_template("{}")
    clip = {"type": "audio"}

    def rendered(*parts: dict[str, str]) -> str:
        message = {"role": "user", "content": list(parts)}
        text: str = tokenizer.apply_chat_template([message], tokenize=False)
        return text.removeprefix(tokenizer.bos_token)

    named = {"type": "text", "text": f"Audio: {AUDIO_TAG}\nLabel: crow\nAudio: {AUDIO_TAG}\n"}
    assert rendered(named, clip, clip) == named["text"].strip()
    assert rendered({"type": "text", "text": "first"}, clip) == f"first {AUDIO_TAG}"
    with pytest.raises(Exception, match="the text has 2 places for clips, and there are 1 clips"):
        rendered(named, clip)
    with pytest.raises(Exception, match="stands for sound, and the message brings none"):
        tokenizer.apply_chat_template([{"role": "user", "content": AUDIO_TAG}], tokenize=False)
    with pytest.raises(Exception, match="a part of type image"):
        rendered({"type": "image"})


def test_ranks_and_scales_become_one(build_model: BuildModel, tmp_path: Path) -> None:
    """vLLM knows one rank and one scale for an adapter."""
    last = "layers.1.self_attn.q_proj"
    model = build_model(lora_rank_pattern={last: 2}, lora_alpha_pattern={last: 5}, use_rslora=True)
    model.save_pretrained(tmp_path / "model")
    export_for_vllm(tmp_path / "model", tmp_path / "out", alphas=[0.5])
    found = open_adapter(tmp_path / "out/adapters/alpha-0.5", linear_shapes(model.language_model))
    expected = lora_deltas(model.language_model, "default")
    assert found.deltas.keys() == expected.keys()
    assert len({(one.rank, one.scale) for one in found.deltas.values()}) == 1
    for target, update in found.deltas.items():
        torch.testing.assert_close(update.dense(), 0.5 * expected[target].dense())


def test_a_folded_alpha(
    nano: NatureLM, nano_folder: Path, nano_waveforms: Any, own_folder: Path
) -> None:
    named = ["--model", nano_folder / "checkpoint", "--alpha", "0.4", "--fold"]
    done = naturelm("export", "--to", "vllm", "out", *named)
    assert done.exit_code == 0, done.stderr
    assert "--lora-modules" not in done.stdout
    prompts, clips = asked(nano, nano_waveforms)
    options = {"num_beams": 1, "max_new_tokens": 8}
    expected = nano.generate(prompts, clips, alpha=0.4, **options)
    assert NatureLM.from_pretrained("out").generate(prompts, clips, **options) == expected
    assert not (own_folder / "out/adapters").exists()
    with pytest.raises(UsageError, match="has no adapter"):
        export_for_vllm("out", "again", alphas=[0.4])
    assert not export_for_vllm("out", "again").adapters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "vllm", "--alpha", "0.4,x"], "must be numbers with commas between them"),
        (["--to", "vllm", "--alpha", "0.4,0.4"], "takes different numbers"),
        (["--to", "vllm", "--alpha", "0.4,0.40000001"], "takes different numbers"),
        (["--to", "vllm", "--alpha", "0.4,1", "--fold"], "--fold writes one α"),
        (["--to", "vllm", "--format", "raven"], "leave them out"),
        (["--to", "ollama"], "vllm"),
        (["--alpha", "0.4"], "--alpha is for models"),
        (["--to", "vllm", "--max-shard-size", "big"], "such as 500MB"),
    ],
)
def test_what_cannot_be_asked_for(options: list[str], message: str, own_folder: Path) -> None:
    done = naturelm("export", "out", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not list(own_folder.iterdir())


@pytest.mark.slow
def test_transformers_alone_loads_it(folder: Path, tmp_path: Path) -> None:
    """In a process that cannot import this package."""
    script = f"""
import sys
sys.modules["NatureLM"] = None
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
config = AutoConfig.from_pretrained({str(folder)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
import numpy as np
talk = [{{"role": "user", "content": [{{"type": "audio", "audio": np.zeros(9000, np.float32)}}]}}]
inputs = processor.apply_chat_template(talk, tokenize=True, return_dict=True, return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=3)
assert out.shape[1] == inputs["input_ids"].shape[1] + 3
print(type(config).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "NatureLMConfig" in done.stdout
