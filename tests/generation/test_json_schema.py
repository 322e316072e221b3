"""Answers by a JSON Schema are valid whatever the model would say, and end in time."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.models.registry import find_checkpoint

pytest.importorskip("llguidance", reason="llguidance is not installed")
from NatureLM.generation import json_schema
from NatureLM.generation.json_schema import JsonSchemaGrammar

END = 1
SPECIES = {
    "type": "object",
    "properties": {
        "species": {"type": "string"},
        "count": {"type": "integer"},
        "call": {"enum": ["song", "alarm call", "begging call"]},
    },
    "required": ["species", "count", "call"],
    "additionalProperties": False,
}
LISTS = {
    "type": "object",
    "properties": {
        "heard": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "sure": {"type": "boolean"}},
                "required": ["name", "sure"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["heard"],
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    folder = find_checkpoint("naturelm-tiny")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def babble(grammar: JsonSchemaGrammar, most: int, chance: random.Random) -> list[int]:
    """The tokens of a model that says anything that it may."""
    ids: list[int] = []
    while not ids or ids[-1] != END:
        ids.append(chance.choice(tokens(grammar, ids, most)))
        assert len(ids) <= most
    return ids


def tokens(grammar: JsonSchemaGrammar, ids: list[int], most: int) -> list[int]:
    """What may come next."""
    allowed = grammar.allowed(ids, most - len(ids))
    return list(allowed) if isinstance(allowed, (list, tuple)) else allowed.nonzero()[:, 0].tolist()


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    leaves = st.sampled_from(
        [
            {"type": "string"},
            {"type": "integer"},
            {"type": "number"},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["Barn Owl", "Tawny Owl", "None"]},
        ]
    )
    names = st.sampled_from(["a", "species", "how many", "é"])

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        objects = st.dictionaries(names, inner, min_size=1, max_size=3).flatmap(
            lambda known: st.lists(st.sampled_from(sorted(known)), unique=True).map(
                lambda needed: {
                    "type": "object",
                    "properties": known,
                    "required": needed,
                    "additionalProperties": False,
                }
            )
        )
        lists = st.builds(
            lambda items, least: {"type": "array", "items": items, "minItems": least},
            inner,
            st.integers(0, 2),
        )
        return objects | lists | st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner)

    return st.recursive(leaves, nested, max_leaves=4)


@settings(max_examples=40, deadline=None)
@given(schemas(), st.integers(40, 120), st.integers(0, 2**32))
def test_whatever_is_said_is_valid_and_ends_in_time(
    tokenizer: Any, schema: dict[str, Any], most: int, seed: int
) -> None:
    try:
        grammar = JsonSchemaGrammar(schema, tokenizer, [END], most)
    except UsageError as error:
        assert "the shortest answer that the schema allows has" in str(error)  # noqa: PT017
        return
    text = tokenizer.decode(babble(grammar, most, random.Random(seed)), skip_special_tokens=True)
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("schema", [SPECIES, LISTS], ids=["flat", "lists"])
@pytest.mark.parametrize("most", [40, 64, 150])
def test_an_answer_that_nears_its_limit_is_closed(
    tokenizer: Any, schema: dict[str, Any], most: int
) -> None:
    for seed in range(5):
        grammar = JsonSchemaGrammar(schema, tokenizer, [END], most)
        ids = babble(grammar, most, random.Random(seed))
        text = tokenizer.decode(ids, skip_special_tokens=True)
        jsonschema.validate(json.loads(text), schema)


def test_the_grammar_follows_another_beginning(tokenizer: Any) -> None:
    """Rows begin again where memory ran out."""
    grammar = JsonSchemaGrammar(SPECIES, tokenizer, [END], 60)
    first = tokens(grammar, [], 60)
    ids = babble(grammar, 60, random.Random(3))
    assert tokens(grammar, [], 60) == first
    again = JsonSchemaGrammar(SPECIES, tokenizer, [END], 60)
    assert tokens(grammar, ids[:7], 60) == tokens(again, ids[:7], 60)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "frog"}, "Invalid type: frog"),
        ({"$ref": "#/nowhere"}, "'/nowhere' does not exist"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, r"minimum \(5\) is greater"),
        ({"enum": ["x" * 30_000]}, "30,0.. characters, and 20,000 are allowed"),
        ({"type": "string", "minLength": 4000}, "up to 512 tokens"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 60}, "are allowed: raise max_"),
        (False, "is an object"),
        ({"const": "\ud800"}, "cannot be followed"),
        ({"type": "integer", "minimum": 10**300}, "beyond 9223372036854775808"),
        ({"const": float("inf")}, "number that JSON has not"),
        ({"$ref": "#"}, "cannot be followed"),
        ({"type": "object", "x-guidance": {"lenient": True}}, "'x-guidance' is not understood"),
        (
            {"allOf": [{"pattern": "^.*a.{30}$"}, {"type": "string", "pattern": "^.*b.{29}$"}]},
            "too many expressions",
        ),
        (
            functools.reduce(lambda inner, _: {"type": "array", "items": inner}, range(500), {}),
            "recursion limit",
        ),
        (functools.reduce(lambda inner, _: {"items": inner}, range(1500), {}), "too deep"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(
    tokenizer: Any, schema: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        JsonSchemaGrammar(schema, tokenizer, [END], 100)


def test_a_schema_that_takes_long_is_refused_wherever_it_does(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = JsonSchemaGrammar(SPECIES, tokenizer, [END], 100)
    monkeypatch.setattr(json_schema, "_STEP_SECONDS", 0.0)
    monkeypatch.setattr(json_schema, "_READ_SECONDS", 0.0)
    for work in (
        lambda: JsonSchemaGrammar(SPECIES, tokenizer, [END], 100),
        lambda: grammar.allowed([], 100),
    ):
        with pytest.raises(UsageError, match="takes too long"):
            work()


def test_a_panic_of_the_library_is_a_fault_of_the_schema(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: Any) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    grammar = JsonSchemaGrammar(SPECIES, tokenizer, [END], 100)
    monkeypatch.setattr(JsonSchemaGrammar, "_mask", panic)
    with pytest.raises(UsageError, match="unwrap"):
        grammar.allowed([], 100)


def _long(name: str, length: int) -> dict[str, Any]:
    """An object that takes many tokens once it is opened."""
    return {"type": "object", "properties": {name: {"enum": ["y" * length]}}, "required": [name],
            "additionalProperties": False}  # fmt: skip


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": _long("k", 300)},
        {"type": "array", "items": {"$ref": "#/$defs/one"}, "$defs": {"one": _long("k", 300)}},
        {"type": "array", "items": {"anyOf": [_long(f"k{n}", 40 + n) for n in range(80)]}},
        {"anyOf": [_long(f"{n}k", 20 + n) for n in range(80)]},
    ],
    ids=["one", "definition", "many", "only"],
)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_opened_that_cannot_be_closed(tokenizer: Any, schema: Any, seed: int) -> None:
    grammar = JsonSchemaGrammar(schema, tokenizer, [END], 100)
    text = tokenizer.decode(babble(grammar, 100, random.Random(seed)), skip_special_tokens=True)
    assert isinstance(json.loads(text), (list, dict))
