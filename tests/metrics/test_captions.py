from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from NatureLM.evaluation.captions import Spice, cider, find_spice
from NatureLM.evaluation.names import ScoringError

REFERENCES = ["a wolf howls at night", "rain falls on a quiet lake", "a loon wails over the lake"]


def test_equal_captions_get_ten_and_strangers_nothing() -> None:
    assert cider(REFERENCES, REFERENCES) == pytest.approx([10, 10, 10])
    assert cider(["engine noise"] * 3, REFERENCES) == pytest.approx([0, 0, 0])
    assert cider([""] * 3, REFERENCES) == pytest.approx([0, 0, 0])


def test_cider_by_hand() -> None:
    """Two captions of one word each: only the word counts, and the lengths are the same."""
    assert cider(["owl", "owl"], ["owl", "wolf"]) == pytest.approx([2.5, 0])


def test_rare_words_count_more_than_common_ones() -> None:
    common = cider(["a b c", "howls"], ["a wolf howls", "a x y"])[0]
    rare = cider(["p howls q", "howls"], ["a wolf howls", "a x y"])[0]
    assert rare > common


def test_repeating_a_word_gains_nothing_and_length_costs() -> None:
    once, often = (cider([text, *REFERENCES[1:]], REFERENCES)[0] for text in ("wolf", "wolf " * 5))
    assert often < once


def test_capital_letters_count() -> None:
    assert cider(["A WOLF HOWLS AT NIGHT", "", ""], REFERENCES)[0] == 0


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="1 captions with 2 references"):
        cider(["a"], ["a", "b"])


def program(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for Java is a script")
def test_spice_calls_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "import json, sys\n"
        "items = json.load(open(sys.argv[4]))\n"
        "scores = [{'image_id': i['image_id'], 'scores': {'All': {'f': float('nan') if "
        "not i['test'] else float(i['test'] in i['refs'])}}} for i in reversed(items)]\n"
        "json.dump(scores, open(sys.argv[sys.argv.index('-out') + 1], 'w'))\n"
    )
    program(tmp_path, "java", body)
    jar = tmp_path / "spice.jar"
    jar.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NATURELM_SPICE_JAR", str(jar))
    spice = find_spice()
    assert isinstance(spice, Spice)
    assert spice(["owl", "wolf", ""], ["owl", "loon", "loon"]).tolist() == [1.0, 0.0, 0.0]
    program(tmp_path, "java", "import sys; sys.exit('no memory')\n")
    with pytest.raises(ScoringError, match=r"spice\.jar.*no memory"):
        spice(["owl"], ["owl"])


def test_without_java_or_program_a_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_spice() == "SPICE is left out because Java is not installed."
    program(tmp_path, "java", "")
    monkeypatch.delenv("NATURELM_SPICE_JAR", raising=False)
    assert "NATURELM_SPICE_JAR" in str(find_spice())
    assert "gone.jar is not there" in str(find_spice(tmp_path / "gone.jar"))
