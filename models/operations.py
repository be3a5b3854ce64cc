"""What the operations in a graph of torch.fx do: of which dimensions, to which tensors, in whose memory."""

import inspect
import itertools
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd


def of_input(graph: fx.Graph, starts: Container[fx.Node] | None = None) -> list[fx.Node]:
    """The nodes that compute tensors from the input, or else from `starts`, not from parameters, or from its shape."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        is_start = node.op == "placeholder" if starts is None else node in starts
        if is_start or (found.keys() & set(node.all_input_nodes) and not _is_of_shape(node)):
            found[node] = None
    return list(found)


ATTRIBUTES = ("shape", "ndim", "device", "dtype", "layout", "is_cuda", "requires_grad", "itemsize", "nbytes")


def _is_of_shape(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    name = function_of(node)
    makes_new = name.startswith("new_") or name.endswith("_like")  # rand_like(x) does not have the values of x
    return makes_new or name in ("size", "dim", "numel") or (name == "getattr" and node.args[1] in ATTRIBUTES)


NAMES_OF_DIMENSIONS = (
    "dim", "dims", "dim0", "dim1", "dim2", "axis", "axis0", "axis1", "start_dim", "dimension", "source", "destination",
)  # fmt: skip
IMPLICIT = ("softmax", "softmin", "logsoftmax")  # without `dim`, they are over classes of [B, K] and [B, K, H, W]
MAX_POOLS = tuple(f"{kind}maxpool{count}d" for kind in ("", "adaptive") for count in (1, 2, 3))
SEVERAL = ("split", "aminmax", *(f"{name}withindices" for name in MAX_POOLS))  # besides those that say so


def mixes_samples(net: nn.Module, node: fx.Node) -> bool:
    """Whether an operation is over dimension 0, or takes a part of it."""
    name = "" if node.op == "call_module" else plain_name(function_of(node))
    if name == "getitem":
        index: Any = node.args[1]
        first: Any = index[0] if isinstance(index, tuple) and index else index
        return not gives_several(net, node.args[0]) and first is not Ellipsis and first != slice(None)
    if name == "permute":
        return listed(node.args[1:] or node.kwargs["dims"])[0] != 0
    return 0 in dimensions_of(net, node)


def dimensions_of(net: nn.Module, node: fx.Node) -> list[int]:
    """The dimensions that an operation is over, as far as they are known; [0] if it is over all of them."""
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        is_of_torch = type(module).__module__.startswith("torch.nn.")
        return _ints(vars(module).get(name) for name in NAMES_OF_DIMENSIONS) if is_of_torch else []
    if node.op not in ("call_function", "call_method"):
        return []
    name = plain_name(function_of(node))
    attribute = node.args[1] if name == "getattr" else name
    if attribute in ("t", "T", "H"):
        return [0]
    if attribute in ("adjoint", "mT", "mH"):
        return [-2, -1]
    given = [value for key, value in node.kwargs.items() if key in NAMES_OF_DIMENSIONS]
    usual, is_over_all = [], False
    for parameters in _signatures(node):
        places = [(place, one) for place, one in enumerate(parameters) if one.name in NAMES_OF_DIMENSIONS]
        is_over_all |= not places  # unless another form of the function is called, with dimensions
        for place, one in places:
            if place < len(node.args) and one.is_positional:
                given += [node.args[place], *itertools.takewhile(_is_int, node.args[place + 1 :] * one.is_list)]
            elif one.name not in node.kwargs:
                usual.append(one.default)
    if not given and usual and name not in IMPLICIT and (is_over_all or any(one in (None, []) for one in usual)):
        return [0]
    return _ints(listed([*given, *usual]))


class _Parameter(NamedTuple):
    """A parameter of a function."""

    name: str
    default: Any  # None if there is none
    is_positional: bool
    is_list: bool


def _signatures(node: fx.Node) -> list[list[_Parameter]]:
    """The parameters of a function or method of PyTorch, in each of its forms."""
    name = function_of(node)
    target = getattr(torch.Tensor, name, None) if node.op == "call_method" else node.target
    if inspect.isfunction(target):
        found = inspect.signature(target).parameters.values()
        return [[_Parameter(one.name, _or_none(one.default), one.kind != one.KEYWORD_ONLY, False) for one in found]]
    return [
        [_Parameter(one.name, one.default_value, not one.kwarg_only, "List" in str(one.type)) for one in form.arguments]
        for form in _schemas(name)
        if node.kwargs.keys() & {"other"} <= {one.name for one in form.arguments}  # max(x, other=y) has no dimension
    ]


def _schemas(name: str) -> list[Any]:
    """How PyTorch describes a function of tensors, in each of its forms."""
    packet: Any = getattr(torch.ops.aten, name, None)
    forms = [getattr(packet, form)._schema for form in packet.overloads()] if hasattr(packet, "overloads") else []
    return [
        form
        for form in forms
        if form.returns
        and any("Tensor" in str(one.type) for one in form.arguments[:1])
        and not any("Dimname" in str(one.type) or one.is_out for one in form.arguments)
    ]


def _or_none(default: Any) -> Any:
    return None if default is inspect.Parameter.empty else default


def _is_int(value: Any) -> bool:
    return type(value) is int  # True is another argument


def _ints(values: Iterable[Any]) -> list[int]:
    return [value for value in values if _is_int(value)]


def gives_several(net: nn.Module, node: Any) -> bool:
    """Whether a node gives a tuple of tensors."""
    if not isinstance(node, fx.Node):
        return True
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        is_recurrent = isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention)
        return is_recurrent or getattr(module, "return_indices", False)
    if node.op == "placeholder":
        return False
    outputs = [schema.returns for schema in _schemas(function_of(node))]
    is_several = any(len(one) > 1 or any("List" in str(part.type) for part in one) for one in outputs)
    return is_several or plain_name(function_of(node)) in SEVERAL or not is_known(node)


def listed(values: Any) -> list[Any]:
    """Values that may be given one by one, or in a tuple."""
    return [one for value in values for one in (value if isinstance(value, tuple | list) else [value])]


KNOWN = ("torch", "_operator", "builtins", "math")  # functions from elsewhere may do anything inside


def is_known(node: fx.Node) -> bool:
    """Whether a node calls a function or method of PyTorch or Python."""
    home = getattr(node.target, "__module__", None) or "torch"
    return home.partition(".")[0] in KNOWN or isinstance(node.target, type)  # a class: a tuple of outputs


def function_of(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else node.target.__name__


def plain_name(name: str) -> str:
    """The name of a function or a class in one form: F.max_pool2d is nn.MaxPool2d, x.relu_() is nn.ReLU."""
    return name.removeprefix("special_").replace("_", "").lower()


def path_of(node: fx.Node) -> str:
    """The name of the module that a node calls; for a function, below the module whose `forward` calls it."""
    if node.op == "call_module":
        return str(node.target)
    owners = node.meta.get("nn_module_stack")
    owner = next(reversed(owners.values()))[0] if owners else ""
    return f"{owner}.{function_of(node).strip('_')}".lstrip(".")


def is_view(net: nn.Module, node: fx.Node) -> bool:
    """Whether an operation may give a tensor in the memory of another one."""
    if node.op == "call_module":
        return isinstance(net.get_submodule(str(node.target)), nn.Identity | nn.Flatten | nn.Unflatten | _DropoutNd)
    if node.op not in ("call_function", "call_method"):
        return False
    outputs = [one.alias_info for form in _schemas(function_of(node)) for one in form.returns]
    return function_of(node) in ("getitem", "split") or any(one is not None for one in outputs)
