"""`beans score` and `compare` from files to files: each line is scored, or counted as an error."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_files import row, write_answers
from commands import beans, call
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation.answers import ReadOptions
from NatureLM.evaluation.metrics import BootstrapOptions
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import Side, compare, score, write_scores

pytest.importorskip("rapidfuzz")
pytestmark = pytest.mark.usefixtures("own_folder")


def good_rows(n: int = 12, **more: Any) -> list[dict[str, Any]]:
    names = ["Killer Whale", "Narwhal", "Walrus"]
    return [row(i, names[i % 3], names[i % 3 if i % 4 else 0], **more) for i in range(n)]


def records(folder: str | Path = "out") -> list[dict[str, Any]]:
    return json.loads(Path(folder, "metrics.json").read_text())


def scored(answers: Path | list[dict[str, Any]], *words: object) -> list[dict[str, Any]]:
    """The records of `beans score` into the folder `out`."""
    path = write_answers(answers) if isinstance(answers, list) else answers
    score_of(path, "--output-path", "out", *words)
    return records()


def score_of(*words: object, ends: int = 0) -> str:
    """What `beans score` says with these words, ending with this code."""
    return call("score", *words, ends=ends, by=beans)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_writes_records_and_tables(tmp_path: Path) -> None:
    rows = good_rows() + good_rows(query=1, lora_scale=0.5)
    path, out = write_answers(rows, "a.jsonl.gz"), tmp_path / "made" / "here"
    words = ("--protocol", "strict", "--by", "query,lora_scale", "--output-path", out)
    printed = score_of(path, *words)
    first, second = records(out)
    keys = ("dataset", "query", "lora_scale", "protocol", "n", "accuracy", "top1", "errors")
    assert [first[key] for key in keys] == ["watkins", 0, 1.0, "strict", 12, 10 / 12, 10 / 12, 0]
    assert (second["query"], second["lora_scale"]) == (1, 0.5)
    assert set(first["intervals"]) == {"accuracy", "precision", "recall", "f1", "top1"}
    assert first["intervals"] == second["intervals"]
    assert first["baselines"]["majority"]["accuracy"] == pytest.approx(4 / 12)
    assert (first["clusters"], first["cluster_by"]) == (12, "sample")
    classes = [line for line in table(out / "per_class.csv") if line["query"] == "0"]
    walrus = next(line for line in classes if line["label"] == "Walrus")
    assert (walrus["support"], walrus["correct"], walrus["recall"]) == ("4", "3", "0.75")
    cells = table(out / "confusion.csv")
    assert sum(int(cell["count"]) for cell in cells) == 24
    assert {c["predicted"] for c in cells if c["label"] == "Narwhal"} == {"Narwhal", "Killer Whale"}
    assert table(out / "errors.csv") == []
    assert "0.833 [" in printed
    assert json.loads((out / "scoring.json").read_text())["protocols"] == ["strict"]
    quiet = score_of(path, "--output-path", out, "--quiet")
    assert quiet.startswith("24 answers; wrote metrics.json")


def test_parquet_tables_are_the_csv_tables() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = good_rows() + good_rows(query="named \ud800", lora_scale=None)
    scored(rows)
    for name in ("per_class", "confusion"):
        stored = parquet.read_table(f"out/{name}.parquet").to_pylist()
        assert [
            {key: "" if value is None else str(value) for key, value in line.items()}
            for line in stored
        ] == table(Path(f"out/{name}.csv"))


def test_grouping_as_rows_have_columns() -> None:
    found = scored(good_rows(window=2) + good_rows(window=10), "--by", "window")
    assert [(one["window"], one["query"]) for one in found] == [(2, None), (10, None)]
    ours = [
        {"text": r["prediction"], "output": r["label"], "id": r["id"], "dataset_name": "watkins"}
        for r in good_rows()
    ]
    [record] = scored([one | {"merging_alpha": 0.4} for one in ours])
    assert (record["lora_scale"], record["query"], record["n"]) == (0.4, None, 12)


def test_clusters_are_the_recordings_where_rows_have_them() -> None:
    rows = [one | {"recording": f"r{i // 4}"} for i, one in enumerate(good_rows(40))]
    assert [(r["clusters"], r["cluster_by"]) for r in scored(rows)] == [(10, "recording")]
    del rows[3]["recording"]
    assert [(r["clusters"], r["cluster_by"]) for r in scored(rows)] == [(40, "sample")]
    words = ("--output-path", "out", "--cluster", "recording")
    said = score_of(write_answers(rows), *words, ends=1)
    assert "answers.jsonl:4: the column 'recording' of --cluster has no value" in said


def test_detection_and_captions() -> None:
    answers = [
        ("Gibbon duet", "Gibbon duet"),
        ("Gibbon duet, Single pulse gibbon call", "Single pulse gibbon ca"),
        ("None", "Nothing here"),
        ("Single pulse gibbon call", "Howler monkey, Gibbon duet"),
    ]
    rows = [row(i, *pair, dataset_name="gibbons") for i, pair in enumerate(answers)]
    said = ["a wolf howls at night", "rain falls on a lake"]
    rows += [row(i, text, said[0], dataset_name="captioning") for i, text in enumerate(said)]
    rows += [row(0, "Tok", "tok", dataset_name="our bats", task="classification")]
    warned = score_of(write_answers(rows), "--output-path", "out")
    captions, gibbons, bats = records()
    assert gibbons["accuracy"] == 0.5
    assert gibbons["precision"] == pytest.approx((1 / 2 + 1) / 2)
    assert gibbons["recall"] == pytest.approx(1 / 2)
    assert gibbons["f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert gibbons["map"] == pytest.approx((0.25 + 0.25 + 0.5 + 0.25) / 2)
    assert gibbons["baselines"]["majority"]["recall"] == pytest.approx(1 / 2)
    assert captions["cider"] == pytest.approx(5)
    assert captions["cider_benchmark"] == pytest.approx(0.5)
    assert (captions["spice"], captions["f1"]) == (None, None)
    assert "SPICE is left out because" in warned
    assert (bats["dataset"], bats["accuracy"]) == ("our bats", 1.0)
    assert "Gibbon duet" in {line["label"] for line in table(Path("out/per_class.csv"))}


def test_labels_given_are_candidates_and_the_only_ones_allowed(tmp_path: Path) -> None:
    rows = [row(0, "Walrus", "Walrush"), row(1, "Narwhal", "Narwhal")]
    labels = tmp_path / "labels.txt"
    labels.write_text("Walrus\nNarwhal\n\nWalrush\n")
    assert scored(rows)[0]["accuracy"] == 1.0
    assert scored(rows, "--labels", labels)[0]["accuracy"] == 0.5
    labels.write_text("Walrus\nNarval\n")
    words = ("--output-path", "out", "--labels", labels)
    said = score_of(write_answers(rows), *words, ends=1)
    assert "answers.jsonl:2: the label 'Narwhal' is not among those of --labels" in said
    assert "did you mean 'Narval'?" in said


def test_labels_without_a_scientific_name_are_no_candidates(tmp_path: Path) -> None:
    rows = [row(0, "Walrus", "Harp Seal"), row(1, "Narwhal", "Harp Seal", query=1)]
    (tmp_path / "labels.txt").write_text("Walrus\nNarwhal\nHarp Seal\n")
    names = {"Walrus": "Odobenus rosmarus", "Narwhal": "Monodon monoceros"}
    (tmp_path / "names.json").write_text(json.dumps(names))
    said = score_of(
        *(write_answers(rows), "--output-path", tmp_path, "--names", "query=1:both"),
        *("--labels", tmp_path / "labels.txt", "--scientific-names", tmp_path / "names.json"),
    )
    assert "left out where it is asked for: Harp Seal" in said
    answered = {cell["query"]: cell["predicted"] for cell in table(tmp_path / "confusion.csv")}
    assert answered["0"] == "Harp Seal"
    assert answered["1"] in ("Odobenus rosmarus : Walrus", "Monodon monoceros : Narwhal")


def test_sets_of_labels_are_renamed_one_by_one(tmp_path: Path) -> None:
    more = {"dataset_name": "dcase"}
    rows = [
        row(0, "Ovenbird, Veery", "Catharus fuscescens, Seiurus aurocapilla", **more),
        row(1, "None", "None", **more),
    ]
    names = {"Ovenbird": "Seiurus aurocapilla", "Veery": "Catharus fuscescens"}
    (tmp_path / "names.json").write_text(json.dumps(names))
    [one] = scored(rows, "--names", "query=0:scientific", "--scientific-names", "names.json")
    assert (one["accuracy"], one["f1"]) == (1.0, 1.0)


BAD_LINES = {
    "no JSON": ("{'id': 1}", "is no JSON (", "not JSON"),
    "a list": ("[1, 2]", "holds a JSON list", "not JSON"),
    "bytes": ('{"id": "\udcff"}', "is no UTF-8 text", "not JSON"),
    "no label": ({"label": ...}, "the key 'label' is missing", "missing key"),
    "no prediction": ({"prediction": ...}, "the key 'prediction' is missing", "missing key"),
    "no id": ({"id": ...}, "the key 'id' is missing", "missing key"),
    "no data set": ({"dataset_name": ...}, "the key 'dataset_name' is missing", "missing key"),
    "no query": ({"query": ...}, "the key 'query' is missing", "missing key"),
    "null answer": ({"prediction": None}, "the answer is null", "null answer"),
    "error of the run": ({"prediction": None, "error": "no wav"}, "no wav", "no answer"),
    "number as answer": ({"prediction": 3}, "the answer is 3; a string is needed", "wrong value"),
    "null label": ({"label": None}, "label is null", "wrong value"),
    "empty label": ({"label": " "}, "label is empty", "wrong value"),
    "list as label": ({"label": ["Walrus"]}, "label is ['Walrus']", "wrong value"),
    "list as id": ({"id": [1]}, "id is [1]", "wrong value"),
    "endless number": ('{"id": ' + "9" * 5000 + "}", "cannot be read as JSON", "not JSON"),
    "large number": ({"lora_scale": 10**400}, "lora_scale is 1000", "wrong value"),
    "not a number": ({"lora_scale": float("nan")}, "lora_scale is nan", "wrong value"),
    "a key twice": (
        '{"id": "a", "label": "x", "label": "y"}',
        "'label' is there twice",
        "not JSON",
    ),
    "truth value": ({"query": True}, "query is True", "wrong value"),
    "unknown data set": ({"dataset_name": "watkin"}, "did you mean 'watkins'?", "unknown dataset"),
    "duplicate id": ({"id": "s000"}, "'s000' is there twice, the first time at", "duplicate id"),
}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("is_zipped", [False, True])
def test_answers_in_utf_16_are_scored(encoding: str, is_zipped: bool, tmp_path: Path) -> None:
    rows = [row(0, "Kröte", "Kröte"), row(1, "Walrus", "Kröte")]
    text = "\r\n".join(json.dumps(one, ensure_ascii=False) for one in rows)
    data = text.encode(encoding)
    path = tmp_path / "answers.jsonl"
    path.write_bytes(gzip.compress(data) if is_zipped else data)
    labels = tmp_path / "labels.txt"
    labels.write_bytes("Kröte\r\nWalrus\r\n".encode(encoding))
    words = ("--output-path", tmp_path, "--protocol", "strict", "--labels", labels)
    assert "Note" not in score_of(path, *words)
    assert records(tmp_path)[0]["accuracy"] == 0.5


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_lines_are_named_and_counted(name: str, tmp_path: Path) -> None:
    change, message, kind = BAD_LINES[name]
    bad: Any = change
    if isinstance(change, dict):
        made = row(99, "Walrus", "Walrus") | change
        bad = {key: value for key, value in made.items() if value is not ...}
    rows = good_rows()
    path = write_answers([*rows[:4], bad, *rows[4:]])
    args = (path, "--output-path", tmp_path, "--protocol", "strict")
    said = score_of(*args, ends=1)
    assert f"{path}:5: " in said
    assert message in said
    assert "--on-error skip" in said
    assert not (tmp_path / "metrics.json").exists()
    said = score_of(*args, "--on-error", "skip")
    assert f"{path}:5: " in said
    assert f"1 × {kind}" in said
    [record] = records(tmp_path)
    assert (record["n"], record["errors"]) == (12, 1)
    assert record["accuracy"] == pytest.approx(10 / 12)
    [error] = table(tmp_path / "errors.csv")
    assert (error["file"], error["line"], error["kind"]) == (str(path), "5", kind)


def test_damaged_gzip_is_named_with_its_line(tmp_path: Path) -> None:
    # Random ids do not compress, so that half of the file is about half of the lines.
    rows = [one | {"note": os.urandom(64).hex()} for one in good_rows(400)]
    path = write_answers(rows, "half.jsonl.gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    args = (path, "--output-path", tmp_path)
    said = score_of(*args, ends=1)
    assert "half.jsonl.gz:" in said
    assert "damaged or cut short" in said
    score_of(*args, "--on-error", "skip")
    [record] = records(tmp_path)
    assert 100 < record["n"] < 300
    assert record["errors"] == 1
    path.write_bytes(b"no gzip data")
    assert "half.jsonl.gz:1: the gzip data is damaged" in score_of(*args, ends=1)
    flipped = bytearray(gzip.compress(json.dumps(rows[0]).encode()))
    flipped[30] ^= 255
    path.write_bytes(flipped)
    score_of(*args, ends=1)


def test_wrong_usage_is_said_before_anything_is_written(tmp_path: Path) -> None:
    path = write_answers(good_rows())
    empty = write_answers([], "empty.jsonl")
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"Walrus": "Odobenus rosmarus", "Narwhal": "Monodon monoceros"}))
    folder = tmp_path / "folder"
    folder.mkdir()
    science = ("--scientific-names", names)
    for words, message in (
        ((tmp_path / "gone.jsonl",), "gone.jsonl: there is no such file"),
        ((folder,), "folder holds no .jsonl or .jsonl.gz file"),
        ((path, path), "named twice"),
        ((empty,), "there is no answer that can be scored"),
        ((path, "--protocol", "best"), "there is no protocol 'best'"),
        ((path, "--on-error", "ignore"), "--on-error ignore: take one of fail, skip"),
        ((path, "--task", "counting"), "--task counting: take one of"),
        ((path, "--by", "query,query"), "'query' is named twice"),
        ((path, "--by", "label"), "'label' cannot make groups"),
        ((path, "--names", "query:1=both", *science), "write it as query=1:scientific"),
        ((path, "--names", "query=1:latin", *science), "'latin' is no kind of names"),
        ((path, "--names", "query=1:both"), "--names needs --scientific-names"),
        ((path, *science), "--scientific-names needs --names"),
        ((path, "--names", "query=7:both", *science), "no row has it; query is one of 0"),
        ((path, "--names", "window=1:both", "--by", "query", *science), "not among the columns"),
        ((path, "--labels", empty), "holds no label"),
        ((path, "--labels", tmp_path / "gone.txt"), "cannot be read (No such file"),
        ((path, "--names", "query=0:both", "--scientific-names", path), "is no JSON"),
    ):
        assert message in score_of(*words, "--output-path", tmp_path / "out", ends=2)
    args = (path, "--output-path", tmp_path / "out", "--names", "query=0:scientific")
    assert "'Killer Whale' has no scientific name" in score_of(*args, *science, ends=1)
    assert not (tmp_path / "out").exists()
    assert "is a file, and a folder is needed there" in score_of(
        path, "--output-path", path, ends=2
    )


def test_marks_and_empty_lines_are_skipped() -> None:
    first, *others = map(json.dumps, good_rows())
    path = write_answers(["\ufeff" + first, "", "  ", *others, "\r"])
    assert scored(path)[0]["n"] == 12


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    write_answers(good_rows(), "a.jsonl")
    write_answers(good_rows(lora_scale=0.5), "b.jsonl.gz")
    write_answers(["[]"], "a_metrics.jsonl")
    assert [one["lora_scale"] for one in scored(tmp_path)] == [0.5, 1.0]
    write_answers(good_rows(), "c.jsonl")
    said = score_of(tmp_path, "--output-path", "out", ends=1)
    assert "c.jsonl:1: the id 's000' is there twice" in said
    assert "a.jsonl:1" in said


def test_order_of_lines_and_hash_seed_change_nothing(tmp_path: Path) -> None:
    """Two processes with other seeds of hashes, of which one reads the lines backwards."""
    names = ["Walrus", "Narwhal", "Ross Seal", "Harp Seal", "Sperm Whale", "Minke Whale"]
    answers = ["Seal", "Whale", "", "Narwal", "W", "Harp", "Ross or Harp Seal"]
    rows = [
        row(i, names[i % 6], answers[i % 7], recording=f"r{i % 9}", query=i % 2) for i in range(84)
    ]
    files = write_answers(rows, "f.jsonl"), write_answers(rows[::-1], "b.jsonl")
    program = (
        "import sys\n"
        "from NatureLM.evaluation.protocols import PROTOCOLS\n"
        "from NatureLM.evaluation.score import score\n"
        "from NatureLM.util import write_json\n"
        "from pathlib import Path\n"
        "scores = score([sys.argv[1]], list(PROTOCOLS.values()))\n"
        "tables = [[repr(r) for r in g.samples.confusion_rows()] for g in scores.groups]\n"
        "write_json(Path(sys.argv[2]), [scores.records(), tables])\n"
    )
    made = [tmp_path / f"{seed}.json" for seed in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(file), str(path)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        for seed, (file, path) in enumerate(zip(files, made, strict=True))
    ]
    assert [one.wait() for one in running] == [0, 0]
    assert made[0].read_bytes() == made[1].read_bytes()
    first = json.loads(made[0].read_text())[0]
    assert len(first) == 8
    assert first[0]["cluster_by"] == "recording"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = ("prediction", "label", "id", "dataset_name", "query", "lora_scale", "recording", "error")
often = {
    "prediction": st.sampled_from(["Walrus", "", "Narwhal, or so"]),
    "label": st.sampled_from(["Walrus", "Narwhal", "None"]),
    "id": st.integers(0, 30),
    "dataset_name": st.sampled_from(["watkins", "gibbons", "captioning"]),
    "query": st.integers(0, 1),
    "lora_scale": st.sampled_from([0, 0.5, 1, 1.0]),
}
usual_rows = st.fixed_dictionaries(often)
odd_rows = st.builds(
    lambda row, key, value, drop: {
        name: value if name == key else old
        for name, old in {**row, key: value}.items()
        if not (drop and name == key)
    },
    usual_rows,
    st.sampled_from(KEYS),
    json_values,
    st.booleans(),
)
BY_TASK = ReadOptions(by=("query", "lora_scale", "task"))
lines = st.lists(usual_rows | usual_rows | odd_rows | json_values, max_size=12)


@given(lines)
@example([{**dict.fromkeys(often, "Walrus"), "dataset_name": "watkins", "lora_scale": math.nan}])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it writes elsewhere
)
def test_every_line_is_scored_or_counted(
    tmp_path_factory: pytest.TempPathFactory, content: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("answers")
    path = Path(folder, "answers.jsonl")
    path.write_text("".join(json.dumps(one) + "\n" for one in content), "utf-8")
    few = BootstrapOptions(resamples=5)
    try:
        scores = score([path], [protocol("paper")], bootstrap=few, on_error="skip")
    except UsageError:
        with pytest.raises(UsageError, match="no answer that can be scored"):
            score([path], [protocol("strict")], on_error="skip")
        return
    records = scores.records()
    assert sum(record["n"] for record in records) + len(scores.problems) == len(content)
    assert {record["errors"] for record in records} == {len(scores.problems)}
    assert len({problem.line for problem in scores.problems}) == len(scores.problems)
    for record in records:
        assert record["accuracy"] is None or 0 <= record["accuracy"] <= 1
    write_scores(scores, folder / "out", {})
    stored = json.loads(
        (folder / "out" / "metrics.json").read_text("utf-8"),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert [record["n"] for record in stored] == [record["n"] for record in records]


def test_alpha_is_a_number_however_it_is_written() -> None:
    """Files of several programs: one writes 1, another 1.0, a third "1.0"."""
    made = [row(i, "Walrus", "Walrus", lora_scale=a) for i, a in enumerate([1.0, 1, "1.0"])]
    [record] = score([write_answers(made)], [protocol("strict")]).records()
    assert (record["n"], record["lora_scale"]) == (3, 1.0)


def test_tasks_of_a_data_set_are_not_mixed() -> None:
    tasks = ["classification", None, "captioning"]
    made = [row(i, "Owl", "Owl", dataset_name="mine", task=t) for i, t in enumerate(tasks)]
    path = write_answers(made)
    with pytest.raises(NatureLMError, match=r":3: task is 'captioning', and rows of 'mine' before"):
        score([path], [protocol("strict")])
    one_task = ReadOptions(task="classification")
    assert score([path], [protocol("strict")], options=one_task).records()[0]["n"] == 3
    apart = score([write_answers([made[0], made[2]])], [protocol("strict")], options=BY_TASK)
    assert [group.task for group in apart.groups] == ["captioning", "classification"]


TWO = ["Walrus", "Narwhal"]


def side(path: Path, **where: str) -> Side:
    return Side((path,), where)


def answered(right: list[bool], **more: Any) -> list[dict[str, Any]]:
    return [
        row(i, TWO[i % 2], TWO[i % 2 if hit else 1 - i % 2], **more) for i, hit in enumerate(right)
    ]


def test_pairs_make_the_interval_narrow() -> None:
    """B is right wherever A is, and on every tenth sample more: that is no chance."""
    rng = np.random.default_rng(0)
    a = list(rng.random(400) < 0.5)
    b = [hit or i % 10 == 0 for i, hit in enumerate(a)]
    files = write_answers(answered(a), "a.jsonl"), write_answers(answered(b), "b.jsonl")
    found = compare(side(files[0]), side(files[1]), protocol("strict"))
    [group] = found.groups
    gained = float(np.mean(b) - np.mean(a))
    one = group.metrics["accuracy"]
    assert one.difference == pytest.approx(gained)
    assert one.interval is not None
    low, high = one.interval
    assert 0 < low < gained < high
    assert high - low < 0.06  # two unpaired runs of 400 would differ by ± 0.07 by chance
    assert one.p < 0.01
    assert group.differ == pytest.approx(gained)
    assert (group.only_a_right, group.only_b_right) == (0.0, pytest.approx(gained))


def test_a_run_does_not_differ_from_itself() -> None:
    path = write_answers(answered([True, False, True, True]))
    [group] = compare(side(path), side(path), protocol("paper")).groups
    for one in group.metrics.values():
        assert (one.difference, one.interval, one.p) == (0.0, (0.0, 0.0), 1.0)
    assert group.differ == 0


def test_rounding_is_no_difference() -> None:
    """Weighted recall is accuracy, summed in another order: both differ by the same chance."""
    rng = np.random.default_rng(1)
    names = [f"animal {i:02}" for i in range(40)]
    wanted = rng.choice(names, 300)
    files = []
    for name in "ab":
        said = np.where(rng.random(300) < 0.55, wanted, rng.choice(names, 300))
        made = [row(i, *pair) for i, pair in enumerate(zip(wanted, said, strict=True))]
        files.append(write_answers(made, f"{name}.jsonl"))
    [group] = compare(side(files[0]), side(files[1]), protocol("strict")).groups
    assert group.metrics["recall"].p == group.metrics["accuracy"].p < 1


def test_only_samples_of_both_count() -> None:
    right = [True, True, False, True, False, True]
    a = write_answers(answered(right)[:5], "a.jsonl")
    b = write_answers(answered(right)[2:], "b.jsonl")
    [group] = compare(side(a), side(b), protocol("strict")).groups
    assert (group.n, group.only_in_a, group.only_in_b) == (3, 2, 1)
    assert group.metrics["accuracy"].a == pytest.approx(1 / 3)


def test_two_alphas_of_one_file(tmp_path: Path) -> None:
    made = answered([True] * 8, lora_scale=0.5) + answered([False] * 8, lora_scale=1)
    path = write_answers(made)
    strict = ("--protocol", "strict")
    where = ("--a-where", "lora_scale=1.0", "--b-where", "lora_scale=0.5")
    printed = call("compare", path, path, *where, *strict, "--output-path", "out", by=beans)
    assert "+1.000 [+1.000, +1.000]" in printed
    assert "100.0%" in printed
    [record] = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (record["dataset"], record["query"], record["lora_scale"]) == ("watkins", 0, None)
    assert record["metrics"]["f1"]["difference"] == 1.0
    half = write_answers([one | {"query": 0} for one in made[:8]], "half.jsonl")
    words = ("compare", half, path, "--b-where", "lora_scale=1", *strict)
    for groups in ((), ("--by", "query,lora_scale")):
        assert "-1.000 [-1.000, -1.000]" in call(*words, *groups, by=beans)


def test_what_cannot_be_compared_is_said() -> None:
    a = write_answers(answered([True, True]), "a.jsonl")
    other_samples = [one | {"id": "x" + one["id"]} for one in answered([True, True])]
    b = write_answers(other_samples, "b.jsonl")
    with pytest.raises(UsageError, match=r"a\.jsonl and .*b\.jsonl have no group with a sample"):
        compare(side(a), side(b), protocol("strict"))
    with pytest.raises(UsageError, match="no answer with lora_scale=3"):
        compare(side(a, lora_scale="3"), side(a), protocol("strict"))
    turned = [one | {"label": TWO[1 - i % 2]} for i, one in enumerate(answered([True] * 2))]
    with pytest.raises(NatureLMError, match="'s000' is 'Walrus' in A and 'Narwhal' in B"):
        compare(side(a), side(write_answers(turned, "c.jsonl")), protocol("strict"))


def test_captions_are_compared_by_cider() -> None:
    texts = ["a wolf howls at night", "rain falls on a quiet lake", "a loon wails over it"]
    more = {"dataset_name": "captioning"}
    a = write_answers([row(i, t, texts[0], **more) for i, t in enumerate(texts)], "a.jsonl")
    b = write_answers([row(i, t, t, **more) for i, t in enumerate(texts)], "b.jsonl")
    [group] = compare(side(a), side(b), protocol("paper")).groups
    assert group.metrics["cider"].b == pytest.approx(10)
    assert group.metrics["cider"].difference > 5
    assert (group.differ, group.only_a_right) == (pytest.approx(2 / 3), None)
