"""The processes that train one network together, as torchrun starts them."""

import contextlib
import dataclasses
import datetime
import os

import torch
import torch.distributed as dist

LONGEST_WAIT = datetime.timedelta(hours=3)  # of one process for another, as while that decodes or downloads all data


@dataclasses.dataclass(frozen=True)
class Processes:
    """All processes of a training, seen from one of them; without torchrun there is one, and nothing to exchange.

    Every method but `part` is to be called by all of them, in the same order.

    Args:
        rank: number of this process.
        count: of all.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self):
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def part(self, number):
        """The indices of this process's share of `number` things: all in order, none twice, as even as can be."""
        if number < self.count:
            raise ValueError(f"{number} samples are too few for {self.count} processes")
        return torch.arange(number * self.rank // self.count, number * (self.rank + 1) // self.count)

    def sum(self, tensor):
        """The sum of each element over the processes."""
        if self.count == 1:
            return tensor
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def largest(self, numbers):
        """The largest of each of some integers over the processes, as a list."""
        if self.count == 1:
            return list(numbers)
        tensor = torch.tensor(numbers)  # on the CPU: an accelerator would have to be waited for
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def concatenated(self, tensor, dim=0):
        """The processes' tensors behind each other; they may differ in size along `dim`."""
        if self.count == 1:
            return tensor
        sizes = self.gathered(tensor.shape[dim])
        missing = max(sizes) - tensor.shape[dim]
        tensor = tensor.transpose(0, dim)
        padded = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)]).transpose(0, dim)

    def gathered(self, value):
        """The plain data or CPU tensors of all processes, as a list."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_first(self, make):
        """What a function without arguments returns in the first process; the others do not call it."""
        if self.count == 1:
            return make()
        values = [make() if self.is_first else None]
        dist.broadcast_object_list(values)
        return values[0]

    @torch.no_grad()
    def share(self, net):
        """Give all processes the weights and buffers of the first one's network."""
        if self.count > 1:
            for tensor in net.state_dict().values():
                dist.broadcast(tensor, 0)

    def replicated(self, net, device):
        """The network as it is to be trained: its gradients are averaged over the processes."""
        if self.count == 1:
            return net
        if device.type == "cuda":
            return torch.nn.parallel.DistributedDataParallel(net, [device])
        # Looking for unused parameters keeps gradients in one order. Else that changes after the first step, and a
        # resumed run, whose first step is another one, would round its sums differently.
        return torch.nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)

    @contextlib.contextmanager
    def first_goes_ahead(self):
        """The first process of each machine runs the block alone; then the others do, and find its files."""
        waits = self.count > 1 and os.environ.get("LOCAL_RANK", "0") != "0"
        if waits:
            dist.barrier()
        yield
        if self.count > 1 and not waits:
            dist.barrier()


@contextlib.contextmanager
def joined(device="auto"):
    """Context manager: join the processes that torchrun started, if it did.

    Tensors on CUDA devices are exchanged by NCCL, those on the CPU by Gloo. Each process takes the CUDA device of its
    number on its machine.

    Args:
        device: as --device has it.

    Yields:
        `Processes`.

    Raises:
        ValueError: if there are more processes than CUDA devices for them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    backend = "gloo"
    if torch.cuda.is_available() and device != "cpu":
        here, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > devices:
            raise ValueError(f"{here} processes need a CUDA device each, and there are {devices}; or --device cpu")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=LONGEST_WAIT, **_fresh_store())
    yield Processes(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()  # not after an error: the others may wait in an exchange


def _fresh_store():
    """Arguments that let processes that torchrun restarted on one machine find each other.

    The agent's store still has the addresses of those before, and they would be tried; see PyTorch's issue 135712. On
    many machines the counts of restarts need not agree: there the store is not to be shared, which is a setting of
    torchrun itself (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1).
    """
    count, most = restarts()
    if not most or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        return {}
    store, rank, size = next(dist.rendezvous("env://"))
    return dict(store=dist.PrefixStore(f"restart{count}", store), rank=rank, world_size=size)


def restarts():
    """How often torchrun has restarted these processes, and how often it may: (count, most)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
