"""What a step does to the weights, and where: what learns and how fast, devices and processes.

Hidden matrices may be trained by Muon (Jordan et al., 2024), which makes an update of a matrix
orthogonal, so that all its directions learn alike; small models trained from nothing need about
half the steps of AdamW.

Each process has a copy of the model (DDP) or a part of it (FSDP). FSDP is torch's `fully_shard`:
each layer of the language model is a unit of its own and all the rest one more. Weights keep their
precision; autocast works as it does elsewhere. Sharded tensors are `DTensor`s; `local_part`,
`full_tensors` and `copy_full` hide the difference from the rest of the loop.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from NatureLM.config.schema import DatasetsConfig, OptimsConfig, RunConfig
from NatureLM.errors import ConfigError, UsageError
from NatureLM.util import library

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped, unused-ignore]

PARTS = ("beats", "qformer", "projection", "lora", "language_model")
NamedParameters = list[tuple[str, nn.Parameter]]
_NEVER = ("embed", "lm_head", "lora_", "predictor", "relative_attention_bias", "query_tokens")


def part_of(name: str) -> str:
    """The part of the model that a parameter of this name belongs to."""
    if ".lora_" in name:
        return "lora"
    pieces = name.split(".")
    if "beats" in pieces:
        return "beats"
    if "audio_llama_proj" in pieces:
        return "projection"
    if {"ln_audio", "audio_Qformer", "audio_query_tokens"} & set(pieces):
        return "qformer"
    return "language_model"


def trainable(module: nn.Module) -> NamedParameters:
    """Parameters that learn, by name, each once."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def has_decay(parameter: Tensor) -> bool:
    """Weight decay is for matrices: not for norms, biases, gates and learned queries."""
    return sum(size > 1 for size in parameter.shape) >= 2


