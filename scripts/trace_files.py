"""Counts the files of the package that three things enter on their way, by tracing function calls.

    python scripts/trace_files.py [--list]    # three counts, with the names of the files
    PYTHONPATH=other/checkout python scripts/trace_files.py --json

path to row        `naturelm infer`: from the path of a recording to the row in the output file
row to loss        `naturelm train`: from a row of the table to the loss of the batch that holds it
labels to scores   `NatureLM.score_labels` about audio that is encoded already: all that it enters

A file counts when a function in it is entered; importing it is not enough. To tell the way from
start-up, the two commands run twice, once with one recording or row more: a file is on the way if
functions in it are called more often then, or call such a function. What is entered only inside
the `forward` of a torch module (the network itself) is counted apart. All with the embedded model.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
from collections import Counter
from contextlib import redirect_stdout
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import NatureLM

FOLDER = Path(NatureLM.__file__).parent
CLIPS = sorted((FOLDER.parent / "assets").glob("*.flac"))
MODEL, QUESTION = "naturelm-tiny", "What makes the sound in the audio?"
LOADING = {"<module>", "from_pretrained", "load_config"}  # nothing is counted inside of these
TASKS = [("infer", 2), ("infer", 3), ("train", 2), ("train", 3), ("score", 4)]


class Tracer:
    """A context in which entered functions of the package are noted, in every thread.

    root: name of the function from whose call on it notes
    calls, callers: how often each function was called, and the files on the stack of its first call
    module_callers, inside: files that call torch modules, and those entered inside of modules
    """

    def __init__(self, root: str) -> None:
        self.root, self.started, self.ended = root, False, False
        self.calls: Counter[CodeType] = Counter()
        self.callers: dict[CodeType, set[str]] = {}
        self.module_callers: set[str] = set()
        self.inside: set[str] = set()
        self._thread = threading.local()

    def __enter__(self) -> Tracer:
        threading.setprofile(self._seen)
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _seen(self, frame: FrameType, event: str, argument: object) -> None:
        marks = self._thread.__dict__
        if event == "return":
            for mark in [mark for mark, since in marks.items() if since is frame]:
                del marks[mark]
        elif event == "call" and not self.ended and "paused" not in marks:
            self._enter(frame, marks)

    def _enter(self, frame: FrameType, marks: dict[str, FrameType]) -> None:
        code, name = frame.f_code, file_of(frame.f_code)
        self.started = self.started or (name is not None and code.co_name == self.root)
        if code.co_name in LOADING:
            marks["paused"] = frame
        elif not self.started:
            return
        elif code.co_name == "_wrapped_call_impl" and "module" not in marks:
            marks["module"] = frame
            self.module_callers |= self._stack(frame)
        elif code.co_name == "backward" and code.co_filename.endswith("_tensor.py"):
            self.ended = True  # a training has its loss
        elif name is not None and "module" in marks:
            self.inside.add(name)
        elif name is not None:
            self.calls[code] += 1
            self.callers[code] = self.callers.get(code) or self._stack(frame)

    def _stack(self, called: FrameType) -> set[str]:
        """The files of the package that lead to a call, from the root on."""
        found, at_root, frame = set(), False, called.f_back
        while frame is not None and not at_root:
            if name := file_of(frame.f_code):
                found.add(name)
                at_root = frame.f_code.co_name == self.root
            frame = frame.f_back
        return found


def file_of(code: CodeType) -> str | None:
    """The file of a function, relative to the package; None for one of another package."""
    before, _, name = code.co_filename.partition(f"{FOLDER}{os.sep}")
    return name if name and not before else None


def infer(folder: Path, count: int) -> Tracer:
    """Ask a question about so many recordings, each a batch of its own."""
    paths = [argument for clip in CLIPS[:count] for argument in ("--audio-path", str(clip))]
    rest = ["--query", QUESTION, "--batch-size", "1", "--quiet", "--device", "cpu"]
    return command("infer", *paths, *rest, "--output-path", str(folder / "rows.jsonl"))


def train(folder: Path, count: int) -> Tracer:
    """Train one step on a batch of so many rows."""
    table, config = folder / "table.jsonl", folder / "train.yml"
    rows = [{"path": str(clip), "prompt": QUESTION, "answer": clip.stem} for clip in CLIPS[:count]]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {"device": "cpu", "amp": False, "batch_size_train": count, "max_steps": 1}
    run |= {"num_workers": 0, "decode_ratio": 0.0, "output_dir": str(folder / "run")}
    sections = {"model": {"ckpt": MODEL}, "datasets": {"train": [{"path": str(table)}]}, "run": run}
    config.write_text(json.dumps(sections))
    return command("train", "--cfg-path", str(config))


def command(verb: str, *arguments: str) -> Tracer:
    """Run a command of `naturelm` in this process; raises RuntimeError if it fails."""
    (program,) = entry_points(group="console_scripts", name="naturelm")
    run, sys.argv = program.load(), ["naturelm", verb, *arguments]
    with Tracer(verb) as tracer:
        try:
            run()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"naturelm {verb} ended with {end.code}") from None
    return tracer


def score(folder: Path, count: int) -> Tracer:
    """Score a list of so many labels."""
    import torch

    from NatureLM.infer import Pipeline

    model: Any = Pipeline(MODEL, device="cpu").model
    prompt, labels = model.processor.render(QUESTION), [f"Frog {n}" for n in range(count)]
    with torch.inference_mode():
        audio_BQD = model.encode_audio(torch.zeros(1, model.config.window_samples))
    with Tracer("score_labels") as tracer:
        model.score_labels([prompt], [[audio_BQD[0]]], labels)
    return tracer


def trace(name: str, count: int) -> dict[str, Any]:
    """What a tracer noted, by place in the source; for a process of its own."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        tracer = {"infer": infer, "train": train, "score": score}[name](Path(folder), count)
    functions: dict[Any, Any] = {
        (code.co_filename, code.co_firstlineno): (number, {file_of(code), *tracer.callers[code]})
        for code, number in tracer.calls.items()
    }
    return {"functions": functions, "calling": tracer.module_callers, "inside": tracer.inside}


def on_the_way(more: dict[str, Any], fewer: dict[str, Any] | None = None) -> dict[str, list[str]]:
    """The files outside of torch modules, and those entered only inside of them."""
    found = set(more["calling"])
    for function, (number, files) in more["functions"].items():
        if fewer is None or number > fewer["functions"].get(function, (0,))[0]:
            found |= files
    return {"files": sorted(found), "network": sorted(more["inside"] - found)}


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description="Count the files on three ways.")
    parser.add_argument("--list", action="store_true", help="name the files")
    parser.add_argument("--json", action="store_true", help="the names of the files as JSON")
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        two, three, two_rows, three_rows, scored = pool.starmap(trace, TASKS, chunksize=1)
    ways = {
        "path to row": on_the_way(three, two),
        "row to loss": on_the_way(three_rows, two_rows),
        "labels to scores": on_the_way(scored),
    }
    if options.json:
        print(json.dumps(ways, indent=1))
    for way, found in ways.items() if not options.json else ():
        outside, inside = found["files"], [f"({name})" for name in found["network"]]
        print(f"{way:18}{len(outside):3} files, and {len(inside)} only inside the network")
        if options.list:
            print("", *outside, *inside, sep="\n    ")


if __name__ == "__main__":
    main()
