"""Folders of clips as `naturelm segments` leaves them, made in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from NatureLM.review.folder import Segment, write_segments

SPECIES = (
    ("Common Cuckoo", "Cuculus canorus"),
    ("Eurasian Wren", "Troglodytes troglodytes"),
)


def make_clips(folder: Path, count: int = 4, *, rate: int = 16_000) -> list[Segment]:
    """So many short tones, each higher than the one before, of two species in turn."""
    made = []
    for number in range(count):
        common, scientific = SPECIES[number % 2]
        sure = 0.9 - 0.1 * number
        clip = f"{common.replace(' ', '_')}/{sure:.3f}_dawn_{10 * number}s_{10 * number + 1}s.wav"
        (folder / clip).parent.mkdir(parents=True, exist_ok=True)
        wave = 0.3 * np.sin(2 * np.pi * 500 * (number + 1) * np.arange(round(1.2 * rate)) / rate)
        soundfile.write(folder / clip, wave, rate)
        made.append(
            Segment(
                clip=clip,
                recording=f"/card/{number}/dawn.wav",
                start=10.0 * number + 0.1,
                end=10.0 * number + 1.1,
                clip_start=10.0 * number,
                clip_end=10.0 * number + 1.2,
                label=common,
                common_name=common,
                scientific_name=scientific,
                confidence=sure,
                site="Ridge 3",
                local_time="2024-05-10T05:30:12+02:00",
            )
        )
    write_segments(folder, made)
    return made
