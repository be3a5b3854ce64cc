"""Neurons in other processes: forked, spawned, and workers of a DataLoader."""

import multiprocessing
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from models import Gaussian, NoisyLIF, noise_generator
from models.kernels import cpu
from models.kernels.cpu import UPDATES_PER_THREAD


class Spikes(Dataset):
    """Items that are made by neurons, as a data set of spike trains would."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return spike_count(index)


def spike_count(seed):
    """Just enough neurons for two threads of ours, too few for two of PyTorch's (which a fork may stop)."""
    assert 2 * UPDATES_PER_THREAD == 4 * 8 * 1024
    with noise_generator(torch.Generator().manual_seed(seed)):
        return NoisyLIF(Gaussian(0.3))(torch.full((4, 8, 1024), 0.9)).sum().item()


def send(queue, seed):
    queue.put(spike_count(seed))


@pytest.fixture
def two_threads():
    """The parent has used its pool of threads before it forks: the case in which GCC's OpenMP would wait for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    spike_count(0)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_computes_what_the_parent_does(method, two_threads):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=send, args=(queue, 3))
    child.start()
    try:
        assert queue.get(timeout=600) == spike_count(3)
        child.join()
        assert child.exitcode == 0
    finally:
        child.kill()


def send_of_first_use(queue, seed):
    cpu.kernel.cache_clear()  # compiled, checked and first used here
    send(queue, seed)


@pytest.mark.parametrize("used_before", [False, True])
def test_a_forked_process_may_be_the_first_to_use_a_kernel(used_before, two_threads):
    expected = spike_count(3)
    if not used_before:
        cpu.kernel.cache_clear()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=send_of_first_use, args=(queue, 3)) for _ in range(2)]
    for child in children:
        child.start()
    try:
        assert [queue.get(timeout=600) for _ in children] == [expected] * 2
        for child in children:
            child.join()
            assert child.exitcode == 0
    finally:
        for child in children:
            child.kill()


def test_data_loader_workers(two_threads):
    loader = DataLoader(Spikes(), batch_size=2, num_workers=2)
    assert torch.cat(list(loader)).tolist() == [spike_count(index) for index in range(4)]


def test_the_first_use_while_python_ends(repository):
    code = """
import atexit, torch
from models import LIF
atexit.register(lambda: print(LIF()(torch.rand(3, 2, 4)).shape))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert done.stdout == "torch.Size([3, 2, 4])\n", done.stderr
