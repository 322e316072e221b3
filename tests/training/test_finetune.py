"""The page on fine-tuning, in small: two species that nobody knew are told apart afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from markdown_pages import ROOT, Block, blocks, commands

from NatureLM.config import load_config
from NatureLM.inference.pipeline import Pipeline
from NatureLM.models import NatureLM
from NatureLM.training.train import train

pytest.importorskip("accelerate")
PAGE = ROOT / "docs" / "how-to" / "fine-tune.md"
QUESTION = "What is the common name for the focal species in the audio?"


def block_with(text: str, language: str) -> Block:
    (found,) = [b for b in blocks(PAGE) if text in b.text and b.language == language and b.runs]
    return found


@pytest.mark.slow
def test_two_new_species_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    exec(compile(block_with("my-clips.csv", "python").text, str(PAGE), "exec"), {})
    (words,) = commands(block_with("run.max_steps", "bash"))
    options = [words[i + 1] for i, word in enumerate(words) if word == "--options"]
    result = train(load_config("configs/finetune.yml", options))
    assert result.scores["accuracy"] >= 5 / 6

    clips = sorted(Path("my-clips").glob("*_[789].flac"))
    assert len(clips) == 6
    before = Pipeline("naturelm-tiny")(clips, QUESTION)
    assert not any(map(is_right, before, clips))
    after = Pipeline(NatureLM.from_pretrained(result.folder / "final"))(clips, QUESTION)
    assert sum(map(is_right, after, clips)) >= 5
    tuned = NatureLM.from_pretrained("naturelm-tiny", adapter=result.folder / "adapter")
    assert Pipeline(tuned)(clips, QUESTION) == after


def is_right(answer: str, clip: Path) -> bool:
    return " ".join(clip.stem.split("_")[:2]) in answer.lower()
