"""Where to compute: the device, and several processes, started by torchrun: how they meet, share work and agree.

A program started by plain `python` is the case of one process, on the same lines of code.
"""

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

WITHOUT_BUFFERS = next(name for name in ("forward_sync_buffers", "broadcast_buffers")  # the latter in torch 2.11
                       if name in inspect.signature(DistributedDataParallel).parameters)
STARTED_BY_TORCHRUN = {"RANK", "WORLD_SIZE", "MASTER_ADDR"}  # what it leaves in the environment


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


@dataclass(frozen=True)
class Processes:
    """All processes of a program, seen from one of them.

    rank: its number among them; group: for everything but gradients, always on the CPU (gloo), so that no GPU waits.
    """

    rank: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that prints, logs and saves."""
        return self.rank == 0

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the processes; weights and buffers become those of the first one."""
        if self.count == 1:
            return module
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
        return DistributedDataParallel(module, **{WITHOUT_BUFFERS: False})

    def add(self, values: Tensor) -> Tensor:
        """Sum over the processes, in float64 where there are several."""
        if self.count == 1:
            return values
        total = values.detach().to("cpu", torch.float64, copy=True)
        dist.all_reduce(total, group=self.group)
        return total.to(values.device)

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """The largest value of each number over the processes."""
        if self.count == 1:
            return numbers
        found = torch.tensor(numbers)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.group)
        return tuple(found.tolist())

    def join_rows(self, values: Tensor) -> Tensor:
        """The rows of all processes, those of the first one first: (rows, ...) -> (all rows, ...)."""
        if self.count == 1:
            return values
        parts = [None] * self.count
        dist.all_gather_object(parts, values.detach().cpu().clone(), group=self.group)
        return torch.cat(parts).to(values.device)

    def first_decides(self, decide: Callable):
        """The result of `decide()`, called by the first process alone, or its ValueError or OSError, on all of them."""
        if self.count == 1:
            return decide()
        decided = [None, None]
        if self.first:
            try:
                decided[0] = decide()
            except (ValueError, OSError) as error:
                decided[1] = error
        dist.broadcast_object_list(decided, src=0, group=self.group)
        if decided[1]:
            raise decided[1]
        return decided[0]


SINGLE_PROCESS = Processes()


def rank_from_environment() -> int:
    """The number of this process among those that torchrun started; 0 without torchrun."""
    return int(os.environ["RANK"]) if STARTED_BY_TORCHRUN <= os.environ.keys() else 0


def join(device: torch.device) -> Processes:
    """Join the process group of torchrun, if it started this program: NCCL between GPUs, gloo between CPUs.

    The key prefix holds the number of the attempt, so that after a restart no addresses of ended processes are read.
    """
    if not STARTED_BY_TORCHRUN <= os.environ.keys() or os.environ["WORLD_SIZE"] == "1":
        return SINGLE_PROCESS
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, count = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=count)
    return Processes(rank, count, dist.new_group(backend="gloo") if device.type == "cuda" else dist.group.WORLD)


def is_lost_peer(error: Exception) -> bool:
    """Whether an error says that another process is gone."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error).lower())


def leave() -> None:
    """Leave the process group, at the end of a program without an error."""
    if dist.is_initialized():
        dist.destroy_process_group()
