"""Recipes as YAML: α at every place, and clear words for what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.errors import ConfigError, UsageError
from NatureLM.merging.plan import layer_of, place_alphas
from NatureLM.merging.recipe import ParameterRule, Recipe, dump_recipe, load_recipe

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
    mended = load("alpha: [0, 1]\nrules: [{modules: [lm_head], alpha: 0.5}]", tmp_path)
    assert place_alphas(mended, targets, LAYERS)["lm_head"] == 0.5
