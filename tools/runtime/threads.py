"""Tasks side by side in one process."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Stopped(Exception):
    """Another task has failed, or the user has interrupted."""


def side_by_side(tasks: Sequence[Callable[[threading.Event], Result]], at_once: bool = True) -> list[Result]:
    """The results of tasks, which run at once and share PyTorch's threads.

    Small operations keep one thread each busier than several threads together. PyTorch's own generators, which all
    threads share, have their states of before in the end. If a task fails, its error is raised when the others have
    ended; each gets an event, and is to raise `Stopped` when it is set.

    Args:
        at_once: if false, one after the other.
    """
    threads, with_gradients, stop = torch.get_num_threads(), torch.is_grad_enabled(), threading.Event()
    workers = min(len(tasks), threads) if at_once else 1
    if workers < 2:
        return [task(stop) for task in tasks]

    def run(task: Callable[[threading.Event], Result]) -> Result:
        with torch.set_grad_enabled(with_gradients):  # each thread has a setting of its own
            return task(stop)

    torch.set_num_threads(threads // workers)
    try:
        with torch.random.fork_rng([]), ThreadPoolExecutor(workers) as pool:
            try:
                futures = [pool.submit(run, task) for task in tasks]
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
    finally:
        torch.set_num_threads(threads)
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, Stopped):
            raise error
    return [future.result() for future in futures]
