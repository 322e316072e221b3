"""A model as a folder whose language model has weights of 8 or 4 bits.

Tensors go from the source files to the new ones a file at a time, so that memory holds one file of
the result at most. All but the rounded matrices, the adapter among them, is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from NatureLM import __version__
from NatureLM.errors import UsageError
from NatureLM.models.checkpoint.export import (
    HOW_TO_USE,
    card_text,
    check_output,
    check_space,
    commit_lines,
    license_of,
    plain_tensor,
    public_name,
    write_model,
)
from NatureLM.models.checkpoint.load import (
    build_on_meta,
    check_weights,
    choose_tensors,
    fit_rows,
    open_checkpoint,
)
from NatureLM.models.checkpoint.tensors import (
    LazyTensor,
    StoredTensor,
    TensorRef,
    tensor_refs,
)
from NatureLM.models.modeling import NatureLM
from NatureLM.models.quantized import (
    QUANTIZERS,
    QuantizedLinear,
    check_quantization,
    quantize_layers,
)
from NatureLM.models.registry import named

_CPU = torch.device("cpu")
_SCALES = torch.bfloat16  # holds them exactly


def quantize_checkpoint(
    path_or_id: str | Path,
    output: str | Path,
    kind: str,
    *,
    llama_path: str | Path | None = None,
    revision: str | None = None,
    weights_hash: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str | int = "2GB",
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a model with the weights of its language model as integers of 8 or 4 bits.

    kind: int8 or int4
    dtype: of all other weights; by default each keeps the one it is stored in
    path_or_id, llama_path, revision, weights_hash, overwrite, report: see `export_merged`

    Raises UsageError for an output that cannot be written and a model that is quantised already,
    CheckpointError for sources that do not fit. A run that is broken off leaves nothing behind.
    """
    chosen_kind = check_quantization(kind)
    reader = open_checkpoint(path_or_id, llama_path=llama_path, revision=revision)
    if reader.config.quantized is not None:
        raise UsageError(
            f"the weights of {path_or_id} are {reader.config.quantized} already; name the model "
            "that they were quantised from"
        )
    target = check_output(Path(output), overwrite, sources=(reader.checkpoint, reader.base))
    model = build_on_meta(NatureLM, reader.config, reader.tokenizer, reader.most_modules)
    chosen = choose_tensors(reader, tensor_refs(model), reader.stored)
    files = {tensor.path for tensor in chosen.values()}
    check_weights([reader.checkpoint / "config.json", *files], weights_hash, reader.checkpoint)
    quantize_layers(model.language_model, chosen_kind)
    model.config.quantized = chosen_kind
    tensors = _tensors(tensor_refs(model), chosen, dtype)
    check_space(target.parent, sum(one.nbytes for one in tensors.values()))
    source = public_name(named(path_or_id, revision))
    card = _card(target.name, source, chosen_kind, commit_lines(reader))
    write_model(target, model, reader, tensors, card, max_shard_size, report)


def _tensors(
    refs: Sequence[TensorRef], chosen: Mapping[str, StoredTensor], dtype: torch.dtype | None
) -> dict[str, LazyTensor]:
    """How each tensor of the quantised model is made from the stored ones."""
    tensors: dict[str, LazyTensor] = {}
    rounded: dict[int, _Rounded] = {}
    for ref in refs:
        layer, attribute = ref.holders[0]
        if isinstance(layer, QuantizedLinear) and attribute != "bias":
            one = rounded.setdefault(id(layer), _Rounded(layer))
            if attribute == "weight":
                one.source = chosen[ref.stored_name]
            kind = ref.tensor.dtype if attribute == "weight" else _SCALES
            tensors[ref.stored_name] = LazyTensor(kind, ref.shape, one.maker(attribute))
        elif ref.stored_name in chosen:
            tensors[ref.stored_name] = plain_tensor(ref, chosen[ref.stored_name], dtype)
    return tensors


class _Rounded:
    """The two tensors of a layer, made together when the first of them is written."""

    source: StoredTensor

    def __init__(self, layer: QuantizedLinear) -> None:
        self._layer = layer
        self._made: dict[str, Tensor] = {}

    def maker(self, attribute: str) -> Callable[[], Tensor]:
        """Makes one of them; it is not kept."""

        def make() -> Tensor:
            if attribute not in self._made:
                layer = self._layer
                matrix = self.source.read(self.source.dtype, _CPU)
                matrix = fit_rows(matrix, (layer.out_features, layer.in_features))
                weight, scale = QUANTIZERS[layer.kind](matrix)
                self._made = {"weight": weight, layer.scale_name: scale.to(_SCALES)}
            return self._made.pop(attribute)

        return make


def _card(title: str, source: str, kind: str, commits: Sequence[str]) -> str:
    """The text of the model card; it names no place on this machine."""
    return card_text(
        title,
        f"Made with `naturelm quantize --to {kind}`, naturelm-audio {__version__}, from "
        f"`{source}`: the linear layers of the language model have weights of {kind[3:]} bits. "
        "The audio encoder, the embeddings and the adapter are as they were, and α works as "
        "before. Answers and confidences differ a little from those of the original.",
        HOW_TO_USE,
        *commits,
        f"License: {license_of(source)}; that of the base language model applies, too.",
        tags=("quantized",),
    )
