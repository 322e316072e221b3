"""`naturelm cache`, and the commands that keep embeddings on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from NatureLM.cli.main import naturelm_app


def naturelm(*args: str) -> Any:
    return CliRunner().invoke(naturelm_app, list(args))


def test_without_a_folder_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATURELM_CACHE", raising=False)
    result = naturelm("cache")
    assert result.exit_code == 0
    assert "NATURELM_CACHE is not set" in result.stdout


def test_an_unknown_action_is_refused(tmp_path: Path) -> None:
    result = naturelm("cache", "empty", "--cache-dir", str(tmp_path))
    assert result.exit_code == 2
    assert "it must be info or clear" in result.stderr


@pytest.mark.parametrize("is_option", [False, True])
def test_sound_is_encoded_once_for_several_commands(
    tmp_path: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch, is_option: bool
) -> None:
    from NatureLM.models import NatureLM

    encoded: list[int] = []
    encode = NatureLM.encode_audio

    def counting(model: NatureLM, wav_BS: Any, *args: Any) -> Any:
        encoded.append(len(wav_BS))
        return encode(model, wav_BS, *args)

    monkeypatch.setattr(NatureLM, "encode_audio", counting)
    cache_dir = ("--cache-dir", str(tmp_path / "cache")) if is_option else ()
    if is_option:
        monkeypatch.delenv("NATURELM_CACHE", raising=False)
    else:
        monkeypatch.setenv("NATURELM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def infer(alpha: str, name: str) -> str:
        result = naturelm(
            *("infer", "--model", str(nano_folder / "checkpoint"), "--device", "cpu"),
            *("--audio-path", str(nano_folder / "audio"), "-q", "What is it?"),
            *("--options", "generate.max_new_tokens=3", "--merging-alpha", alpha),
            *("--output-path", name, "--max-memory", "1GB", *cache_dir),
        )
        assert result.exit_code == 0, result.stderr
        return (tmp_path / name).read_text(encoding="utf-8")

    first = infer("1.0", "a.jsonl")
    windows = sum(encoded)
    assert windows > 0
    infer("0.5", "b.jsonl")
    assert infer("1.0", "c.jsonl") == first
    assert sum(encoded) == windows, "a window was encoded again"
    assert f"{windows} clips" in naturelm("cache", "info", *cache_dir).stdout
    assert f"Cleared {tmp_path / 'cache'}" in naturelm("cache", "clear", *cache_dir).stdout
    assert "0 clips, 0 bytes" in naturelm("cache", *cache_dir).stdout
