"""Ways to combine adapters: exact sums, TIES by hand, DARE on average and to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.merging.lora import LoraDelta, concatenate
from NatureLM.merging.plan import METHODS, MergePlan, keep_mask, trim
from NatureLM.merging.recipe import Recipe, RecipeAdapter

TARGET = "model.layers.0.self_attn.q_proj"


def update(seed: int, rank: int = 3, scale: float = 1.5) -> LoraDelta:
    torch.manual_seed(seed)
    return LoraDelta(
        torch.randn(rank, 7, dtype=torch.float64),
        torch.randn(5, rank, dtype=torch.float64),
        scale,
    )


def exactly(matrix: Tensor) -> LoraDelta:
    """An update whose dense form is this matrix."""
    return LoraDelta(torch.eye(matrix.shape[1], dtype=matrix.dtype), matrix, 1.0)


def merge(
    method: str, parts: list[tuple[float, LoraDelta]], density: float, seed: int = 0
) -> Tensor:
    recipe = Recipe.model_construct(method=method, density=density, seed=seed)
    return METHODS[method](parts, recipe, TARGET)


@given(
    weights=st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    ranks=st.lists(st.integers(1, 5), min_size=4, max_size=4),
)
def test_concatenation_is_the_weighted_sum(weights: list[float], ranks: list[int]) -> None:
    parts = [
        (weight, update(seed, rank=ranks[seed], scale=0.3 + seed))
        for seed, weight in enumerate(weights)
    ]
    whole = concatenate(parts)
    assert whole.rank == sum(one.rank for _, one in parts)
    wanted = sum(weight * one.dense() for weight, one in parts)
    assert torch.allclose(whole.dense(), torch.as_tensor(wanted), atol=1e-10)


def test_trim_keeps_the_largest() -> None:
    matrix = torch.tensor([[0.1, -5.0, 2.0], [0.0, 3.0, -0.2]])
    assert trim(matrix, 0.5).tolist() == [[0.0, -5.0, 2.0], [0.0, 3.0, 0.0]]
    assert trim(matrix, 0.01).tolist() == [[0.0, -5.0, 0.0], [0.0, 0.0, 0.0]]
    assert trim(matrix, 1.0) is matrix


def test_ties_by_hand() -> None:
    first = exactly(torch.tensor([[4.0, -2.0, 0.1, 3.0]]))
    second = exactly(torch.tensor([[2.0, 5.0, 0.2, -3.0]]))
    # kept: 4 -2 . 3 and 2 5 . -3; signs: + + . and 3 - 3 = 0, which nobody wins
    assert merge("ties", [(1.0, first), (1.0, second)], 0.75).tolist() == [[3.0, 5.0, 0.0, 0.0]]
    # weights: 3·4 + 1·2 over 4; 3·(-2) + 5 < 0; 3·3 - 3 > 0
    merged = merge("ties", [(3.0, first), (1.0, second)], 0.75)
    assert torch.allclose(merged, torch.tensor([[3.5, -2.0, 0.0, 3.0]]))


def test_ties_of_one_adapter_at_full_density_is_that_adapter() -> None:
    one = update(1)
    assert torch.allclose(merge("ties", [(0.4, one)], 1.0), one.dense())


def test_dare_is_the_same_each_time_and_differs_by_seed_name_and_place() -> None:
    shape = torch.Size((40, 50))
    masks = [keep_mask(shape, 0.5, name) for name in ("0/a/0", "0/a/0", "1/a/0", "0/b/0", "0/a/1")]
    assert torch.equal(masks[0], masks[1])
    assert len({bytes(mask.numpy().tobytes()) for mask in masks}) == 4
    assert abs(masks[0].float().mean() - 0.5) < 0.05


def test_dare_rescales_what_it_keeps_and_is_right_on_average() -> None:
    one, other = update(1), update(2)
    wanted = 0.7 * one.dense() - 0.2 * other.dense()
    drawn = [merge("dare", [(0.7, one), (-0.2, other)], 0.4, seed) for seed in range(3000)]
    assert torch.allclose(torch.stack(drawn).mean(0), wanted, atol=0.5)
    single = merge("dare", [(1.0, one)], 0.4, seed=5)
    kept = single != 0
    assert torch.allclose(single[kept], one.dense()[kept] / 0.4)
    assert torch.equal(merge("dare", [(1.0, one)], 1.0), one.dense())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_merged_weight_keeps_its_dtype_and_is_rounded_once(dtype: torch.dtype) -> None:
    weight = torch.randn(5, 7, dtype=torch.float64).to(dtype)
    plan = MergePlan(Recipe(alpha=0.3), [{TARGET: update(1)}], 2)
    merged = plan.merged(TARGET, weight, alpha=0.5)
    wanted = (weight.double() + 0.15 * update(1).dense()).to(dtype)
    assert merged.dtype == dtype
    assert torch.allclose(merged, wanted, rtol=1e-6 if dtype != torch.bfloat16 else 1e-2)


def test_layers_that_only_one_adapter_changes() -> None:
    other = "model.layers.1.mlp.up_proj"
    recipe = Recipe(adapters=[RecipeAdapter(weight=0.5), RecipeAdapter(path="b", weight=2.0)])
    sources = [
        {TARGET: update(1)},
        {other: update(2), TARGET: update(3)},
    ]
    plan = MergePlan(recipe, sources, 2)
    weight = torch.zeros(5, 7, dtype=torch.float64)
    assert torch.allclose(plan.merged(other, weight), 2 * update(2).dense())
    wanted = 0.5 * update(1).dense() + 2 * update(3).dense()
    assert torch.allclose(plan.merged(TARGET, weight), wanted)
    scales = plan.scales(["default", "b_"])
    assert scales.factor(TARGET, "b_") == 2.0
    assert scales.factor(other, "default") == 0.0


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_methods_on_whole_matrices_cannot_act_at_runtime(method: str) -> None:
    plan = MergePlan(Recipe(method=method, density=0.5), [{TARGET: update(1)}], 2)
    with pytest.raises(UsageError, match="fold the recipe"):
        plan.scales(["default"])
