"""What decides the answers of an experiment, as plain values that two runs are compared by."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from NatureLM.experiments.plan import Plan
from NatureLM.outputs import RunSettings

if TYPE_CHECKING:
    from NatureLM.config import GenerateConfig
    from NatureLM.models import NatureLM


def run_settings(model: NatureLM, plan: Plan, generate: GenerateConfig) -> RunSettings:
    """The settings of a run; batch size, threads, device and paths are none, they change nothing.

    What is asked of which samples is none either: cells have names of their own, so a run may be
    gone on with that asks for more.
    """
    return RunSettings(
        {
            "weights": weights_of(model),
            "dtype": "+".join(sorted({_name(one.dtype) for one in model.parameters()})),
            "prompt_template": model.processor.prompt_template if model.processor else None,
            "generate": generate.model_dump(exclude={"merging_alpha"}),
        },
        asked={
            "lora_scales": list(plan.alphas),
            "queries": None if plan.queries is None else list(plan.queries),
            "datasets": dict(_counts(plan)),
            "plan": plan.fingerprint(),
        },
    )


def weights_of(model: NatureLM) -> str:
    """Name of exact weights: that of the files they came from, or of the tensors themselves."""
    if model.fingerprint is not None:
        return model.fingerprint
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _counts(plan: Plan) -> dict[str, int]:
    """How many samples of each dataset."""
    counts: dict[str, int] = {}
    for sample in plan.samples:
        counts[sample.dataset_name] = counts.get(sample.dataset_name, 0) + 1
    return counts
