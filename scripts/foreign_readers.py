"""Tables for OpenSoundscape, opened by OpenSoundscape: `make foreign-readers`.

It needs more than the project has (torchvision, librosa, lightning), so it has an environment of
its own. `write FOLDER` makes the tables, with the project; `read FOLDER` opens them, with
OpenSoundscape. The readers of the other formats (crowsetta, frictionless, pandas) are in the tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CLASSES = ["Barn Owl", "Eurasian Wren", "学"]
WINDOWS = {  # file, start, end: what is heard and how sure that is
    ("/card/1/a.wav", 0.0, 3.0): {"Barn Owl": 0.75},
    ("/card/1/a.wav", 3.0, 6.0): {},
    ("/card/2/a.wav", 0.0, 3.0): {"Eurasian Wren": 0.5, "学": 0.25},
    ("/card/2/a.wav", 3.0, 4.5): {"Eurasian Wren": 1.0},
}


def write(folder: Path) -> None:
    """The windows as answers with and without confidences, exported."""
    from NatureLM.cli.answers import write_tables
    from NatureLM.results.rows import RunSettings, WindowRow, to_line, write_record

    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("scores", "labels"):
        path = folder / f"{kind}.jsonl"
        with open(path, "wb") as file:
            for (name, start, end), found in WINDOWS.items():
                for query in CLASSES:
                    text = query if query in found else "None"
                    sure = found.get(query) if kind == "scores" else None
                    row = WindowRow(
                        *(name, start, end, query, text, 1.0, sure), model="made", run="made"
                    )
                    file.write(to_line(row))
        write_record(path, RunSettings({"model": "made"}))
        write_tables(path, ["opensoundscape", "crowsetta"])


def read(folder: Path) -> dict[str, int]:
    """What OpenSoundscape makes of the tables; how many things were compared."""
    import pandas
    from opensoundscape.annotations import BoxedAnnotations, CategoricalLabels

    compared = 0
    for kind in ("scores", "labels"):
        frame = pandas.read_csv(folder / f"{kind}.opensoundscape.csv", index_col=[0, 1, 2])
        assert list(frame.columns) == CLASSES, list(frame.columns)
        assert list(frame.index) == list(WINDOWS), list(frame.index)
        labels = CategoricalLabels.from_multihot_df(frame > 0)
        assert labels.class_labels == [sorted(found) for found in WINDOWS.values()]
        for (_, row), found in zip(frame.iterrows(), WINDOWS.values(), strict=True):
            for name in CLASSES:
                expected = found.get(name, 0.0) if kind == "scores" else float(name in found)
                assert row[name] == expected, (kind, row)
                compared += 1
    import crowsetta

    path = folder / "labels.crowsetta.csv"
    annotations = crowsetta.Transcriber("generic-seq").from_file(path).to_annot()
    boxes = BoxedAnnotations.from_crowsetta(annotations)
    told = {
        (str(row.audio_file), row.start_time, row.end_time, row.annotation)
        for row in boxes.df.itertuples()
    }
    assert told == {(*place, name) for place, found in WINDOWS.items() for name in found}, told
    return {"cells": compared, "boxes": len(told)}


def main(words: list[str]) -> None:
    """`write FOLDER` or `read FOLDER`."""
    verb, folder = words[0], Path(words[1])
    if verb == "write":
        write(folder)
        return
    import opensoundscape

    print(f"OpenSoundscape {opensoundscape.__version__}: {json.dumps(read(folder))}")


if __name__ == "__main__":
    main(sys.argv[1:])
