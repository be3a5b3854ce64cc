"""A training step as one CUDA graph."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3  # ordinary steps before the capture, in which libraries, kernels and optimisers set up what they keep
Batch = Sequence[Tensor]
Results = tuple[Any, ...]


class GraphedStep:
    """A training step that becomes a CUDA graph: the device then runs all its kernels without waiting for launches.

    The first calls are ordinary steps. The next one captures the step, and it and all later ones replay it, with the
    same results: noise comes from the device's default generator, which goes on at each replay as in an ordinary step.
    A call with batches of other shapes than those captured is an ordinary step. The step must not wait for the device.

    Not `torch.cuda.make_graphed_callables`: that makes graphs of a module's forward and of its backward pass, and would
    leave out the loss, the norm of the gradient and the optimiser, whose launches are as many.

    Args:
        step: batches -> results, tensors on the device and plain numbers: forward and backward passes, and
            `optimizer.step()`; it must begin with `optimizer.zero_grad(set_to_none=True)`.
        optimizer: learning rates may change between the steps, and are numbers there, so that schedules and
            checkpoints need not know of the graph.
        device: of parameters and batches.
    """

    def __init__(
        self, step: Callable[[Sequence[Batch]], Results], optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self.step = step
        self.optimizer = optimizer
        self.device = device
        self.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self.ordinary_steps = 0
        self.batches: Sequence[Batch] = ()  # which the graph reads
        self.replay: Callable[[], Results] | None = None

    def __call__(self, batches: Sequence[Batch]) -> Results:
        """Take one step; tensors among the results are the caller's own."""
        for rate, group in zip(self.rates, self.optimizer.param_groups):
            rate.fill_(group["lr"])
        if self.replay is None and self.ordinary_steps == WARM_UP:
            self.batches = [[tensor.clone() for tensor in batch] for batch in batches]
            with self._with_rates_on_device():
                self.replay = self.captured(lambda: self.step(self.batches))
        if self.replay is None or _shapes(batches) != _shapes(self.batches):
            self.ordinary_steps += 1
            with self._with_rates_on_device():
                return self.aside(lambda: self.step(batches))
        for held, given in zip(self.batches, batches):
            for tensor, now in zip(held, given):
                tensor.copy_(now)
        return tuple(result.clone() if isinstance(result, Tensor) else result for result in self.replay())

    def aside(self, run: Callable[[], Results]) -> Results:
        """Run in the stream of the capture: autograd remembers the stream in which it first saw a parameter."""
        before = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            results = run()
        before.wait_stream(self._stream)
        return results

    def captured(self, run: Callable[[], Results]) -> Callable[[], Results]:
        """A function that does what `run` does, and gives the tensors that hold its results."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self._stream):
            results = run()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters]

        def replay() -> Results:
            with torch.cuda.device(self.device):
                graph.replay()
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient  # an ordinary step in between has put its own there
            return results

        return replay

    @functools.cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    @contextlib.contextmanager
    def _with_rates_on_device(self) -> Iterator[None]:
        """Within it, the optimiser reads its learning rates, and counts its steps, on the device."""
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        for state in self.optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(self.device)
        for rate, group in zip(self.rates, groups):
            group.update(lr=rate, capturable=True)
        try:
            with warnings.catch_warnings():  # that a step is not captured, as the first ones are
                warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
                yield
        finally:
            for kept, group in zip(before, groups):
                group.clear()
                group.update(kept)


def _shapes(batches: Sequence[Batch]) -> list[list[tuple[Any, ...]]]:
    return [[(tensor.shape, tensor.dtype) for tensor in batch] for batch in batches]
