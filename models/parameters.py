"""Threshold, decay, scale, resets: each is a number, a tensor of one value, or a tensor of one for each channel."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

# By name: the allowed values in words, and a check of the least and the greatest value.
RANGES: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "threshold": ("a number or inf", lambda low, high: -math.inf < low <= high),
    **dict.fromkeys(("decay", "alpha", "rho"), ("in [0, 1]", lambda low, high: 0.0 <= low <= high <= 1.0)),
    "scale": ("positive and finite", lambda low, high: 0.0 < low <= high < math.inf),
    **dict.fromkeys(
        ("reset_by", "v_reset", "v_leak", "beta"),
        ("finite", lambda low, high: -math.inf < low <= high < math.inf),
    ),
}


class ArgumentError(ValueError):
    """An argument that a neuron, a law or a network cannot have."""


class OutOfRange(ArgumentError):
    """A value of a neuron is out of its range."""


def check(name: str, value: float | Tensor) -> None:
    """Raise TypeError or ValueError unless a value is a valid number or tensor for a layer."""
    if isinstance(value, Tensor):
        check_tensor(name, value)
    check_range(name, value)


def check_tensor(name: str, value: Tensor) -> None:
    """Raise ValueError, or TypeError for integers, unless a tensor has one value, or one for each channel."""
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating point tensor, got {value.dtype}")
    if value.dim() > 1 or value.numel() == 0:
        raise ArgumentError(
            f"{name} must be a number, or a tensor of one value or of one for each channel, [C]; "
            f"got a tensor of shape {list(value.shape)}"
        )


def check_range(name: str, value: float | Tensor) -> None:
    """Raise OutOfRange if a value is out of range; a tensor that cannot be read, as on the meta device, passes.

    Raises:
        TypeError: if it is not a number or a tensor.
    """
    ends = extremes(value)
    if ends is None:
        return
    words, is_in_range = RANGES[name]
    try:
        fits = is_in_range(*ends)
    except (TypeError, ValueError):  # of a string, a list, an array
        raise TypeError(f"{name} must be a number or a tensor, got {value!r}") from None
    if not fits:
        raise OutOfRange(f"{name} must be {words}, got {shown(value) if isinstance(value, Tensor) else value}")


def extremes(value: float | Tensor) -> tuple[float, float] | None:
    """The least and the greatest value, NaN if there is a NaN; None if they cannot be known here."""
    if not isinstance(value, Tensor):
        return value, value
    if torch.compiler.is_compiling() or value.is_meta or type(value) not in (Tensor, nn.Parameter):  # faked, sharded
        return None
    if torch._C._is_tracing() or torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return None
    if value.numel() == 1:
        return value.item(), value.item()  # `float` warns about tensors that require a gradient
    low, high = value.detach().aminmax()
    return low.item(), high.item()


def is_sharded(value: object) -> bool:
    """Whether a value is a `DTensor`, as `fully_shard` makes of a parameter outside of its module's forward pass."""
    return hasattr(value, "placements")


def shown(value: float | Tensor) -> str:
    """A value, or a range of values, as text for messages."""
    ends = extremes(value)
    if ends is None:
        return "nan"
    is_one = not isinstance(value, Tensor) or value.numel() == 1
    return f"{ends[0]:.4g}" if is_one else f"[{ends[0]:.4g} to {ends[1]:.4g}]"


def over_channels(name: str, value: Tensor, x: Tensor) -> Tensor:
    """`value` as it broadcasts over x [T, B, C, ...]: 0-d or [C, 1, ...]; ValueError for another number of channels."""
    check_tensor(name, value)
    if value.numel() == 1:
        return value.reshape(()) if value.dim() else value
    if x.dim() < 3 or x.shape[2] != value.numel():
        raise ArgumentError(
            f"{name} has {value.numel()} values, one for each channel, but the input current [T, B, C, ...] has shape "
            f"{list(x.shape)}"
        )
    return value.reshape(-1, *[1] * (x.dim() - 3))


def learnt(parameter: Tensor) -> Tensor:
    """The value of a parameter, 0-d if it is one number: stored as [1], because `fully_shard` refuses 0-d ones."""
    return parameter if parameter.numel() > 1 or is_sharded(parameter) else parameter.reshape(())


def like_values(value: float | Tensor) -> nn.Parameter:
    """An uninitialised parameter for one value, or for as many as a tensor has."""
    return nn.Parameter(value.new_empty(value.numel()) if isinstance(value, Tensor) else torch.empty(1))


def is_parametrized(module: nn.Module, attribute: str) -> bool:
    """Whether an attribute is computed by `torch.nn.utils.parametrize`."""
    return "parametrizations" in module._modules and hasattr(module._modules["parametrizations"], attribute)


def refuse_derived(module: nn.Module, attribute: str) -> None:
    """Raise RuntimeError if an attribute is computed from other parameters, which would overwrite what is set."""
    if not is_parametrized(module, attribute) and attribute not in {**module._parameters, **module._buffers}:
        raise RuntimeError(
            f"{attribute} is computed from other parameters (by pruning or weight_norm): undo that first"
        )


def fill(
    module: nn.Module, attribute: str, name: str, value: float | Tensor, function: Callable[[float], float]
) -> None:
    """Write function(value) into a parameter; one value into all its elements.

    Raises:
        RuntimeError: if the parameter is computed from others, if the value is on the meta device and the parameter is
            not, or if a sharded parameter is given several values.
        ValueError: if it has neither one value nor as many as the parameter.
    """
    refuse_derived(module, attribute)
    parameter: Tensor = getattr(module, attribute)
    computed = is_parametrized(module, attribute)
    if computed:
        parameter = torch.empty_like(parameter)
    values: list[float]
    if not isinstance(value, Tensor):
        values = [value]
    elif not value.is_meta:
        values = value.flatten().tolist()
    elif parameter.is_meta:
        return
    else:
        raise RuntimeError(f"the {name} was given on the meta device, and has no values to start from")
    if len(values) not in (1, parameter.numel()):
        raise ArgumentError(f"this neuron learns {parameter.numel()} values of its {name}, and was given {len(values)}")
    with torch.no_grad():
        if len(values) == 1:  # not by `copy_`, which refuses what is sharded
            parameter.fill_(function(values[0]))
        elif is_sharded(parameter):
            raise RuntimeError(f"the {name} is sharded: set it for each channel before `fully_shard`, or to one value")
        else:
            parameter.copy_(torch.tensor([function(v) for v in values], dtype=parameter.dtype, device="cpu"))
        if computed:
            setattr(module, attribute, parameter)  # by its `right_inverse`, or an error that it has none


def refuse_computed(name: str, value: float | Tensor) -> None:
    """Raise ValueError if a value was computed from what is learnt: only a parameter is learnt itself."""
    if isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter):
        raise ArgumentError(
            f"a {name} that requires a gradient must be an nn.Parameter, to be learnt; detach it to set its value"
        )


def device_of(net: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU if there is none."""
    return next((tensor.device for tensor in itertools.chain(net.parameters(), net.buffers())), torch.device("cpu"))
