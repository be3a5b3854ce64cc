"""The processes that train one network together, as torchrun starts them."""

import contextlib
import dataclasses
import datetime
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tools.errors import UserError

LONGEST_WAIT = datetime.timedelta(hours=3)  # for another process, which may have to download or decode all data
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a training run, as seen from one of them; without torchrun there is only one.

    All processes must call the same methods in the same order, except for `is_first` and `part`.
    """

    rank: int = 0  # of this process
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def part(self, number: int) -> Tensor:
        """Indices of this process's share of `number` samples: consecutive, and as even as possible.

        UserError if there are fewer samples than processes.
        """
        if number < self.count:
            raise UserError(f"{number} samples are too few for {self.count} processes")
        return torch.arange(number * self.rank // self.count, number * (self.rank + 1) // self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise sum over the processes."""
        if self.count == 1:
            return tensor
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The largest value over the processes, for each of some integers."""
        if self.count == 1:
            return list(numbers)
        tensor = torch.tensor(numbers)  # on the CPU, so that nobody waits for an accelerator
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def concatenated(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The tensors of all processes, concatenated along `dim`, in which their sizes may differ."""
        if self.count == 1:
            return tensor
        return torch.cat(self.gathered(tensor.cpu()), dim).to(tensor.device)

    def gathered(self, value: T) -> list[T]:
        """The values of all processes (plain data or CPU tensors), in the order of their ranks."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process; the others do not call it."""
        if self.count == 1:
            return make()
        values = [make() if self.is_first else None]
        dist.broadcast_object_list(values)
        return values[0]

    @torch.no_grad()
    def share(self, net: nn.Module) -> None:
        """Copy the weights and buffers of the first process's network to all others."""
        if self.count > 1:
            for tensor in net.state_dict().values():
                dist.broadcast(tensor, 0)

    def replicated(self, net: nn.Module, device: torch.device) -> nn.Module:
        """The network to train, whose gradients are averaged over the processes."""
        if self.count == 1:
            return net
        if device.type == "cuda":
            return nn.parallel.DistributedDataParallel(net, [device])
        # Looking for unused parameters keeps the order in which gradients are summed. Otherwise it changes after the
        # first step, and a resumed run would round sums differently.
        return nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)

    @contextlib.contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Context manager: one process of each machine runs the block first; the others then find its files."""
        waits = self.count > 1 and os.environ.get("LOCAL_RANK", "0") != "0"
        if waits:
            dist.barrier()
        yield
        if self.count > 1 and not waits:
            dist.barrier()


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """Context manager: connect the processes that torchrun has started, if it has; `device` is that of --device.

    Tensors on CUDA devices are exchanged by NCCL, those on the CPU by Gloo. Each process of a machine takes its own
    CUDA device; UserError if there are too few.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    backend = "gloo"
    if torch.cuda.is_available() and device != "cpu":
        here, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > devices:
            why = f"{here} processes need a CUDA device each, but there are {devices}"
            raise UserError(f"{why}; start fewer, or use --device cpu")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=LONGEST_WAIT, **_fresh_store())
    yield Processes(dist.get_rank(), dist.get_world_size())
    # Not after an error, when other processes may wait for an exchange. A thread of Gloo releases the tensors of the
    # last exchange when it next runs, which nothing tells; if it did so while Python shuts down, the process would
    # abort (PyTorch pull request 179291). On a busy machine a barrier alone is sometimes too short.
    dist.barrier()
    time.sleep(1)
    dist.destroy_process_group()


def _fresh_store():
    """Arguments of `init_process_group` for processes that torchrun may restart on one machine.

    Its store keeps the addresses of earlier processes, which would be tried again (PyTorch issue 135712), so each
    restart gets its own prefix. On several machines the counts of restarts may differ: there, set
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    count, most = restarts()
    if not most or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        return {}
    store, rank, size = next(dist.rendezvous("env://"))
    return dict(store=dist.PrefixStore(f"restart{count}", store), rank=rank, world_size=size)


def restarts() -> tuple[int, int]:
    """How often torchrun has restarted these processes, and how often it may."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
