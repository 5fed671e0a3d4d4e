"""Where to compute, and in which precision."""

import os
import re

import torch


def choose_device(name: str) -> torch.device:
    """The device of a `--device` flag: `auto` takes the first GPU when there is one.

    Of several processes on a machine (torchrun) each takes a GPU of its own, by LOCAL_RANK.
    Raises: ValueError that says what torch sees.
    """
    several, found = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1, torch.cuda.device_count()
    if several and name.startswith("cuda:"):
        raise ValueError(f"--device {name}: several processes cannot share it; use --device auto or --device cpu")
    if name == "cuda" or (name == "auto" and found):
        name = f"cuda:{os.environ['LOCAL_RANK'] if several else 0}"
    elif name == "auto":
        name = "cpu"
    if not re.fullmatch(r"cpu|cuda:\d+", name):
        raise ValueError(f"--device {name}: use auto, cpu or cuda:N")
    if name != "cpu" and int(name.removeprefix("cuda:")) >= found:
        seen = f"{found} GPU{'s' * (found > 1)} (cuda:0 to cuda:{found - 1})" if found else "no GPU"
        raise ValueError(f"--device {name}: torch sees {seen}; use --device auto or --device cpu")
    return torch.device(name)


def autocast(device: torch.device, enabled: bool):
    """bfloat16 arithmetic inside linear layers; sums, losses and samples stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
