"""Movies that drive cells."""

import numpy as np
import torch
import torch.nn.functional as F

from tools.data.events import motions

FRAME_S = motions.STEP_US / 1e6  # seconds from one frame to the next
DEPTH = 8  # frames that receptive fields and networks see at once, the current one last
_POOLING = 3  # pixels of the rendered scene that make one of the movie


def digit_movie(digits: torch.Tensor, frames: int, random: np.random.RandomState) -> np.ndarray:
    """Moving real digits, in scenes of 0.5 s with a random digit, motion, size and contrast each.

    It is the logarithm of the light on a torus (see `tools.data.events.motions`), of mean 0 and variance 1.

    Shape:
        digits uint8 [N, 28, 28] -> float32 [frames, 16, 16].
    """
    per_scene = motions.STEPS + 1
    scenes = -(-frames // per_scene)
    labels = random.randint(len(motions.MOTIONS), size=scenes)
    masks = digits[torch.from_numpy(random.randint(len(digits), size=scenes))].float() / 255
    contrasts = random.uniform(1.0, 1.8, scenes) * random.choice([-1, 1], scenes)
    paths = motions.trajectories(labels, random)
    light = motions.render(masks, paths, torch.from_numpy(contrasts).float())  # [scenes, frames, H, W]
    movie = F.avg_pool2d(light, _POOLING).flatten(0, 1)[:frames].numpy()
    return ((movie - movie.mean()) / movie.std()).astype(np.float32)


def stacked(movie: np.ndarray, depth: int) -> torch.Tensor:
    """The latest `depth` frames at each time, the current one last, 0 before the first: float32 [T, depth, H, W]."""
    frames = torch.as_tensor(np.asarray(movie), dtype=torch.float32)
    padded = torch.cat([frames.new_zeros(depth - 1, *frames.shape[1:]), frames])
    return padded.unfold(0, depth, 1).permute(0, 3, 1, 2)
