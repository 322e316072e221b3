"""Weights of 8 and 4 bits: layers, models of them, adapters beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import naturelm
from torch import Tensor, nn

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.generation.engine import fold_if_single_alpha
from NatureLM.inference.loading import dtype_names
from NatureLM.merging.lora import lora_layers
from NatureLM.models import NatureLM, quantized
from NatureLM.models.quantized import Int4Linear, Int8Linear, QuantizedLinear
from tests.builders import edit_json

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
PROMPT = "<Audio><AudioHere></Audio> What is it?"


def layer(kind: str, outputs: int = 128, inputs: int = 192, seed: int = 0) -> QuantizedLinear:
    made = quantized.KINDS[kind](outputs, inputs)
    made.quantize(weights(outputs, inputs, seed), torch.float32)
    return made


def weights(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


# -- layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_layers_multiply_with_the_matrix_that_they_stand_for(
    kind: str, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows and many, in one piece or in several."""
    monkeypatch.setattr(quantized, "_PIECE", 3 * 64 * 192)
    made = layer(kind)
    x = torch.randn(2, rows, 192, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = x.float() @ made.dequantized(torch.float32).T
    assert made(x).dtype == dtype
    assert relative(made(x), expected) < (1e-5 if dtype == torch.float32 else 6e-3)


def test_a_processor_with_another_layout_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = layer("int4"), torch.randn(2, 192).bfloat16()
    expected = made(x)
    monkeypatch.setattr(quantized, "_is_layout_of_processor", lambda: False)
    assert relative(made(x), expected) < 6e-3


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("shift", [1, 8, 16])
def test_tensors_may_lie_anywhere(kind: str, shift: int) -> None:
    """As in files: torch's own products crash where memory is not aligned."""
    made, x = layer(kind), torch.randn(2, 192).bfloat16()
    made.set(made.weight.data, made.scale.data.bfloat16())
    expected = made(x)
    for name in ("weight", made.scale_name):
        old = getattr(made, name).data
        room = old.new_empty(old.numel() + shift)
        room[shift:].copy_(old.flatten())
        getattr(made, name).data = room[shift:].view(old.shape)
    assert made.weight.data_ptr() % 64
    assert relative(made(x), expected) < 6e-3
    made.align()
    assert not made.weight.data_ptr() % 64
    assert torch.equal(made(x), expected)
    rows = torch.randn(3 * 192 + shift).bfloat16()[shift:].view(3, 192)
    assert relative(made(rows), made(rows.clone())) < 6e-3


def test_any_number_of_inputs_is_taken() -> None:
    made = layer("int8", 40, 77)
    x = torch.randn(1, 77).bfloat16()
    assert relative(made(x), x.float() @ made.dequantized(torch.float32).T) < 6e-3


def test_eight_bits_err_by_half_a_step_at_most() -> None:
    made, matrix = layer("int8"), weights(128, 192)
    apart = (made.dequantized(torch.float32) - matrix).abs().amax(1)
    assert (apart <= made.scale / 2 + 1e-6).all()
    assert made.weight.abs().amax(1).eq(127).all()


def test_four_bits_err_less_than_nearest_between_the_ends_of_a_group() -> None:
    matrix = weights(64, 256)
    groups = matrix.unflatten(1, (-1, quantized.GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    nearest = (((groups - low) / step).round() * step + low).flatten(1)
    found = layer("int4", 64, 256).dequantized(torch.float32)
    assert relative(found, matrix) < 0.95 * relative(nearest, matrix)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("value", [0.0, -0.75, 3.0e-5])
def test_matrices_of_one_value_stay_what_they_are(kind: str, value: float) -> None:
    made = quantized.KINDS[kind](64, 64)
    made.quantize(torch.full((64, 64), value), torch.float32)
    assert torch.allclose(made.dequantized(torch.float32), torch.tensor(value), rtol=4e-3)


def test_bytes_hold_two_integers_each() -> None:
    q_OI = torch.randint(0, 16, (128, 6), dtype=torch.uint8)
    packed = quantized.pack_int4(q_OI)
    assert packed.shape == (2, 6, 32)
    assert torch.equal(quantized.unpack_int4(packed).transpose(1, 2).reshape(128, 6), q_OI)


def test_the_layout_of_cards_holds_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """And files get their own layout back."""
    monkeypatch.setattr(quantized, "_ROWS_ON_A_CARD", 64)
    made, x = layer("int4"), torch.randn(3, 192)
    held = {name: one.clone() for name, one in made.state_dict().items()}
    matrix, expected = made.dequantized(torch.float32), made(x)
    made.lie_for_cards()
    made.lie_for_cards()
    assert isinstance(made, quantized.CardInt4Linear)
    assert made.weight.shape == (128, 96)
    assert torch.equal(made.dequantized(torch.float32), matrix)
    assert relative(made(x), expected) < 1e-6
    assert all(torch.equal(made.as_stored(name), held[name]) for name in held)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_gradients_pass_through(kind: str) -> None:
    made = layer(kind)
    x = torch.randn(3, 192, requires_grad=True)
    made(x).square().sum().backward()
    matrix = made.dequantized(torch.float32)
    assert x.grad is not None
    assert relative(x.grad, 2 * x.detach() @ matrix.T @ matrix) < 1e-5


def test_a_bias_is_added() -> None:
    bias = nn.Parameter(torch.arange(64.0), requires_grad=False)
    made = Int8Linear(64, 64, bias)
    made.quantize(torch.zeros(64, 64), torch.float32)
    assert torch.equal(made(torch.ones(2, 64)), bias.expand(2, -1))


# -- models ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(build_model: Any, write_reference: Any, tmp_path_factory: Any) -> Path:
    """A checkpoint as the reference writes it, whose layers four bits fit."""
    return write_reference(build_model(llama=SIZES), tmp_path_factory.mktemp("plain"))


def logits(model: NatureLM, alpha: float | list[float] = 1.0) -> Tensor:
    """Log-likelihoods of labels of the same prompt, (rows, labels)."""
    alphas = alpha if isinstance(alpha, list) else [alpha]
    wav = torch.sin(torch.arange(16000) * 0.3)
    prompts = [model.processor.render(PROMPT)] * len(alphas)  # type: ignore[union-attr]
    scores = model.score_labels(prompts, [[wav]] * len(alphas), ["a cat", "dog"], alpha=alphas)
    return torch.tensor([one.log_likelihoods for one in scores])


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.02), ("int4", 0.6)])
def test_a_quantised_model_answers_nearly_alike_at_every_alpha(
    folder: Path, kind: str, most: float, tmp_path: Path
) -> None:
    plain = NatureLM.from_pretrained(folder)
    model = NatureLM.from_pretrained(folder, quantize=kind, dtype="float32")
    assert dtype_names(model) == f"float32+{kind}"
    layers = {type(one) for one in model.language_model.modules()}
    assert Int8Linear in layers  # the head, too
    assert (Int4Linear in layers) == (kind == "int4")
    alphas = [0.0, 0.5, 1.0]
    found = logits(model, alphas)
    assert (found - logits(plain, alphas)).abs().max() < most
    assert torch.allclose(found[1], logits(model, 0.5)[0], atol=1e-4)
    assert not torch.allclose(found[0], found[2], atol=1e-4)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_model_is_written_and_read_as_it_is(
    folder: Path, kind: str, tmp_path: Path
) -> None:
    model = NatureLM.from_pretrained(folder, quantize=kind)
    model.save_pretrained(tmp_path / "small")
    again = NatureLM.from_pretrained(tmp_path / "small")
    assert again.config.quantized == kind
    assert dtype_names(again) == f"bfloat16+float32+{kind}"
    assert torch.equal(logits(again), logits(model))
    assert dtype_names(NatureLM.from_pretrained(tmp_path / "small", quantize=kind)) == dtype_names(
        model
    )
    other = "int4" if kind == "int8" else "int8"
    with pytest.raises(UsageError, match=f"are {kind}, and {other} cannot be made"):
        NatureLM.from_pretrained(tmp_path / "small", quantize=other)
    with pytest.raises(UsageError, match="which nothing can train"):
        again.set_trainable(language_model=True)


