"""How text is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from NatureLM.errors import UsageError


@dataclass(frozen=True)
class GenerationOptions:
    """Decoding options; the defaults are the published ones (`configs/inference.yml`).

    `min_length` counts the prompt's positions too, as in the reference, where the published value 1
    therefore never forces a token. `temperature`, `top_p` and `top_k` act only when sampling;
    `seed` and a row's number give each row its own random stream.
    """

    max_new_tokens: int = 300
    num_beams: int = 2
    do_sample: bool = False
    min_length: int = 1
    temperature: float = 0.1
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self._check("max_new_tokens", self.max_new_tokens >= 1, "at least 1")
        self._check("num_beams", self.num_beams >= 1, "at least 1")
        self._check("min_length", self.min_length >= 0, "0 or more")
        self._check("temperature", self.temperature > 0, "above 0")
        self._check("repetition_penalty", self.repetition_penalty > 0, "above 0")
        self._check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._check("top_k", self.top_k >= 0, "0 (off) or more")
        if self.do_sample and self.num_beams > 1:
            raise UsageError(
                f"num_beams is {self.num_beams} and do_sample is true: sampling works with one "
                "beam; set num_beams to 1 or do_sample to false"
            )

    def _check(self, name: str, good: bool, allowed: str) -> None:
        if not good:
            raise UsageError(f"{name} must be {allowed}, got {getattr(self, name)}")
