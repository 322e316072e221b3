"""CIDEr-D and SPICE of captions: how well they agree with reference captions.

Sources: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation" (2015), with the
clipped counts and the length penalty of its D variant; words are what spaces separate, capital
letters count, as in the benchmark. Anderson et al., "SPICE: Semantic Propositional Image Caption
Evaluation" (2016), by the Java program of its authors, which is no part of this project; where
Java or the program is not there, SPICE is left out and a sentence says why.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from NatureLM.errors import NatureLMError

Grams: TypeAlias = Counter[tuple[str, ...]]

LONGEST = 4
SIGMA = 6.0
SCALE = 10.0

JAR_VARIABLE = "NATURELM_SPICE_JAR"


def cider(candidates: Sequence[str], references: Sequence[str]) -> npt.NDArray[np.float64]:
    """The score of each caption from 0 to 10, (captions,); a word is worth the more, the rarer.

    The benchmark's CIDEr is the mean of these divided by 10.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions with {len(references)} references")
    true = [_grams(text) for text in references]
    spread = Counter(gram for grams in true for gram in grams)
    rarity = {gram: math.log(len(true)) - math.log(count) for gram, count in spread.items()}
    unseen = math.log(len(true)) if true else 0.0
    scores = [
        _agreement(_grams(text), grams, rarity, unseen)
        for text, grams in zip(candidates, true, strict=True)
    ]
    return np.array(scores, dtype=np.float64)


def _agreement(
    candidate: Grams, reference: Grams, rarity: dict[tuple[str, ...], float], unseen: float
) -> float:
    sums = [0.0] * LONGEST
    norms = [[0.0] * LONGEST, [0.0] * LONGEST]
    for grams, norm in zip((candidate, reference), norms, strict=True):
        for gram, count in grams.items():
            norm[len(gram) - 1] += (count * rarity.get(gram, unseen)) ** 2
    for gram, count in candidate.items():
        if other := reference.get(gram, 0):
            sums[len(gram) - 1] += min(count, other) * other * rarity[gram] ** 2
    difference = _pairs(candidate) - _pairs(reference)
    penalty = math.exp(-(difference**2) / (2 * SIGMA**2))
    cosines = [
        s / math.sqrt(a * b) if a > 0 and b > 0 else 0.0
        for s, a, b in zip(sums, norms[0], norms[1], strict=True)
    ]
    return SCALE * penalty * sum(cosines) / LONGEST


def _pairs(grams: Grams) -> int:
    """Number of word pairs, which stands for the length."""
    return sum(count for gram, count in grams.items() if len(gram) == 2)


def _grams(text: str) -> Grams:
    words = text.split()
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, LONGEST + 1)
        for start in range(len(words) - n + 1)
    )


@dataclass(frozen=True)
class Spice:
    """Calls the SPICE program; get one from `find_spice`. Raises NatureLMError where it fails."""

    java: str
    jar: Path

    def __call__(
        self, captions: Sequence[str], references: Sequence[str]
    ) -> npt.NDArray[np.float64]:
        """The SPICE (F1 of the propositions, 0 to 1) of each caption, (captions,)."""
        items = [
            {"image_id": number, "test": caption, "refs": [reference]}
            for number, (caption, reference) in enumerate(zip(captions, references, strict=True))
        ]
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder, "captions.json"), Path(folder, "scores.json")
            given.write_text(json.dumps(items), "utf-8")
            command = [self.java, "-Xmx8G", "-jar", str(self.jar), str(given)]
            command += ["-out", str(made), "-silent"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode or not made.is_file():
                said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
                raise NatureLMError(f"SPICE ({self.jar}) failed: {said[0]}")
            found = json.loads(made.read_text("utf-8"))
        scores = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in found}
        if missing := len(items) - len(scores):
            raise NatureLMError(f"SPICE ({self.jar}) left out {missing} of {len(items)} captions")
        values = (scores[number] for number in range(len(items)))
        return np.array([0.0 if math.isnan(value) else value for value in values])


def find_spice(jar: str | Path | None = None) -> Spice | str:
    """SPICE, or the sentence that says why it is left out.

    jar: the program; None takes the environment variable NATURELM_SPICE_JAR
    """
    java = shutil.which("java")
    if java is None:
        return "SPICE is left out because Java is not installed."
    path = jar or os.environ.get(JAR_VARIABLE)
    if not path:
        return (
            "SPICE is left out because its program is not named: set "
            f"{JAR_VARIABLE} to the path of spice-1.0.jar."
        )
    if not Path(path).is_file():
        return f"SPICE is left out because its program {path} is not there."
    return Spice(java, Path(path))
