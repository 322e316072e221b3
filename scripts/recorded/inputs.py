"""The files that the recorded commands read: the same bytes and times of change on every day."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

CHANGED = 1_735_689_600  # when all files were last changed: 2025-01-01T00:00:00Z
CLIPS = {  # file in assets/ → label, caption, split
    "cat.flac": ("Cat", "A cat meows", "test"),
    "cow.flac": ("Cow", "A cow moos", "valid"),
    "dog.WAV": ("Dog", "A dog barks", "test"),
    "rooster.flac": ("Rooster", "A rooster crows", "valid"),
    "common_cuckoo.flac": ("Common Cuckoo", "A cuckoo calls", "test"),
    "rain.flac": ("Rain", "Steady rain", "valid"),
    "chainsaw.flac": ("Chainsaw", "A chainsaw revs", "test"),
    "american_toad.flac": ("American Toad", "A toad trills", "valid"),
    "cuckoo_over_rain.ogg": ("Common Cuckoo", "A cuckoo in the rain", "test"),
}
TEXTS = {
    "species.csv": "common_name,scientific_name\nCow,Bos taurus\nCat,Felis catus\n",
    "wrong.yml": "generate: {num_beams: many}\nmodle: {}\nalpha: [much]\nrun: {epoch: 3}\n",
    "recipe.yml": "alpha: [0.1, 0.8]\nrules:\n  - {modules: [o], alpha: 1.3}\n"
    "  - {layers: [0, 0], modules: [q], alpha: 0.0}\nadapters: [{path: own, weight: 0.6}]\n",
    "ties.yml": "alpha: 0.7\nmethod: ties\ndensity: 0.4\n"
    "adapters: [{path: own, weight: 1.0}, {path: adapter, weight: 0.5}]\n",
    "dare.yml": "alpha: 0.7\nmethod: dare\ndensity: 0.6\nseed: 5\n"
    "adapters: [{path: own, weight: 1.0}, {path: adapter, weight: 0.5}]\n",
    "experiment.yml": """
generate: {num_beams: 1, max_new_tokens: 12}
extended:
  data: {path: clips.csv, where: {split: test}}
  support: examples.csv
  lora_scales: [0.0, 0.6]
  queries:
    - "What is the common name for the focal species in the audio?"
    - "{audio_examples}\\nOne of: {species_list}{randomize}"
  species: [{name: Cat, description: meows}, {name: Common Cuckoo}, {name: Dog}]
""",
    "train.yml": """
model:
  llama_path: nano/llama
  beats_cfg: {embed_dim: 16, encoder_layers: 2, encoder_embed_dim: 16, encoder_ffn_embed_dim: 32,
    encoder_attention_heads: 2, conv_pos: 8, conv_pos_groups: 4, num_buckets: 16, max_distance: 60,
    layer_wise_gradient_decay_ratio: 1.0}
  qformer_cfg: {hidden_size: 16, num_attention_heads: 2, intermediate_size: 32,
    max_position_embeddings: 16}
  lora_rank: 4
  freeze_beats: false
datasets:
  train: [{path: sounds/table.jsonl}]
  valid: [{path: sounds/table.jsonl}]
  test: [{path: sounds/table.jsonl}]
  audio_max_length_seconds: 1.0
run: {device: cpu, amp: false, batch_size_train: 4, max_steps: 12, num_workers: 0, log_freq: 4,
  save_every: 4, eval_every: 6, decode_ratio: 0.5, ema_decay: 0.9, save_adapter: true,
  best_by: accuracy, keep_checkpoints: 9,
  optims: {init_lr: 0.003, min_lr: 0.0, warmup_steps: 1},
  augmentations: {use_augmentation: true, synthetic_noise_prob: 0.5, gain_prob: 0.5, time_masks: 1}}
