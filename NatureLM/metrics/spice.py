"""SPICE of captions, by the program of its authors.

Source: Anderson et al., "SPICE: Semantic Propositional Image Caption Evaluation" (2016). It parses
sentences with a Java program that is no part of this project; where Java or the program is not
there, SPICE is left out and it is said why.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from NatureLM.errors import NatureLMError

JAR_VARIABLE = "NATURELM_SPICE_JAR"


class SpiceError(NatureLMError):
    """The SPICE program failed."""


@dataclass(frozen=True)
class Spice:
    """Calls the SPICE program; get one from `find_spice`."""

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
                raise SpiceError(f"SPICE ({self.jar}) failed: {said[0]}")
            found = json.loads(made.read_text("utf-8"))
        scores = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in found}
        if missing := len(items) - len(scores):
            raise SpiceError(f"SPICE ({self.jar}) left out {missing} of {len(items)} captions")
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
