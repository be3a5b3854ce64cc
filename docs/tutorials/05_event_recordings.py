# %% [markdown]
# # Event recordings, from file to network
#
# **I have files of an event camera. How do they become frames, and how does a network learn from them?**
#
# An event camera reports changes: an event says that at pixel (x, y) and time t the light became brighter (ON) or
# darker (OFF). Networks here see T frames of counts, `[T, B, 2, H, W]`. To have files to start from, we record four
# motions of bright digits with a simulated camera.

# %%
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(globals().get("__file__", "_")).resolve().parents[2]))  # the repository

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dataset_utils import DATASETS
from models import Gaussian, NoisyLIF, time_first
from tools.data.events import motions, read
from tools.data.events.frames import Framing, count_frames
from tools.data.events.labelled import frame_values
from tools.data.events.writing import write_recording

torch.manual_seed(0)
plt.style.use("tableau-colorblind10")
CLASSES = motions.MOTIONS[:4]  # right, left, up, down
SENSOR = motions.WIDTH, motions.HEIGHT

# %% [markdown]
# ## Files
#
# `{train,test}/<class>/*` is the layout that the training script takes, too. Readers know a format by the content of
# the file; `.npz` could as well be AEDAT, Prophesee RAW or text.

# %%
folder = TemporaryDirectory()
random = np.random.RandomState(0)
masks = DATASETS["mnist5k"].load().train.images[:, 0].float() / 255
for part, count in {"train": 40, "test": 15}.items():
    labels = np.repeat(np.arange(len(CLASSES)), count)
    shown = masks[random.randint(len(masks), size=len(labels))]
    light = motions.render(shown, motions.trajectories(labels, random), torch.full((len(labels),), 1.5))
    events, ends = motions.camera(light, motions.STEP_US, random)
    for number, (label, of_one) in enumerate(zip(labels, np.split(events, ends[:-1]))):
        path = Path(folder.name) / part / CLASSES[label] / f"{number}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_recording(path, of_one)

path = sorted(Path(folder.name).glob("train/right/*"))[0]
events = read(path)
print(f"{len(events)} events in {events['t'][-1] / 1000:.0f} ms, {events['p'].mean():.0%} of them ON; {events.dtype}")

# %% [markdown]
# ## Frames
#
# A recording is cut into T parts of equal duration (or with equally many events), and the events of each part are
# counted per polarity and pixel. Frames may be smaller than the sensor; no event is lost.

# %%
T = 8
framing = Framing(T, "time", sensor=SENSOR, size=(24, 24))
frames = count_frames(events, framing)
print(f"frames {frames.shape} hold {frames.sum()} events")

figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for is_on, colour, name in ((False, "#b35806", "OFF"), (True, "#542788", "ON")):
    some = events[events["p"] == is_on]
    panels[0].plot(some["t"] / 1000, some["x"], ".", ms=2, color=colour, label=name)
panels[0].set(title="events", xlabel="time (ms)", ylabel="x (pixels)")
panels[0].legend(fontsize=8, markerscale=4)
for axes, step in ((panels[1], 1), (panels[2], T - 2)):
    image = axes.imshow(frames[step, 1].astype(int) - frames[step, 0], cmap="PuOr", vmin=-4, vmax=4)
    axes.set(title=f"frame {step}", xlabel="x (cells)", ylabel="y (cells)")
figure.colorbar(image, label="ON events - OFF events")
plt.show()

# %% [markdown]
# The digit moves to the right: x grows with time (and starts again at 0, as this world has no end). In each frame, ON
# events are at its front, where it becomes brighter, and OFF events at its back.
#
# ## A network
#
# `time_first` takes a network of ordinary layers and noisy neurons, and runs the layers on all frames at once.


# %%
def load(part):
    paths = sorted(Path(folder.name).glob(f"{part}/*/*.npz"))
    counts = np.stack([count_frames(read(path), framing) for path in paths]).astype(np.int64)
    x = frame_values(torch.from_numpy(counts), "normalised").transpose(0, 1)  # [T, N, 2, H, W]
    return x, torch.tensor([CLASSES.index(path.parent.name) for path in paths])


def neuron():
    return NoisyLIF(Gaussian(0.3), placement="escape")


(x, y), (test_x, test_y) = load("train"), load("test")
net = time_first(
    nn.Sequential(
        *(nn.Conv2d(2, 16, 5, stride=2), nn.BatchNorm2d(16), neuron()),
        *(nn.Conv2d(16, 16, 3, stride=2), nn.BatchNorm2d(16), neuron()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, len(CLASSES))),
    )
)
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=20)
for _ in range(20):
    for rows in torch.randperm(len(y)).split(20):
        loss = F.cross_entropy(net(x[:, rows]).mean(0), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step()
with torch.no_grad():
    accuracy = (net.eval()(test_x).mean(0).argmax(-1) == test_y).float().mean().item()
print(f"{100 * accuracy:.0f} % of {len(test_y)} test recordings are classified correctly; chance is 25 %")
folder.cleanup()

# %% [markdown]
# ## What to try
#
# - The same without code: `python main_events.py --data_root FOLDER` trains on such a folder, and
#   `testing_events.py` tests, also with events dropped, moved or of the wrong polarity.
# - `Framing(T, "count", ...)`: as many events in each frame. Does the network still see how fast the digit moves?
# - Your own file: `python -m tools.data.events info FILE` says what is in it.
#
# Reference: [formats, times, frames](../events.md), [frames](../../tools/data/events/frames.py),
# [`time_first`](../../models/convert.py).