def test_an_adapter_acts_beside_quantised_weights_and_is_never_written_into_them(
    folder: Path, tmp_path: Path
) -> None:
    model = NatureLM.from_pretrained(folder, quantize="int8", dtype="float32")
    before = logits(model)
    with fold_if_single_alpha(model, [0.5]):
        assert model.folded is None
    with pytest.raises(UsageError, match=r"stored as torch\.int8.*rounded away"):
        model.fold(0.5)
    model.save_adapter(tmp_path / "adapter")
    name = model.attach_adapter(tmp_path / "adapter", "second")
    attached = next(iter(lora_layers(model.language_model, name).values()))
    assert attached.lora_A[name].weight.dtype == torch.float32
    assert torch.equal(logits(model), before)
    model.detach_adapter(name)
    replaced = NatureLM.from_pretrained(
        folder, quantize="int8", dtype="float32", adapter=tmp_path / "adapter"
    )
    assert torch.allclose(logits(replaced), before, atol=1e-5)


def test_a_head_that_shares_the_embeddings_stays_as_it_is(build_model: Any) -> None:
    model = build_model(llama={**SIZES, "tie_word_embeddings": True}, quantized="int4")
    language_model = model.language_model
    assert type(language_model.lm_head) is nn.Linear
    assert language_model.lm_head.weight is model.llama_embed_tokens.weight


