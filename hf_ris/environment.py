"""Where a number was made: the revision of this project, the versions of its libraries, the machine."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch


PACKAGES = ("torch", "torchvision", "transformers", "timm", "open_clip_torch", "accelerate", "datasets", "numpy")


def check_launch(mixed_precision: str, accumulation: int | None = None) -> None:
    """What `accelerate launch` hands over in the environment must not contradict what the program is told.

    A precision of "no" is what it hands over when none was asked for, so that alone contradicts nothing. accumulation:
    None where nothing is trained.

    Raises:
        ValueError: it does, or it asks for a way of training that is not supported.
    """
    for name, what in (
        ("DEEPSPEED", "DeepSpeed"),
        ("MEGATRON_LM", "Megatron-LM"),
        ("PARALLELISM_CONFIG", "parallelism_config"),
    ):
        if _is_on(f"ACCELERATE_USE_{name}"):
            raise ValueError(
                f"accelerate is set up for {what}, which is not supported: launch with DDP or FSDP, as the files "
                "ddp.yaml and fsdp.yaml of train/accelerate do."
            )
    if _is_on("ACCELERATE_USE_FSDP") and _is_on("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ValueError(
            "FSDP's efficient loading cannot hand over buffers, as the statistics of batch norms: set "
            "fsdp_cpu_ram_efficient_loading to false, as train/accelerate/fsdp.yaml does."
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", mixed_precision):
        raise ValueError(
            f"accelerate is set up for mixed precision {precision} (ACCELERATE_MIXED_PRECISION), but this is asked to "
            f"run in {mixed_precision}: say the same in both."
        )
    pieces = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    if None not in (pieces, accumulation) and pieces.strip() != str(accumulation):
        raise ValueError(
            f"accelerate is set up for {pieces} accumulation steps (ACCELERATE_GRADIENT_ACCUMULATION_STEPS), but "
            f"training.accumulation is {accumulation}: say the same in both."
        )


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1", "yes", "on")


def git_revision() -> str | None:
    """The commit of this checkout, `+changes` if tracked files differ from it; None where the package is installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed package may lie inside somebody else's checkout
        return None
    head, changes = (
        subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    )
    if head.returncode:
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def hardware() -> dict[str, Any]:
    """What ran: CPU model, cores, threads of torch, GPUs."""
    information = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", information.read_text()) if information.exists() else []
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
