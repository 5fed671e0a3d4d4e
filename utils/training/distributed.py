"""Several processes, started by torchrun: how they meet, share work and agree.

A program started by plain `python` is the case of one process, on the same lines of code.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

WITHOUT_BUFFERS = next(name for name in ("forward_sync_buffers", "broadcast_buffers")  # the latter in torch 2.11
                       if name in inspect.signature(DistributedDataParallel).parameters)
STARTED_BY_TORCHRUN = {"RANK", "WORLD_SIZE", "MASTER_ADDR"}  # what it leaves in the environment


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