def make_optimizer(
    parameters: NamedParameters, config: OptimsConfig
) -> torch.optim.AdamW | MuonWithAdamW:
    """AdamW, a group per part and kind; groups carry their `rate` relative to the schedule.

    With `muon_lr`, hidden matrices are trained by Muon.
    """
    unknown = sorted(set(config.part_rates) - set(PARTS))
    if unknown:
        raise ConfigError(
            f"run.optims.part_rates names {', '.join(unknown)}; parts are {', '.join(PARTS)}"
        )
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        muon = config.muon_lr is not None and is_hidden_matrix(name, parameter)
        groups.setdefault((part_of(name), has_decay(parameter), muon), []).append(parameter)
    muon_rate = (config.muon_lr or config.init_lr) / config.init_lr
    settings: list[dict[str, Any]] = [
        {
            "params": members,
            "weight_decay": config.weight_decay if decays else 0.0,
            "rate": config.part_rates.get(part, 1.0) * (muon_rate if muon else 1.0),
            "muon": muon,
        }
        for (part, decays, muon), members in groups.items()
    ]
    betas = (config.beta1, config.beta2)
    if config.muon_lr is not None:
        return MuonWithAdamW(settings, betas)
    return torch.optim.AdamW(settings, lr=config.init_lr, betas=betas)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon may train it: weights between hidden layers, no embeddings, heads or LoRA."""
    return (
        parameter.ndim == 2
        and name.endswith(".weight")
        and not any(part in name for part in _NEVER)
    )


class MuonWithAdamW:
    """Groups whose `muon` is true go to Muon; each parameter has its state in one place."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"run.optims.muon_lr needs torch 2.9 or newer, and this is {torch.__version__}; "
                "set it to null for AdamW alone"
            )
        matrices = [group for group in groups if group["muon"]]
        others = [group for group in groups if not group["muon"]]
        self._members: list[torch.optim.Optimizer] = []
        if matrices:
            self._members.append(torch.optim.Muon(matrices))
        if others:
            self._members.append(torch.optim.AdamW(others, betas=betas))
        self.state: Any = self._members[0].state
        for member in self._members:
            member.state = self.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of both."""
        return [group for member in self._members for group in member.param_groups]

    def step(self) -> None:
        """One update of everything."""
        for member in self._members:
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for member in self._members:
            member.zero_grad(set_to_none=set_to_none)


def learning_rate(step: int, total: int, config: OptimsConfig) -> float:
    """Rate of update `step` (from 0): linear warm-up, then a cosine down to `min_lr`."""
    warmup = min(config.warmup_steps, total)
    if step < warmup:
        share = (step + 1) / warmup
        return config.warmup_start_lr + share * (config.init_lr - config.warmup_start_lr)
    share = (step - warmup + 1) / max(total - warmup, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return config.min_lr + cosine * (config.init_lr - config.min_lr)


def finish_gradients(
    parameters: Iterable[nn.Parameter], scale: Tensor, config: OptimsConfig
) -> Tensor:
    """Scale summed gradients, clip by norm and value as configured; the norm before clipping.

    A parameter that no sample of the step used gets a zero gradient, so that one process and
    several make the same update.
    """
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    parts = [local_part(gradient) for gradient in gradients]
    torch._foreach_mul_(parts, scale)
    norm = total_norm(gradients)
    if config.max_grad_norm is not None:
        torch._foreach_mul_(parts, torch.clamp(config.max_grad_norm / (norm + 1e-6), max=1.0))
    if config.max_grad_value is not None:
        torch._foreach_clamp_min_(parts, -config.max_grad_value)
        torch._foreach_clamp_max_(parts, config.max_grad_value)
    return norm


class MovingAverage:
    """Exponential moving average of parameters; the decay grows over the first steps."""

    def __init__(self, parameters: NamedParameters, decay: float) -> None:
        self.decay = decay
        self._parameters = parameters
        self.values = {name: p.detach().clone() for name, p in parameters}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters:
            local_part(self.values[name]).lerp_(local_part(parameter.detach()), 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Put back what `values` held."""
        for name, value in self.values.items():
            copy_full(value, values[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averaged weights are in the model inside this block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters:
            held, used = local_part(self.values[name]), local_part(parameter.detach())
            current = used.clone()
            used.copy_(held)
            held.copy_(current)


# Devices and processes


def make_accelerator(run: RunConfig) -> Accelerator:
    """Device, precision (bfloat16 where `amp` is set) and processes.

    Raises `UsageError` if accelerate is not installed or the device is not there.
    """
    library("accelerate", "training needs accelerate: pip install 'naturelm-audio[train]'")
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import (  # type: ignore[import-untyped, unused-ignore]
        AcceleratorState,
    )

    if not torch.distributed.is_initialized():
        # A run before this one, in the same process, may have had another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=_on_cpu(run.device),
        mixed_precision="bf16" if run.amp else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.distributed_type.value in ("DEEPSPEED", "MEGATRON_LM"):
        raise UsageError(
            f"training with {accelerator.distributed_type.value} is not supported; "
            "configs/accelerate has files for DDP and FSDP"
        )
    return accelerator


def _on_cpu(device: str) -> bool:
    kind = device.partition(":")[0]
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, True):
        raise UsageError(f"run.device is {device}, and this machine has none; auto takes what is")
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    return kind == "cpu" or (kind == "auto" and not any(there.values()))


def asks_for_fsdp() -> bool:
    """Whether the launcher asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _wants_sharding(accelerator: Accelerator) -> bool:
    """Whether weights are sharded; the first version of FSDP is refused with a `UsageError`."""
    if not asks_for_fsdp() or accelerator.num_processes == 1:
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError(
            "the launcher asks for the first version of FSDP, and only the second is supported: "
            "fsdp_version: 2, as in configs/accelerate/fsdp.yml"
        )
    return True


def check_shardable(accelerator: Accelerator, run: RunConfig, datasets: DatasetsConfig) -> None:
    """Raise ConfigError for settings that FSDP cannot follow."""
    if not _wants_sharding(accelerator):
        return
    if run.optims.muon_lr is not None:
        raise ConfigError("run.optims.muon_lr needs whole matrices, which FSDP splits up")
    if datasets.questions_per_clip > 1:
        raise ConfigError(
            "datasets.questions_per_clip is above 1: batches of different processes would pass the "
            "language model unequally often, and FSDP needs them to keep step"
        )


class DDP:
    """Every process has the whole model; gradients are averaged (also the case of one process).

    module: what is trained; it gives what the module that it wraps gives
    evaluated: the same without gradients
    """

    def __init__(self, accelerator: Accelerator, module: nn.Module) -> None:
        self._accelerator = accelerator
        self.module: Any = accelerator.prepare_model(module)
        self.evaluated = module

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch: processes exchange gradients after the last one only."""
        return nullcontext() if last else self._accelerator.no_sync(self.module)

    def summon_full_params(self) -> AbstractContextManager[None]:
        """Every process has all weights, always."""
        return nullcontext()


class FSDP:
    """Every process has a part of each weight; whole ones exist where and while they are used."""

    def __init__(self, accelerator: Accelerator, module: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        root = _RootUnit(module, accelerator)
        self._units: list[Any] = [*split_units(module), root]
        for unit in self._units:
            fully_shard(unit, mesh=mesh, reshard_after_forward=unit is not root)
        inside = {id(p) for unit in self._units[:-1] for p in unit.parameters()}
        root.own_parameters = [
            name for name, p in module.named_parameters() if p.requires_grad and id(p) not in inside
        ]
        self.module = self.evaluated = root

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch: processes exchange gradients after the last one only."""
        self._units[-1].set_requires_gradient_sync(last)
        return nullcontext()

    @contextmanager
    def summon_full_params(self) -> Iterator[None]:
        """Every process holds all weights within the block, and need not keep step with others."""
        self._units[-1]._get_fsdp_state()._lazy_init()  # of the root, before any unit is used
        for unit in self._units[:-1]:
            unit.set_reshard_after_forward(False, recurse=False)
        for unit in self._units:
            unit.unshard()
        try:
            yield
        finally:
            for unit in self._units:
                unit.reshard()
            for unit in self._units[:-1]:
                unit.set_reshard_after_forward(True, recurse=False)


class _RootUnit(nn.Module):
    """The root unit. Its weights all take part in the loss of every batch, if only with nothing.

    Processes exchange the gradients of a unit in one piece, so the same weights must have one on
    each, whatever its batch used (text alone, or fewer layers of the encoder).
    """

    def __init__(self, module: nn.Module, accelerator: Accelerator) -> None:
        super().__init__()
        self.module = module
        self.own_parameters: list[str] = []
        self._autocast = accelerator.autocast

    def forward(self, batch: Any) -> Any:
        with self._autocast():
            out = self.module(batch)
            if not torch.is_grad_enabled():
                return out
            own = map(self.module.get_parameter, self.own_parameters)
            return out._replace(loss=out.loss + sum(0.0 * one.sum() for one in own))


def split_units(module: nn.Module) -> list[nn.Module]:
    """The layers of the language model, by the names that transformers gives for this purpose."""
    names = {
        name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()
    }
    return [part for part in module.modules() if type(part).__name__ in names]


def parallelize(accelerator: Accelerator, module: nn.Module) -> DDP | FSDP:
    """DDP or FSDP, as the launcher asked for. FSDP replaces parameters: ask for them afterwards."""
    return (FSDP if _wants_sharding(accelerator) else DDP)(accelerator, module)


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be sharded, in the same memory."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def full_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The whole tensors, one after the other, where `keep` is set; all processes must call it."""
    found = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            tensor = cast(Any, tensor).full_tensor()
            tensor = tensor.cpu() if keep else tensor
        if keep:
            found[name] = tensor
    return found


def distribute_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, sharded as `like` is, on its device."""
    value = value.to(like.device)
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(value, mesh, placements, src_data_rank=None)


@torch.no_grad()
def copy_full(target: Tensor, value: Tensor) -> None:
    """Overwrite a tensor with a whole one."""
    local_part(target).copy_(local_part(distribute_like(value, target)))


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all tensors together, over all processes where they are sharded."""
    norm = nn.utils.get_total_norm([local_part(tensor) for tensor in tensors])
    if not any(map(is_sharded, tensors)):
        return norm
    squared = norm.square()
    torch.distributed.all_reduce(squared)
    return squared.sqrt()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is sharded over processes."""
    return hasattr(tensor, "full_tensor")