def test_what_four_bits_do_not_fit_has_eight(build_model: Any) -> None:
    model = build_model(llama={"hidden_size": 48, "intermediate_size": 64}, quantized="int4")
    kinds = {one.kind for one in model.modules() if isinstance(one, QuantizedLinear)}
    assert kinds == {"int8"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantized": "int3"}, "quantized must be int8, int4 or null"),
        ({"quantized": None}, r"torch\.int8 \(needed torch\.float32\)"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    NatureLM.from_pretrained(folder, quantize="int8").save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", **change)
    with pytest.raises(NatureLMError, match=message):
        NatureLM.from_pretrained(tmp_path)


# -- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_folder_is_what_quantising_while_loading_gives(
    folder: Path, kind: str, tmp_path: Path
) -> None:
    """In several files, with the vocabulary's new row, and written by the command."""
    result = naturelm(
        *("quantize", folder, "--to", kind, "--output-path", tmp_path / "small"),
        *("--max-shard-size", "50KB"),
    )
    assert result.exit_code == 0
    assert f"weights of {kind[3:]} bits" in result.stdout
    model = NatureLM.from_pretrained(tmp_path / "small")
    expected = NatureLM.from_pretrained(folder, quantize=kind)
    assert model.config.quantized == kind
    assert len(list((tmp_path / "small").glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(model, [0.3, 1.0]), logits(expected, [0.3, 1.0]))
    assert kind in (tmp_path / "small" / "README.md").read_text()
    assert str(tmp_path) not in (tmp_path / "small" / "config.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quantize", "small", "--to", "int4", "--output-path", "o"), "are int8 already"),
        (("quantize", "small", "--to", "int3", "--output-path", "o"), "one of int8, int4"),
        (("quantize", "small", "--to", "int8", "--output-path", "small"), "int8 already"),
        (("merge", "--model", "small", "--alpha", "0.5", "--output-path", "o"), "rounded away"),
    ],
)
def test_what_cannot_be_made_of_quantised_weights_is_refused(
    small: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.parent)
    result = naturelm(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (small.parent / "o").exists()


@pytest.fixture(scope="module")
def small(folder: Path, tmp_path_factory: Any) -> Path:
    """A folder with weights of 8 bits."""
    made: Path = tmp_path_factory.mktemp("quantised") / "small"
    NatureLM.from_pretrained(folder, quantize="int8").save_pretrained(made)
    return made
