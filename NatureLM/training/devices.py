"""Where a run computes: device, precision, processes, and the seed of each micro-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from NatureLM.config.training import RunConfig
from NatureLM.errors import UsageError
from NatureLM.training.seeding import derive_seed

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped, unused-ignore]


def make_accelerator(run: RunConfig) -> Accelerator:
    """Device, precision (bfloat16 where `amp` is set) and processes.

    Raises `UsageError` if accelerate is not installed or the device is not there.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import (  # type: ignore[import-untyped, unused-ignore]
            AcceleratorState,
        )
    except ImportError:
        raise UsageError("training needs accelerate: pip install 'naturelm-audio[train]'") from None
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


def seed_step(seed: int, step: int, micro_batch: int, process: int) -> None:
    """Dropout and layer drop of a micro-batch depend on where it is in the run only."""
    torch.manual_seed(derive_seed(seed, "step", step, micro_batch, process))
