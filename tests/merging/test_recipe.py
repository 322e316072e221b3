"""Recipes: YAML and what is wrong in it, α in every layer, and ways to combine adapters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.errors import ConfigError, UsageError
from NatureLM.merging.lora import LoraDelta, concatenate
from NatureLM.merging.plan import METHODS, MergePlan, keep_mask, layer_of, place_alphas, trim
from NatureLM.merging.recipe import ParameterRule, Recipe, RecipeAdapter, dump_recipe, load_recipe

LAYERS = 5
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
TARGETS = [f"model.layers.{n}.{kind}" for n in range(LAYERS) for kind in KINDS]


def load(text: str, tmp_path: Path) -> Recipe:
    path = tmp_path / "recipe.yml"
    path.write_text(text)
    return load_recipe(path)


def at(recipe: Recipe, layer: int, kind: str) -> float:
    return place_alphas(recipe, TARGETS, LAYERS)[f"model.layers.{layer}.self_attn.{kind}_proj"]


def test_one_alpha_is_everywhere() -> None:
    assert set(place_alphas(Recipe(alpha=0.4), TARGETS, LAYERS).values()) == {0.4}
    assert Recipe(alpha=0.4).is_own_only


def test_the_last_rule_that_fits_counts(tmp_path: Path) -> None:
    recipe = load(
        """
        alpha: 0.5
        rules:
          - {layers: [1, 3], alpha: 0.2}
          - {modules: [q, v_proj], alpha: 0.9}
          - {layers: 2, modules: [self_attn.v_proj], alpha: -1}
          - {modules: [model.layers.4.self_attn.o_proj], alpha: 3}
        """,
        tmp_path,
    )
    assert [at(recipe, n, "k") for n in range(LAYERS)] == [0.5, 0.2, 0.2, 0.2, 0.5]
    assert [at(recipe, n, "q") for n in range(LAYERS)] == [0.9] * 5
    assert [at(recipe, n, "v") for n in range(LAYERS)] == [0.9, 0.9, -1.0, 0.9, 0.9]
    assert [at(recipe, n, "o") for n in range(LAYERS)] == [0.5, 0.2, 0.2, 0.2, 3.0]


def test_gradients_over_all_layers_and_over_a_range(tmp_path: Path) -> None:
    recipe = load(
        "alpha: [0.0, 1.0]\nrules: [{layers: [1, 3], modules: [o], alpha: [0, 1, 0]}]\n", tmp_path
    )
    assert [at(recipe, n, "q") for n in range(LAYERS)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [at(recipe, n, "o") for n in range(LAYERS)] == [0.0, 0.0, 1.0, 0.0, 1.0]


@given(
    values=st.lists(st.floats(-3, 3), min_size=2, max_size=6),
    layers=st.integers(1, 40),
)
def test_gradients_are_straight_lines(values: list[float], layers: int) -> None:
    targets = [f"h.{n}.attn.q_proj" for n in range(layers)]
    got = list(place_alphas(Recipe(alpha=tuple(values)), targets, layers).values())
    places = np.linspace(0, len(values) - 1, layers) if layers > 1 else [0.0]
    assert np.allclose(got, np.interp(places, np.arange(len(values)), values), atol=1e-9)
    assert got[0] == values[0]
    if layers > 1:
        assert got[-1] == pytest.approx(values[-1], abs=1e-12)


def test_layer_numbers() -> None:
    assert layer_of("model.layers.12.self_attn.q_proj") == 12
    assert layer_of("transformer.h.0.mlp") == 0
    assert layer_of("lm_head") is None


def test_written_recipes_read_back(tmp_path: Path) -> None:
    text = """
    alpha: [0.1, 0.7]
    rules:
      - {layers: [0, 2], modules: [q], alpha: [1, 2]}
    adapters:
      - {weight: 0.5}
      - {path: birds, weight: 2.0}
    method: dare
    density: 0.3
    seed: 7
    """
    recipe = load(text, tmp_path)
    assert recipe.rules == [ParameterRule(layers=(0, 2), modules=["q"], alpha=(1.0, 2.0))]
    assert load(dump_recipe(recipe), tmp_path) == recipe
    assert load(dump_recipe(Recipe()), tmp_path) == Recipe()
    assert recipe.values() == [0.1, 0.7, 1.0, 2.0]


def test_adapter_folders_count_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    recipe = load("adapters: [{path: birds}, {path: some/where}, {path: own}]", tmp_path)
    paths = [adapter.path for adapter in recipe.adapters]
    assert paths == [str(tmp_path / "birds"), "some/where", "own"]


WRONG = [
    ("alpha: much", ["alpha (line 1)", '"much" is not allowed', "a number, or a list"]),
    ("alpha: true", ["true is not allowed"]),
    ("alpha: [0.5]", ["at least two numbers"]),
    ("alpha: .nan", ["alpha (line 1)", "a number"]),
    ("alpha: null", ["alpha (line 1)", "a number"]),
    ("alfa: 1", ["alfa (line 1): unknown key; did you mean alpha?", "alpha, rules, adapters"]),
    ("rules: 3", ["rules (line 1): 3 is not allowed", "layers, modules, alpha"]),
    ("rules: [{alpha: 1, layer: 2}]", ["rules[0].layer", "unknown key", "layers, modules"]),
    ("rules: [{layers: 1}]", ["rules[0].alpha: missing; it must be a number"]),
    ("rules: [{layers: [3, 1], alpha: 1}]", ["rules[0].layers", "[first, last]"]),
    ("rules: [{layers: -1, alpha: 1}]", ["rules[0].layers", "-1 is not allowed"]),
    ("rules: [{layers: [0, 1, 2], alpha: 1}]", ["rules[0].layers", "[first, last]"]),
    ("rules: [{modules: q, alpha: 1}]", ["rules[0].modules", "a list of names"]),
    ("rules: [{modules: [], alpha: 1}]", ["rules[0].modules", "a list of names"]),
    ("rules: [{modules: [1], alpha: 1}]", ["rules[0].modules", "a list of names"]),
    ("adapters: []", ["adapters (line 1)", "at least one"]),
    ("adapters: [{weight: heavy}]", ["adapters[0].weight", '"heavy"', "a finite number"]),
    ("adapters: [{path: a}, {path: a}]", ["a is in the list twice"]),
    ("method: slerp", ["method (line 1)", '"slerp"', "one of linear, ties, dare"]),
    ("method: ties", ["density", "needs a density"]),
    ("method: ties\ndensity: 0", ["density (line 2)", "above 0 and at most 1"]),
    ("density: 0.5", ["density (line 1)", "linear keeps everything"]),
    ("seed: 3", ["seed (line 1)", "only method dare"]),
    (
        "method: ties\ndensity: 0.5\nadapters: [{weight: -1}]",
        ["density", "ties needs weights above 0"],
    ),
    ("- 1", ["a list"]),
    ("alpha: 1\nalpha: 2", ["alpha stands twice"]),
]


@pytest.mark.parametrize(("text", "says"), WRONG, ids=[text for text, _ in WRONG])
def test_wrong_recipes_say_what_is_allowed(text: str, says: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path)
    message = str(caught.value)
    assert "recipe.yml" in message
    for part in says:
        assert part in message, message


def test_all_problems_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 problems"):
        load("alpha: x\nmethod: y\nrules: [{layers: z, alpha: 1}]\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "rules: [{layers: [3, 5], alpha: 1}]",
            r"rules\[0\].layers: there is no layer 5; .* 0 to 4",
        ),
        ("rules: [{modules: [gate], alpha: 1}]", r"modules gate.*fits no module.*k_proj, o_proj"),
    ],
)
def test_rules_that_fit_nothing(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        place_alphas(load(text, tmp_path), TARGETS, LAYERS)


def test_a_gradient_says_nothing_outside_the_layers(tmp_path: Path) -> None:
    targets = [*TARGETS, "lm_head"]
    with pytest.raises(UsageError, match="lm_head lies in no layer"):
        place_alphas(load("alpha: [0, 1]", tmp_path), targets, LAYERS)
    fixed = load("alpha: [0, 1]\nrules: [{modules: [lm_head], alpha: 0.5}]", tmp_path)
    assert place_alphas(fixed, targets, LAYERS)["lm_head"] == 0.5


# -- combining adapters ----------------------------------------------------------------------

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
    assert scales[TARGET, "b_"] == 2.0
    assert (other, "default") not in scales


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_methods_on_whole_matrices_cannot_act_at_runtime(method: str) -> None:
    plan = MergePlan(Recipe(method=method, density=0.5), [{TARGET: update(1)}], 2)
    with pytest.raises(UsageError, match="fold the recipe"):
        plan.scales(["default"])
