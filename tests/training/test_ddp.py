"""Two processes make the updates of one with the same global batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from NatureLM.config.load import dump_config
from NatureLM.training.loop import train

pytest.importorskip("accelerate")


def losses(folder: Path) -> dict[tuple[str, int], float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {(line["kind"], line["step"]): line["loss"] for line in lines}


@pytest.mark.slow
def test_two_processes_are_as_one(make_config, table: Path, tmp_path: Path, quiet_environment):
    def config(name: str, batch: int):
        return make_config(
            batch_size_train=batch,
            accum_grad_iters=2,
            max_steps=4,
            eval_every=2,
            output_dir=str(tmp_path / name),
            datasets={"train": [{"path": str(table)}], "valid": [{"path": str(table)}]},
            model={
                "lora_dropout": 0.0,
                "beats_cfg": {**BEATS, "encoder_layerdrop": 0.0},
                "qformer_cfg": {
                    **QFORMER,
                    "hidden_dropout_prob": 0.0,
                    "attention_probs_dropout_prob": 0.0,
                },
            },
        )

    train(config("one", 4))
    path = tmp_path / "two.yml"
    path.write_text(dump_config(config("two", 2)))
    # --multi_gpu starts a process for each rank; run.device is cpu, so they talk through gloo.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    launch += ["--dynamo_backend=no", "--main_process_port=0"]
    done = subprocess.run(
        [*launch, "-m", "NatureLM.cli.train", "--cfg-path", str(path)],
        env=quiet_environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    assert len(one) == 6
    for key, loss in one.items():
        assert two[key] == pytest.approx(loss, abs=1e-5), key


BEATS = {
    "embed_dim": 16,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "num_buckets": 16,
    "max_distance": 60,
}
QFORMER = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
