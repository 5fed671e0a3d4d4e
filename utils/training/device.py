"""Where to compute, and in which precision."""

import os

import torch


def choose_device(name: str) -> torch.device:
    """The device of a `--device` flag: `auto` takes the first GPU when there is one.

    Of several processes on a machine (torchrun) each takes a GPU of its own, by LOCAL_RANK.
    Raises: ValueError that says what torch sees.
    """
    several = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
    if name == "auto" or (name == "cuda" and several):
        if not several or not torch.cuda.is_available():
            return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    elif several and name.startswith("cuda:"):
        raise ValueError(f"--device {name}: several processes cannot share it; use --device auto or --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: use auto, cpu or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: use auto, cpu or cuda:N")
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        seen = f"{found} GPU{'s' * (found > 1)} (cuda:0 to cuda:{found - 1})" if found else "no GPU"
        raise ValueError(f"--device {name}: torch sees {seen}; use --device auto or --device cpu")
    return device


def autocast(device: torch.device, enabled: bool):
    """bfloat16 arithmetic inside linear layers; sums, losses and samples stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
