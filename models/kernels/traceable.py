"""The dynamics without custom operators, autograd functions or settings: for tracers and exporters."""

from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from ..contexts import GENERATOR_BLOCKS
from .common import Neuron, arithmetic_dtype
from .eager import law_of


def lif_sequence(
    x: Tensor, state: Tensor | None, neuron: Neuron, keep_state: bool, keep_u: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `eager.lif_sequence`, but spikes have no gradient.

    The loop over time is unrolled; where an exporter has a symbol for T, it is PyTorch's `scan`.
    """
    # In the body of `scan`, an exporter does not broadcast what comes from outside.
    expanded = [value.expand(x.shape[2:]) if value is not None and value.dim() else value for value in neuron.tensors()]
    neuron = neuron.with_tensors(expanded)
    law = law_of(neuron)
    currents = x.to(arithmetic_dtype(x.dtype))
    sequences = {"current": currents}
    if (neuron.membrane_noise or neuron.threshold_noise) and _is_exported() and GENERATOR_BLOCKS.in_effect():
        raise RuntimeError("an exported or traced network cannot use a noise_generator: export it outside of the block")
    for name, drawn in (("membrane", neuron.membrane_noise), ("threshold", neuron.threshold_noise)):
        if drawn:
            sequences[name] = law.sample(x.shape, device=x.device, dtype=currents.dtype)

    def step(v: Tensor, at: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        current = at["current"]
        u = neuron.charged(v, current)
        if "membrane" in at:
            u = u - at["membrane"]
        z = u - neuron.threshold
        fired = law.cdf(z) if neuron.mean_field else (z > at.get("threshold", 0)).to(z.dtype)
        after = neuron.after_reset(u, fired)
        if keep_u and neuron.reset == "none":
            after = after.clone()  # `scan` refuses one tensor in two places
        return after, (fired, u) if keep_u else (fired,)

    v = currents.new_zeros(x.shape[1:]) if state is None else state
    if isinstance(x.shape[0], torch.SymInt) or _is_free_under_dynamo(x.shape[0]):
        v, found = _scan(step, v, sequences)
    else:
        steps = []
        for values in zip(*(sequence.unbind() for sequence in sequences.values())):
            v, result = step(v, dict(zip(sequences, values)))
            steps.append(result)
        if not steps:
            return torch.zeros_like(x), v.clone(), torch.zeros_like(currents) if keep_u else v.new_empty(0)
        found = tuple(torch.stack(results) for results in zip(*steps))
    return found[0].to(x.dtype), v, found[1] if keep_u else v.new_empty(0)


def _is_exported() -> bool:
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the first from torch 2.7 on
    return torch.jit.is_tracing() or is_exporting()


def _is_free_under_dynamo(size: int) -> bool:
    """Whether a size is a symbol in `torch.export(..., strict=True)`, where it looks like a number."""
    is_exporting = getattr(torch.compiler, "is_exporting", bool)  # from torch 2.7 on; bool() is False
    if not torch.compiler.is_dynamo_compiling() or not is_exporting():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(size)


def _scan(step: Any, v: Tensor, sequences: dict[str, Tensor]) -> Any:
    try:
        from torch._higher_order_ops.scan import scan
    except ImportError as error:
        raise RuntimeError("this version of PyTorch cannot export a dynamic T: export with a fixed one") from error
    if torch.compiler.is_dynamo_compiling():
        return scan(step, v, sequences)
    return _never_compiled(scan)(step, v, sequences)


def _never_compiled(function: Any) -> FunctionType:
    """A copy of a function whose inner functions are new to TorchDynamo.

    `scan` compiles one of its own. What an earlier export compiled for a batch of 4 would be tried first; if the
    example has a batch of 4 too, it would silently fix a batch that is to be free.
    """
    code = function.__code__
    parts = tuple(part.replace() if isinstance(part, CodeType) else part for part in code.co_consts)
    copied = FunctionType(code.replace(co_consts=parts), function.__globals__, closure=function.__closure__)
    copied.__defaults__, copied.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return copied
