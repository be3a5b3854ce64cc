"""What weights depend on and do not hold: saved beside them, and compared when they are loaded."""

import warnings
from typing import Any

from torch import Tensor, nn


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


class SavesSettings(nn.Module):
    """Base of the neurons: a state dictionary says with which settings its weights were trained."""

    def _settings(self) -> dict[str, Any]:
        """What weights depend on and do not hold, as plain data: settings that are not learnt."""
        settings = {}
        for name in ("threshold", "decay", "reset", "decay_input", "placement", "noise", "surrogate"):
            if f"{name}_logit" in self._parameters:  # learnt
                continue
            value: Any = vars(self)[name] if name in vars(self) else getattr(self, name, None)
            if hasattr(value, "scale"):  # a law, whose scale may be learnt
                is_learnt = name == "noise" and isinstance(getattr(self, "scale", None), Tensor)
                is_learnt |= isinstance(value.scale, Tensor)
                law = type(value).__name__
                value = law if is_learnt else f"{law}({value.scale:g}, {value.loc:g})"
            if value is not None and not isinstance(value, Tensor):
                settings[name] = value
        return settings

    # The settings go into the metadata of a state dictionary, beside the versions of PyTorch's own layers: its keys and
    # values are weights alone.
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
                "these weights do not say with which threshold, decay and noise they were trained (they are from an "
                f"earlier version, or were copied to a plain dictionary); they are used with {_listed(own)}",
                stacklevel=2,
            )
        elif different := [name for name in {**own, **saved} if own.get(name) != saved.get(name)]:
            before, now = ({name: settings.get(name) for name in different} for settings in (saved, own))
            message = f"weights of neurons with {_listed(before)} were loaded into neurons with {_listed(now)}"
            warnings.warn(message, stacklevel=2)
