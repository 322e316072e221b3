"""One labelled sample of a benchmark or of a table of one's own."""

from __future__ import annotations

from dataclasses import dataclass

from NatureLM.beans.samples.clip import Clip
from NatureLM.errors import UsageError


class DataError(UsageError):
    """Data cannot be read, are not there, or a row of them cannot be used."""


@dataclass(frozen=True)
class Sample:
    """What is asked about, and the right answer; its sound is read through `clip`.

    id: unique within its dataset
    label: the right answer (`output` in BEANS-Zero's schema)
    instruction: the dataset's own prompt, empty if it has none
    task: classification, detection or captioning, empty if it is not said
    cluster: samples of one recording or family share it; intervals and examples go by it
    """

    id: str
    dataset_name: str
    label: str
    clip: Clip
    cluster: str
    instruction: str = ""
    task: str = ""
