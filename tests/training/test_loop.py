"""The loop: what learns, what is saved, scores, and how it stops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import rows, write_lines
from safetensors.torch import load_file, save_file
from torch import nn

from NatureLM.cli.train import report
from NatureLM.errors import ConfigError, NatureLMError, UsageError
from NatureLM.evaluation.metrics import accuracy, clustered_interval, macro_accuracy
from NatureLM.inference.pipeline import Pipeline
from NatureLM.models import NatureLM
from NatureLM.training.objectives import Objective, StepOutput
from NatureLM.training.optim import learning_rate, part_of
from NatureLM.training.outputs import checkpoints, score_lines
from NatureLM.training.samples import BatchLayout, BatchSource
from NatureLM.training.train import ScoredAnswer, Trainer, answer_scores, is_decoded, train

pytest.importorskip("accelerate")

NO_LAYER_DROP = {"encoder_layerdrop": 0.0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.parameters}


def log(folder: Path, kind: str) -> list[dict[str, float]]:
    return [line for line in rows(folder / "log.jsonl") if line["kind"] == kind]


def test_the_whole_model_learns_and_can_be_asked(make_config, clips_folder: Path, table: Path):
    config = make_config(
        max_steps=30,
        batch_size_train=8,
        save_every=20,
        eval_every=30,
        decode_ratio=1.0,
        datasets={"valid": [{"path": str(table)}]},
        model={"freeze_llama": False, "lora_dropout": 0.0},
        optims={"init_lr": 1e-2, "max_grad_value": None},
    )
    result = train(config)
    losses = [line["loss"] for line in log(result.folder, "train")]
    assert len(losses) == 30
    assert losses[-1] < 0.6 * losses[0]
    assert {"loss", "token_accuracy", "accuracy", "macro_accuracy"} <= set(result.scores)
    assert result.scores["macro_accuracy_low"] <= result.scores["macro_accuracy"]
    final = result.folder / "final"
    assert "30 steps" in (final / "README.md").read_text()
    model = NatureLM.from_pretrained(final)
    pipeline = Pipeline(model)
    answer = pipeline(
        [clips_folder / "Rain" / "3.wav"],
        "What is it?",
        window_length_seconds=1.0,
        hop_length_seconds=1.0,
    )
    assert answer[0].startswith("#0.00s - 0.90s#")


def test_text_from_scratch(make_config, fixtures_dir: Path, tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        text = (fixtures_dir / "goldens" / "nano" / "llama" / name).read_text()
        (base / name).write_text(text)
    said = [{"prompt": f"Say {n}.", "answer": str(n)} for n in range(8)]
    text = [{"path": str(write_lines(tmp_path / "text.jsonl", said))}]
    config = make_config(
        task="text",
        max_steps=120,
        batch_size_train=8,
        decode_ratio=1.0,
        model={"llama_path": str(base)},
        datasets={"train": text, "valid": text},
    )
    result = train(config)
    assert result.scores["loss"] < 0.5
    assert result.scores["accuracy"] >= 0.5
    # the result is a base that audio training can start from
    again = make_config(
        model={"llama_path": str(result.folder / "final")}, output_dir=str(tmp_path / "audio")
    )
    trained = load_file(result.folder / "final" / "model.safetensors")["model.norm.weight"]
    in_model = Trainer(again).objective.model.language_model.model.norm.weight
    assert torch.equal(in_model, trained)


@pytest.mark.parametrize("loss", ["softmax", "multi-label"])
def test_the_encoder_learns_and_is_taken_over(make_config, clips_folder: Path, tmp_path, loss):
    config = make_config(
        task="encoder",
        max_steps=50,
        batch_size_train=12,
        decode_ratio=1.0,
        model={"beats_cfg": NO_LAYER_DROP},
        datasets={
            "train": [{"path": str(clips_folder)}],
            "valid": [{"path": str(clips_folder)}],
        },
        encoder={"loss": loss},
        optims={"init_lr": 1e-2},
    )
    result = train(config)
    losses = [line["loss"] for line in log(result.folder, "train")]
    assert losses[-1] < 0.6 * losses[0]
    assert result.scores["accuracy"] > 0
    final = result.folder / "final"
    assert json.loads((final / "encoder.json").read_text())["classes"] == ["Cuckoo", "Rain", "Wolf"]
    again = make_config(model={"beats_path": str(final)}, output_dir=str(tmp_path / "audio"))
    trained = load_file(final / "model.safetensors")["patch_embedding.weight"]
    assert torch.equal(Trainer(again).objective.model.beats.patch_embedding.weight, trained)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_splitting_a_batch_does_not_change_the_update(make_config, batch: int, accumulation: int):
    def after_two_steps(batch: int, accumulation: int) -> dict[str, torch.Tensor]:
        config = make_config(
            batch_size_train=batch,
            accum_grad_iters=accumulation,
            model={"lora_dropout": 0.0, "beats_cfg": NO_LAYER_DROP, "qformer_cfg": NO_DROPOUT},
        )
        trainer = Trainer(config)
        for step, batches in enumerate(trainer.loader.steps(0, 2)):
            trainer._update(step, batches)
        return weights(trainer)

    whole, split = after_two_steps(8, 1), after_two_steps(batch, accumulation)
    moved = 0.0
    for name, weight in whole.items():
        torch.testing.assert_close(split[name], weight, rtol=0, atol=2e-5, msg=name)
        moved = max(moved, float(weight.abs().max()))
    assert moved > 0


def test_bfloat16_keeps_float32_weights(make_config):
    config = make_config(amp=True, max_steps=12, batch_size_train=8, gradient_checkpointing=True)
    trainer = Trainer(config)
    result = trainer.run(resume=False)
    losses = [line["loss"] for line in log(result.folder, "train")]
    assert losses[-1] < losses[0]
    assert {p.dtype for _, p in trainer.parameters} == {torch.float32}


def test_gradient_checkpointing_changes_no_gradient(make_config):
    def after_a_step(checkpointing: bool) -> dict[str, torch.Tensor]:
        config = make_config(
            gradient_checkpointing=checkpointing,
            model={"lora_dropout": 0.1, "freeze_llama": False, "beats_cfg": NO_LAYER_DROP},
        )
        trainer = Trainer(config)
        language_model = trainer.objective.model.language_model
        assert getattr(language_model.model, "gradient_checkpointing", False) == checkpointing
        trainer._update(0, next(iter(trainer.loader.steps(0, 1))))
        return weights(trainer)

    kept, computed_again = after_a_step(False), after_a_step(True)
    for name, weight in kept.items():
        torch.testing.assert_close(computed_again[name], weight, rtol=0, atol=1e-6, msg=name)


PARTS = {
    "beats": "freeze_beats",
    "qformer": "freeze_audio_QFormer",
    "projection": "freeze_audio_llama_proj",
    "lora": "lora",
    "language_model": "freeze_llama",
}


@pytest.mark.parametrize("learning", list(PARTS))
def test_frozen_parts_stay(make_config, learning: str):
    """Each part alone: it changes, the others do not, and they take no room in the optimiser."""
    settings = {key: True for part, key in PARTS.items() if part not in ("lora", learning)}
    settings |= {PARTS[learning]: False} if learning != "lora" else {"lora": True}
    optims = {"part_rates": {learning: 0.5}}
    trainer = Trainer(make_config(model={"lora": learning == "lora", **settings}, optims=optims))
    before = {n: p.detach().clone() for n, p in trainer.objective.named_parameters()}
    for step, batches in enumerate(trainer.loader.steps(0, 2)):  # LoRA's A waits for its B
        trainer._update(step, batches)
    changed = {
        n for n, p in trainer.objective.named_parameters() if not torch.equal(p.detach(), before[n])
    }
    assert changed
    assert {part_of(name) for name in changed} == {learning}
    rate = learning_rate(1, trainer.total, trainer.settings.optims)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.5 * rate}
    held = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert held == sum(part_of(n) == learning for n in before if ".predictor." not in n)


@pytest.mark.parametrize("task", ["audio-text", "encoder"])
def test_an_encoder_of_another_size_is_refused(make_config, clips_folder, tmp_path, task: str):
    weights = {"layer_norm.weight": torch.ones(99)}
    save_file(weights, tmp_path / "beats.safetensors")
    data = {"train": [{"path": str(clips_folder)}]}
    model = {"beats_path": str(tmp_path / "beats.safetensors")}
    with pytest.raises(ConfigError, match=r"layer_norm\.weight has shape \(99,\) in the given wei"):
        Trainer(make_config(task=task, model=model, datasets=data))


def test_nothing_left_to_learn(make_config):
    frozen = {key: True for part, key in PARTS.items() if part != "lora"}
    with pytest.raises(ConfigError, match="every part is frozen"):
        Trainer(make_config(model={**frozen, "lora": False}))


def test_the_average_is_what_is_evaluated_and_saved(make_config):
    config = make_config(ema_decay=0.9, max_steps=3)
    trainer = Trainer(config)
    trainer.run(resume=False)
    saved = NatureLM.from_pretrained(Path(config.run.output_dir) / "final")
    name = "audio_llama_proj.weight"
    average = trainer.average.values[f"model.{name}"]
    assert torch.equal(saved.audio_llama_proj.weight, average)
    assert not torch.equal(dict(trainer.parameters)[f"model.{name}"], average)


def test_retention_keeps_the_last_and_the_best(make_config, table: Path):
    config = make_config(
        max_steps=5,
        save_every=1,
        eval_every=1,
        keep_checkpoints=2,
        datasets={"valid": [{"path": str(table)}]},
    )
    trainer = Trainer(config)
    seen = iter([3.0, 1.0, 2.0, 4.0, 5.0])
    trainer._evaluate = lambda *_: {"loss": next(seen)}
    trainer.run(resume=False)
    assert [c.step for c in checkpoints(trainer.folder / "checkpoints")] == [2, 4, 5]


def test_bad_files_are_left_out_and_named(make_config, clips_folder: Path, tmp_path: Path, capsys):
    clips = [{"path": str(p), "answer": "x"} for p in sorted(clips_folder.glob("*/*.wav"))]
    clips.append({"path": "broken.wav", "answer": "x"})
    (tmp_path / "broken.wav").write_text("no audio")
    table = write_lines(tmp_path / "t.jsonl", clips)
    data = {"train": [{"path": str(table)}], "max_bad_share": 0.1}
    result = train(make_config(batch_size_train=13, epoch_based=True, datasets=data, max_steps=2))
    assert f"left out: {tmp_path / 'broken.wav'}: " in capsys.readouterr().err
    assert [line["bad_files"] for line in log(result.folder, "train")] == [1, 1]
    (checkpoint,) = checkpoints(result.folder / "checkpoints")[-1:]
    assert list(checkpoint.state()["bad_files"]) == [str(tmp_path / "broken.wav")]
    resumed = Trainer(
        make_config(batch_size_train=13, epoch_based=True, datasets=data, max_steps=2)
    )
    resumed._begin(resume=True)
    assert list(resumed.bad.reasons) == [str(tmp_path / "broken.wav")]
    assert resumed.bad.tried_so_far == 13
    with pytest.raises(NatureLMError, match="1 of the 13 audio files"):
        train(
            make_config(
                batch_size_train=13,
                datasets={**data, "max_bad_share": 0.01},
                output_dir=str(tmp_path / "strict"),
            )
        )


def test_a_dataset_with_sound_in_it(make_config, clips_folder: Path, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    files = sorted(clips_folder.glob("*/*.wav"))
    rows = datasets.Dataset.from_dict(
        {
            "audio": [{"bytes": path.read_bytes(), "path": path.name} for path in files],
            "label": [path.parent.name for path in files],
            "question": ["What is it?"] * len(files),
        }
    )
    saved = str(tmp_path / "saved")
    datasets.DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(saved)
    data = {
        "train": [{"path": saved, "split": "train", "name": "birds"}],
        "valid": [{"path": saved, "split": "test"}],
    }
    config = make_config(max_steps=2, save_every=1, datasets=data, num_workers=2)
    lines = "\n".join(report(config))
    assert "birds: 12 rows" in lines
    assert "are not there" not in lines
    assert "What is it?" in lines
    result = train(config)
    again = train(config, resume=True)  # the rows have the same fingerprint when read again
    assert again.steps == result.steps == 2
    assert "birds: 12 rows" in (result.folder / "final" / "README.md").read_text()


def test_a_run_takes_as_many_steps_as_fit_into_its_time(make_config, monkeypatch):
    """A clock that moves three seconds a step: ten steps of the warm-up, and two more of 36 s."""
    config = make_config(
        max_steps=50, max_seconds=36.0, optims={"warmup_steps": 10, "init_lr": 1e-3, "min_lr": 0.0}
    )
    trainer = Trainer(config)
    steps: list[int] = []
    monkeypatch.setattr(
        trainer, "_update", lambda step, batches: steps.append(step) or torch.ones(4)
    )
    monkeypatch.setattr("NatureLM.training.train.time.monotonic", lambda: 3.0 * len(steps))
    result = trainer.run(resume=False)
    assert result.steps == 12
    assert steps == list(range(12))
    (last,) = [line for line in log(result.folder, "train") if line["step"] == 12]
    assert last["learning_rate"] == pytest.approx(0.0, abs=1e-9), "the rate comes down until then"
    with pytest.raises(UsageError, match="max_seconds"):
        train(config, resume=True)


def test_only_evaluate(make_config, table: Path, tmp_path: Path):
    trained = train(make_config(max_steps=2, datasets={"valid": [{"path": str(table)}]}))
    tables = {"train": [], "test": [{"path": str(table)}]}
    again = train(make_config(max_steps=2, evaluate=True, datasets=tables))
    assert again.scores == trained.scores
    assert [line["step"] for line in log(trained.folder, "test")] == [2]
    with pytest.raises(ConfigError, match="no test data"):
        train(make_config(evaluate=True, datasets={"train": []}, output_dir=str(tmp_path / "new")))


def test_a_device_that_is_not_there(make_config):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UsageError, match=r"run\.device is cuda, and this machine has none"):
        train(make_config(device="cuda"))


def test_an_old_run_is_not_overwritten_nor_continued_with_other_settings(make_config):
    train(make_config(max_steps=2))
    with pytest.raises(UsageError, match="--resume"):
        train(make_config(max_steps=2))
    with pytest.raises(UsageError, match=r"run\.seed: 13 then, 14 now"):
        train(make_config(max_steps=2, seed=14), resume=True)


ANSWERS = [
    ScoredAnswer(f"r{i}", correct, label, f"g{i // 2}")
    for i, (correct, label) in enumerate(
        [(True, "Wren"), (True, "Wren"), (False, "Wren"), (True, "Wren"), (False, "Owl")] * 4
    )
]


def test_they_are_those_of_the_metrics_package():
    scores = answer_scores(ANSWERS)
    rows = sorted(ANSWERS)
    correct, labels = [row.correct for row in rows], [row.label for row in rows]
    assert scores["accuracy"] == accuracy(correct) == 0.6
    assert scores["macro_accuracy"] == macro_accuracy(correct, labels) == 0.375
    interval = clustered_interval(
        lambda w: accuracy(correct, w), [row.cluster for row in rows], repeats=500
    )
    assert (scores["accuracy_low"], scores["accuracy_high"]) == (interval.low, interval.high)
    alone = answer_scores([row._replace(cluster=row.id) for row in ANSWERS])
    assert alone["accuracy_low"] != scores["accuracy_low"]  # clusters, not clips


def test_order_does_not_matter_and_nothing_is_nothing():
    assert answer_scores(ANSWERS[::-1]) == answer_scores(ANSWERS)
    assert answer_scores([]) == {}


def test_in_words():
    scores = {"loss": 1.5, "macro_accuracy": 0.75}
    scores |= {"macro_accuracy_low": 0.5, "macro_accuracy_high": 0.9}
    told = [("loss", "1.5000"), ("macro accuracy", "0.7500 [0.500, 0.900]")]
    assert list(score_lines(scores)) == told


@pytest.mark.parametrize(("ratio", "expected"), [(0, 0), (0.1, 1), (0.5, 5), (1, 10)])
def test_which_batches_are_answered(ratio: float, expected: int):
    answered = [number for number in range(10) if is_decoded(number, ratio)]
    assert len(answered) == expected
    assert not answered or answered[0] == 0  # a small table is answered, too


def test_samples_carry_their_cluster(make_config):
    trainer = Trainer(make_config())
    example = trainer.data.train[0]
    assert trainer.builder.plain(example).group == example.id


class Centre(Objective):
    """A program's own objective: the squared distance of a point to those of a batch (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(2))

    def forward(self, points_B2: torch.Tensor) -> StepOutput:
        loss = (self.point - points_B2).square().sum()
        return StepOutput(loss, torch.tensor(len(points_B2)), torch.tensor(0))

    def collate(self, samples: Any) -> torch.Tensor:
        return torch.stack(list(samples))

    def answers(self, samples: Any) -> list[str]:
        return []

    def save(self, folder: Path) -> None:
        torch.save(self.state_dict(), folder / "point.pt")


