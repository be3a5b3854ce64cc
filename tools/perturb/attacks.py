"""Perturbations that climb the gradient of the network itself: the published attacks.

They are for comparison with published numbers, not measures of robustness, which are in `tools.attacks.campaign`.
"""

from functools import partial

from torch import Generator, Tensor

from tools.attacks import gradients
from tools.attacks.gradients import Ball, Gradient

from .perturbation import Perturbation, entry

FGSM_RADII = (2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255)
PERTURBATIONS: dict[str, Perturbation] = {}
_entry = partial(entry, PERTURBATIONS, "attack")

_entry("adversarial", "adv_gamma", "L2 norm of the attack, before it is cut to [0, 1]", (0.25, 0.5, 1.0, 1.5, 2.0))(
    gradients.direct_optimisation
)


@_entry("fgsm", "adv_eps", "Linf norm of FGSM (pixel range 1)", FGSM_RADII, is_random=False)
def fast_gradient_sign(gradient: Gradient, images: Tensor, target: Tensor, eps: float, generator: Generator) -> Tensor:
    """One step of `eps` along the sign of the gradient of the cross-entropy."""
    return gradients.fgsm(gradient, Ball(images, eps), target)
