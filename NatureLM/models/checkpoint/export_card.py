"""The model card of a merged model: recipe, and hashes of what it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import NatureLM
from NatureLM.merging.plan import MergePlan, layer_of
from NatureLM.merging.recipe import Recipe, dump_recipe
from NatureLM.models.registry import find

_BLOCK = 4 * 2**20


@dataclass(frozen=True)
class SourceFile:
    """A file that a model was made from: whose it is, name, bytes, SHA-256."""

    part: str
    name: str
    size: int
    sha256: str


def hashed(part: str, path: Path) -> SourceFile:
    """Read a whole file for its hash."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return SourceFile(part, path.name, path.stat().st_size, digest.hexdigest())


def public_name(where: str | Path) -> str:
    """A folder by its last name, without its place on this machine; a Hub id as it is."""
    return Path(where).name if Path(where).exists() else str(where)


def merged_card(
    title: str,
    source: str,
    recipe: Recipe,
    plan: MergePlan,
    files: Sequence[SourceFile],
    adapter: str | None = None,
) -> str:
    """The text of the card; `adapter` is the name of the one that stood for the model's own."""
    entry = find(source)
    license_line = entry.license if entry is not None else f"that of `{source}`"
    parts = [
        "---\nlibrary_name: naturelm-audio\ntags:\n- bioacoustics\n- merge\n---",
        f"# {title}",
        f"Made with `naturelm merge`, naturelm-audio {NatureLM.__version__}, from `{source}`"
        + (f" with the adapter `{adapter}` in place of its own" if adapter else "")
        + ": the adapter is written into the weights of the language model, so that it loads "
        "without PEFT and answers as the unmerged model does at this recipe. Its α is fixed.",
        'Use it with `naturelm infer --model <this folder> --audio-path <recordings> --query "…"` '
        "or `NatureLM.from_pretrained(<this folder>)`.",
        "## Recipe",
        f"```yaml\n{_anonymous(recipe).strip()}\n```",
        _strengths(plan),
        "## Made from",
        "| of | file | bytes | SHA-256 |\n|---|---|---:|---|\n"
        + "\n".join(f"| {f.part} | `{f.name}` | {f.size} | `{f.sha256}` |" for f in files),
        "## License",
        f"License: {license_line}; those of the base language model and of all adapters apply, "
        "too.",
    ]
    return "\n\n".join(parts) + "\n"


def _anonymous(recipe: Recipe) -> str:
    """The recipe as YAML, with the names of the adapters' folders in place of their paths."""
    adapters = [one.model_copy(update={"path": public_name(one.path)}) for one in recipe.adapters]
    return dump_recipe(recipe.model_copy(update={"adapters": adapters}))


def _strengths(plan: MergePlan) -> str:
    """What the recipe comes to: one α, or a table over the layers."""
    values = set(plan.alphas.values())
    if len(values) == 1:
        return f"α = {values.pop():g} in all {len(plan.alphas)} changed matrices."
    kinds = sorted({target.rpartition(".")[2] for target in plan.alphas})
    rows: dict[int | None, dict[str, float]] = {}
    for target, alpha in plan.alphas.items():
        rows.setdefault(layer_of(target), {})[target.rpartition(".")[2]] = alpha
    lines = [f"| layer | {' | '.join(kinds)} |", "|---:" * (len(kinds) + 1) + "|"]
    for layer in sorted(rows, key=lambda one: -1 if one is None else one):
        shown = [f"{rows[layer][kind]:.4g}" if kind in rows[layer] else "" for kind in kinds]
        lines.append(f"| {'' if layer is None else layer} | {' | '.join(shown)} |")
    return "\n".join(["α by layer and module:", "", *lines])