class Points(BatchSource):
    """Batches of a program's own: a function of the step."""

    layout = BatchLayout(4)
    epoch_steps = 10

    def steps(self, first: int, last: int) -> Iterator[list[list[torch.Tensor]]]:
        for step in range(first, last):
            around = torch.Generator().manual_seed(step)
            yield [list(torch.tensor([1.0, -2.0]) + torch.rand(4, 2, generator=around) - 0.5)]


def test_a_program_gives_its_own_objective_and_batches(make_config, tmp_path: Path):
    points: list[torch.Tensor] = []
    for name, stops in (("whole", [40]), ("resumed", [20, 40])):
        for steps in stops:
            config = make_config(
                max_steps=40,
                output_dir=str(tmp_path / name),
                optims={"init_lr": 0.2, "weight_decay": 0.0},
                save_every=20,
            )
            trainer = Trainer(config, objective=Centre(), loader=Points())
            if steps < 40:
                trainer.loader.steps = partial(stop_after, trainer.loader.steps, steps)
                with pytest.raises(KeyboardInterrupt):
                    trainer.run(resume=False)
            else:
                trainer.run(resume=True)
        points.append(torch.load(tmp_path / name / "final" / "point.pt")["point"])
    assert torch.allclose(points[0], torch.tensor([1.0, -2.0]), atol=0.2)
    assert torch.equal(*points)


def stop_after(steps: Any, count: int, first: int, last: int) -> Iterator[Any]:
    yield from steps(first, min(count, last))
    raise KeyboardInterrupt
