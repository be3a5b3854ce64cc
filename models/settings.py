"""The settings of neurons that weights depend on: saved with the weights, and compared when they are loaded."""

import warnings
from typing import Any

from torch import Tensor, nn

NAMES = (
    "threshold", "decay", "reset", "reset_by", "v_reset", "v_leak", "decay_input", "placement", "noise", "surrogate",
)  # fmt: skip


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _law_text(law: Any, learns_scale: bool) -> str:
    """The law without its scale if that is learnt or a tensor: the weights have it then."""
    stretched = getattr(law, "law", None)  # by `with_scale`, where its functions do not follow its scale
    factor = getattr(law, "factor", None)
    if stretched is not None and factor is not None:  # the law of a surrogate, times a factor
        return f"{factor:g} * {_law_text(stretched, learns_scale)}"
    name = type(law if stretched is None else stretched).__name__
    if learns_scale or isinstance(law.scale, Tensor):
        return name
    if stretched is not None:
        return f"{_law_text(stretched, False)}.with_scale({law.scale:g})"
    return f"{name}({law.scale:g}, {law.loc:g})"


class SavesSettings(nn.Module):
    """Mixin of the neurons: stores their settings in the metadata of a state dictionary."""

    def _settings(self) -> dict[str, Any]:
        """The settings that are not learnt, as plain data."""
        settings = {}
        for name in NAMES:
            if f"{name}_logit" in self._parameters:  # learnt
                continue
            value: Any = vars(self)[name] if name in vars(self) else getattr(self, name, None)
            if hasattr(value, "scale"):  # a law
                learns_scale = name == "noise" and isinstance(getattr(self, "scale", None), Tensor)
                value = _law_text(value, learns_scale)
            if value is None or isinstance(value, Tensor):
                continue
            if value != 0 or name not in ("v_reset", "v_leak"):  # which files of earlier versions do not have
                settings[name] = value
        return settings

    # The settings go into the metadata of a state dictionary, where PyTorch's own layers keep their versions: its keys
    # and values are weights alone.
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["settings"] = self._settings()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *args: Any) -> None:
        for name, parameter in self._parameters.items():  # files of earlier versions have numbers of shape []
            loaded = state_dict.get(prefix + name)
            if parameter is not None and parameter.dim() == 1 and isinstance(loaded, Tensor) and loaded.dim() == 0:
                state_dict[prefix + name] = loaded.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        saved, own = local_metadata.get("settings"), self._settings()
        if not isinstance(saved, dict):
            warnings.warn(
                "these weights carry no neuron settings (an earlier version saved them, or they were copied to a plain "
                f"dictionary, as safetensors and timm do); they are used with {_listed(own)}",
                stacklevel=2,
            )
        elif different := [name for name in {**own, **saved} if own.get(name) != saved.get(name)]:
            before = _listed({name: saved.get(name) for name in different})
            now = _listed({name: own.get(name) for name in different})
            message = f"weights of neurons with {before} were loaded into neurons with {now}"
            warnings.warn(message, stacklevel=2)
