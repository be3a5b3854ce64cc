# %% [markdown]
# # Stream a recording, and export the network
#
# **Training sees whole recordings. How does the network run on frames that come one by one, and outside of PyTorch?**
#
# A `Stream` feeds a network one time step after the other and keeps the potentials $u_t$ of its neurons in between; the
# network itself keeps nothing. `plain` makes a copy of ordinary operations, which exporters understand.

# %%
import importlib.util
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
from models import Gaussian, NoisyLIF, Stream, noise_generator, noiseless, plain, time_first
from tools.data.events import motions
from tools.data.events.frames import Framing, count_frames

torch.manual_seed(0)
plt.style.use("tableau-colorblind10")

# %% [markdown]
# ## A network that tells left from right
#
# A simulated event camera records digits that move to the right (class 0) or to the left (class 1), as
# [in the tutorial on recordings](05_event_recordings.py). Of these events we keep a tenth, so that a single frame says
# little. A small network learns from whole recordings of 20 frames.

# %%
T = 20
random = np.random.RandomState(0)
masks = DATASETS["mnist5k"].load().train.images[:, 0].float() / 255
y = torch.arange(200) % 2
paths = motions.trajectories(y.numpy(), random)
light = motions.render(masks[random.randint(len(masks), size=len(y))], paths, torch.full((len(y),), 1.5))
events, ends = motions.camera(light, motions.STEP_US, random)
framing = Framing(T, "time", sensor=(motions.WIDTH, motions.HEIGHT), size=(24, 24))
kept = [one[random.random_sample(len(one)) < 0.1] for one in np.split(events, ends[:-1])]
counts = np.stack([count_frames(one, framing) for one in kept])
x = torch.from_numpy(counts.astype(np.float32)).clamp(max=1).transpose(0, 1)  # [T, N, 2, H, W]

net = time_first(
    nn.Sequential(
        *(nn.Conv2d(2, 16, 5, stride=2), nn.BatchNorm2d(16), NoisyLIF(Gaussian(0.3), placement="escape")),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)),
    )
)
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 70)
for _ in range(10):
    for rows in torch.randperm(140).split(20):
        loss = F.cross_entropy(net(x[:, rows]).sum(0), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
test_x, test_y = x[:, 140:], y[140:]

# %% [markdown]
# ## Step by step
#
# Without noise, the steps of the stream are those of the whole recording. With noise, they are other draws of the same
# network.

# %%
net.eval()
with torch.no_grad():
    stream = Stream(net)
    with noiseless(net):
        at_once = net(test_x)
        streamed = torch.stack([stream(frame) for frame in test_x])  # each [B, 2]
    difference = (streamed - at_once).abs().max().item()
    print(f"largest difference of the logits: {difference:.1e}; potentials kept: {list(stream.state[0].shape)}")
    stream.reset()  # another recording begins
    with noise_generator(torch.Generator().manual_seed(0)):
        noisy = torch.stack([stream(frame) for frame in test_x])
evidence = noisy.cumsum(0)  # what has been seen so far decides
accuracy = (evidence.argmax(-1) == test_y).float().mean(1)
print("accuracy after each frame:", " ".join(f"{100 * one:.0f}" for one in accuracy), "%")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for of_class, colour, name in ((0, "C0", "moves right"), (1, "C1", "moves left")):
    difference_of_logits = (evidence[..., 1] - evidence[..., 0])[:, test_y == of_class][:, :8]
    left.plot(range(1, T + 1), difference_of_logits, color=colour, label=[name] + ["_"] * 7)
left.axhline(0, color="black", lw=0.8)
left.set(xlabel="frames seen (25 ms each)", ylabel="evidence for left (logits)", xticks=range(2, T + 1, 2))
left.legend(fontsize=8)
right.plot(range(1, T + 1), 100 * accuracy, "o-")
right.axhline(50, ls="--", color="C3", label="chance")
right.set(xlabel="frames seen (25 ms each)", ylabel="test accuracy (%)", ylim=(45, 103), xticks=range(2, T + 1, 2))
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# Evidence adds up over the frames (left), and with it the accuracy rises from that of the first frame (right). A
# decision need not wait for the end of the recording.
#
# ## ONNX
#
# Exporters need plain operations. The copy is without noise here; `"mean_field"` would give probabilities, and
# `"noisy"` the draws of whatever runs it. A free batch size is asked for by `dynamic_shapes`.

# %%
deployed = plain(net, "noiseless")
if all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
    import onnxruntime

    shapes = ({1: torch.export.Dim("B")},)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        torch.onnx.export(deployed, (test_x[:, :2],), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: test_x.numpy()})
    largest = np.abs(logits - at_once.numpy()).max()
    print(f"onnxruntime differs by {largest:.1e}")
else:
    print("for ONNX: pip install onnx onnxscript onnxruntime; the copy to export is", deployed, sep="\n")

# %% [markdown]
# ## What to try
#
# - Stop each recording as soon as its evidence exceeds a bound. How many frames does the network need on average?
# - `python tools/export.py RUN/best.pth net.onnx` exports and checks what a training script has saved.
# - NIR, for neuromorphic hardware and other libraries: [the page on interoperation](../interop.md#nir).
#
# Reference: [`Stream`](../../models/stream.py), [`plain`](../../models/deploy.py).