""",
}
SCIENTIFIC = {
    "Narwhal": "Monodon monoceros",
    "Walrus": "Odobenus rosmarus",
    "Harp Seal": "Pagophilus groenlandicus",
    "Killer Whale": "Orcinus orca",
    "False Killer Whale": "Pseudorca crassidens",
}


def make_inputs(folder: Path, source: Path, configs: Path) -> None:
    """Fill a folder; `source` is a tree with assets/ and the small checkpoint of the tests."""
    goldens = source / "tests" / "fixtures" / "goldens" / "nano"
    shutil.copytree(source / "assets", folder / "assets")
    shutil.copytree(configs, folder / "configs")
    for name in ("checkpoint", "llama"):
        shutil.copytree(goldens / name, folder / "nano" / name)
    (folder / "nano" / "audio").mkdir()
    for wav in sorted((goldens / "audio").glob("*.wav")):
        shutil.copy(wav, folder / "nano" / "audio")
    for name, text in TEXTS.items():
        (folder / name).write_text(text.lstrip())
    _clips(folder / "clips.csv")
    _benchmark(folder / "benchmark.jsonl")
    _odd(folder / "odd", folder / "assets")
    _training(folder)
    _answers(folder)
    _pickle(folder / "old.pth", goldens / "checkpoint" / "model.safetensors")
    for path in folder.rglob("*"):
        os.utime(path, (CHANGED, CHANGED))


def _tone(pitch: float, seconds: float, rate: int, level: float = 0.4) -> NDArray[np.float32]:
    times = np.arange(int(rate * seconds)) / rate
    return (level * np.sin(2 * np.pi * pitch * times)).astype(np.float32)


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _clips(path: Path) -> None:
    """Labelled recordings of assets/, and some others as examples."""
    lines = ["file,common_name,description,split"]
    lines += [f"assets/synthetic_{name},{','.join(facts)}" for name, facts in CLIPS.items()]
    path.write_text("\n".join(lines) + "\n")
    examples = zip(("chirps", "howl", "trill"), ("Cat", "Common Cuckoo", "Dog"), strict=True)
    lines = [
        "file,common_name",
        *(f"nano/audio/{name}_16k.wav,{label}" for name, label in examples),
    ]
    path.with_name("examples.csv").write_text("\n".join(lines) + "\n")


def _benchmark(path: Path) -> None:
    """Samples like those of BEANS-Zero, whose sound nobody has to hear."""
    labels = {
        "cbi": {"Short-eared Owl": 3, "Golden Eagle": 2},
        "watkins": {"Narwhal": 2, "Harp Seal": 2},
        "unseen-family-cmn": {"Spotted Elachura": 8, "Dall's Porpoise": 7, "Aardvark": 3},
        "zf-indiv": {"One": 2, "More": 2},
    }
    rows = [
        {"id": f"{dataset}-{label}-{number}", "dataset_name": dataset, "output": label,
         "task": "classification", "file_name": f"{label}_{number}.wav",
         "instruction_text": "<Audio><AudioHere></Audio> What is it?", "metadata": "{}"}
        for dataset, counts in labels.items()
        for label, count in counts.items()
        for number in range(count)
    ]  # fmt: skip
    _lines(path, rows)


def _odd(folder: Path, assets: Path) -> None:
    """Recordings of many kinds, and files that are none."""
    (folder / "below").mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * 44100).astype(np.float32)
    stereo = np.stack([_tone(700, 3, 44100), noise], axis=1)
    numbers = _tone(500, 1, 16000)
    numbers[100:200] = np.nan
    for name, wav, rate, kind in (
        ("stereo.wav", stereo, 44100, "PCM_16"),
        ("six_channels.wav", np.stack([_tone(200 * n, 1, 22050) for n in range(1, 7)], 1), 22050,
         "PCM_24"),
        ("eight_bit.wav", _tone(440, 2, 8000), 8000, "PCM_U8"),
        ("tone.wav", _tone(600, 11, 16000), 16000, "PCM_16"),
        ("short.wav", _tone(900, 0.00625, 16000), 16000, "PCM_16"),
        ("one_sample.wav", np.zeros(1, np.float32), 16000, "PCM_16"),
        ("no_sample.wav", np.zeros(0, np.float32), 16000, "PCM_16"),
        ("silence.wav", np.zeros(16000, np.float32), 16000, "PCM_16"),
        ("loud.wav", _tone(300, 1, 16000, level=8.0), 16000, "FLOAT"),
        ("no_number.wav", numbers, 16000, "FLOAT"),
        ("bat.wav", _tone(45_000, 0.5, 192_000), 192_000, "PCM_16"),
        ("below/owl 🦉.wav", _tone(350, 1, 16000), 16000, "PCM_16"),
    ):  # fmt: skip
        soundfile.write(folder / name, wav, rate, subtype=kind)
    flac = (assets / "synthetic_cow.flac").read_bytes()
    (folder / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("This is no sound.\n")
    (folder / "notes.txt").write_text("Nor is this.\n")
    (folder / "random.mp3").write_bytes(np.random.default_rng(1).bytes(3000))
    shutil.copy(assets / "synthetic_cuckoo_over_rain.ogg", folder / "below" / "upper.OGG")


def _training(folder: Path) -> None:
    """Three kinds of sounds with questions, and text without sound."""
    rng = np.random.default_rng(0)
    rows = []
    for label, pitch in {"Cuckoo": 600.0, "Rain": 0.0, "Wolf": 250.0}.items():
        (folder / "sounds" / label).mkdir(parents=True)
        for number in range(4):
            noise = rng.standard_normal(int(16000 * (0.3 + 0.2 * number))).astype(np.float32)
            tone = _tone(pitch + 5 * number, len(noise) / 16000, 16000)[: len(noise)]
            name = f"{label}/{number}.wav"
            wav = tone + 0.02 * noise if pitch else 0.3 * noise
            soundfile.write(folder / "sounds" / name, wav, 16000)
            questions = ["What is it?", "Name the sound."]
            rows.append({"path": name, "prompt": questions, "answer": label, "task": "name"})
            asked = {"prompt": "Is it rain?", "answer": str(label == "Rain"), "task": "yes-no"}
            rows.append({"path": name, **asked})
    _lines(folder / "sounds" / "table.jsonl", rows)
    _lines(folder / "text.jsonl", [{"prompt": f"Say {n}.", "answer": str(n)} for n in range(20)])


def _answers(folder: Path) -> None:
    """Answers of several data sets, tasks, questions and α, some of which cannot be scored."""
    rows = list(_answer_rows(random.Random(0)))
    _lines(folder / "answers.jsonl", rows)
    with (folder / "answers.jsonl").open("a") as file:
        file.write('{"id": "torn", "predic\n')
    captions = [
        {"id": f"c{n}", "dataset_name": "mine", "query": 0, "label": f"A {a} bird sings.",
         "prediction": f"The {b} bird sings."}
        for n, (a, b) in enumerate([("small", "small"), ("large", "small"), ("brown", "brown")])
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in captions)
    (folder / "captions.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "scientific.json").write_text(json.dumps(SCIENTIFIC))
    (folder / "labels.txt").write_text("\n".join([*SCIENTIFIC, "Minke Whale"]) + "\n")


def _answer_rows(chance: random.Random) -> Iterator[dict[str, Any]]:
    sets = {
        "watkins": list(SCIENTIFIC),
        "zf-indiv": ["One", "More"],
        "dcase": ["DOG", "CAT, DOG", "None", "CAT"],
    }
    for dataset, labels in sets.items():
        for number in range(24):
            label = labels[number % len(labels)]
            facts = {"label": label, "id": f"s{number:02}", "dataset_name": dataset}
            for query in range(2):
                for alpha in (1.0, 0.4, 0.0):
                    answer = label if chance.random() < 0.5 else chance.choice(labels)
                    said = answer
                    if dataset == "watkins" and query == 1:
                        said = SCIENTIFIC[answer]
                    said = chance.choice(_wordings(said))
                    group = {"query": query, "lora_scale": alpha, "place": f"p{number // 4}"}
                    yield {"prediction": said, **facts, **group}
    yield {"prediction": None, "label": "Walrus", "id": "none", "dataset_name": "watkins",
           "query": 0, "lora_scale": 1.0, "place": "p0"}  # fmt: skip
    yield {"prediction": "Walrus", "id": "no label", "dataset_name": "watkins", "query": 0,
           "lora_scale": 1.0, "place": "p0"}  # fmt: skip


def _wordings(label: str) -> list[str]:
    phrase = "The common name for the focal species in the audio is"
    return [label, label, label.lower(), f"{phrase} {label}", label[:-1], f"It is a {label}.", "3",
            f"{label}<|end_of_text|> and more", "Something quite else"]  # fmt: skip


def _pickle(path: Path, weights: Path) -> None:
    """A checkpoint as the reference's training wrote it."""
    import torch
    from safetensors.torch import load_file

    torch.save({"model": load_file(weights), "epoch": 3}, path)
