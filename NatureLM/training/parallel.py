"""How a run computes: device and precision, and processes that share the work.

Each process has a copy of the model (DDP) or a part of it (FSDP). FSDP is torch's `fully_shard`:
each layer of the language model is a unit of its own and all the rest one more. Weights keep their
precision; autocast works as it does elsewhere. Sharded tensors are `DTensor`s; `local_part`,
`full_tensors` and `copy_full` hide the difference from the rest of the loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from NatureLM.config.schema import DatasetsConfig, RunConfig
from NatureLM.errors import ConfigError, UsageError
from NatureLM.util import library

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped, unused-ignore]


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


def _wants_sharding(accelerator: Accelerator) -> bool:
    """Whether the launcher asked for FSDP; its first version is refused with a `UsageError`."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or accelerator.num_processes == 1:
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
    """Every process has the whole model; gradients are averaged (also the case of one process)."""

    def __init__(self, accelerator: Accelerator, module: nn.Module) -> None:
        self._accelerator = accelerator
        self._wrapped: Any = accelerator.prepare_model(module)
        self.evaluated = module

    def __call__(self, batch: Any) -> Any:
        """The module's output, differentiable."""
        return self._wrapped(batch)

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch: processes exchange gradients after the last one only."""
        return nullcontext() if last else self._accelerator.no_sync(self._wrapped)

    def summon_full_params(self) -> AbstractContextManager[None]:
        """Every process has all weights, always."""
        return nullcontext()


class FSDP:
    """Every process has a part of each weight; whole ones exist where and while they are used."""

    def __init__(self, accelerator: Accelerator, module: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._accelerator = accelerator
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        self._root = _RootUnit(module)
        self._units: list[Any] = [*split_units(module), self._root]
        for unit in self._units:
            fully_shard(unit, mesh=mesh, reshard_after_forward=unit is not self._root)
        inside = {id(p) for unit in self._units[:-1] for p in unit.parameters()}
        self._root.own_parameters = [
            name for name, p in module.named_parameters() if p.requires_grad and id(p) not in inside
        ]
        self.evaluated: nn.Module = self._root

    def __call__(self, batch: Any) -> Any:
        """The module's output, differentiable."""
        with self._accelerator.autocast():
            return self._root(batch)

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

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.own_parameters: list[str] = []

    def forward(self, batch: Any) -> Any:
        out = self.module(batch)
        if not torch.is_grad_enabled():
            return out
        nothing = sum(0.0 * self.module.get_parameter(name).sum() for name in self.own_parameters)
        return out._replace(loss=out.loss + nothing)


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
