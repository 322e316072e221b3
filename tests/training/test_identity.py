"""Runs go on with the settings they had; settings that came later had their default."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from NatureLM.errors import UsageError
from NatureLM.training.checkpoint import check_same, run_settings

SOURCE = Path("step_1")


def test_what_changes_no_number_may_change(make_config):
    one = run_settings(make_config(), data="d", processes=1)
    other = run_settings(make_config(num_workers=3, save_adapter=True), data="d", processes=1)
    check_same(one, other, SOURCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 14}, r"run\.seed: 13 then, 14 now"),
        ({"optims": {"weight_decay": 0.0}}, r"run\.optims"),
        ({"datasets": {"temperature": 2.0}}, r"datasets\.temperature: 1\.0 then, 2\.0 now"),
        ({"model": {"lora_rank": 8}}, r"model\.lora_rank: 4 then, 8 now"),
    ],
)
def test_what_changes_numbers_may_not(make_config, change, message: str):
    before = run_settings(make_config(), data="d", processes=1)
    with pytest.raises(UsageError, match=message):
        check_same(before, run_settings(make_config(**change), data="d", processes=1), SOURCE)
    with pytest.raises(UsageError, match="training data: 'd' then, 'e' now"):
        check_same(before, run_settings(make_config(), data="e", processes=1), SOURCE)


def test_a_run_of_an_older_version_goes_on(make_config):
    now = run_settings(make_config(), data="d", processes=1)
    before = copy.deepcopy(now)
    del before["datasets.train"][0]["split"]
    del before["run.optims"]["beta1"]
    del before["run.gradient_checkpointing"]
    check_same(before, now, SOURCE)
    changed = run_settings(make_config(gradient_checkpointing=True), data="d", processes=1)
    with pytest.raises(UsageError, match=r"run\.gradient_checkpointing: False then, True now"):
        check_same(before, changed, SOURCE)
