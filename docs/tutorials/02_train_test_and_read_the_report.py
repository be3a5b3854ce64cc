# %% [markdown]
# # Train, test, and read the report
#
# **How do I train a noisy network and a deterministic one, test both, and read what comes out?**
#
# Two commands do it: `main_<dataset>.py` trains, `testing_<dataset>.py` tests. We use `mnist5k`, 5,000 real digits that
# need no download, and a network so small that it trains in seconds. `bash run_training.sh` does the same with larger
# ones.

# %%
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt

plt.style.use("tableau-colorblind10")
ROOT = Path(globals().get("__file__", "_")).resolve().parents[2]  # the repository
folder = TemporaryDirectory()


def run(command):
    """Run a command in the repository, as in a terminal, and show the end of what it says."""
    print("$", command.replace(folder.name, "FOLDER"))
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    print(*done.stderr.replace(folder.name, "FOLDER").splitlines()[-8:], sep="\n")
    done.check_returncode()


# %% [markdown]
# ## Train
#
# `NILIF` is the noisy neuron, `LIF` the deterministic one; all else is equal. Flags may be in a recipe file, too
# (`--config`).

# %%
SETTINGS = "--model toynet --width 2 --timestep 2 --epochs 4 --lr 0.01 --crop_padding 0 --seed 0"
run(f"python main_mnist5k.py --neuron NILIF --sigma 0.3 {SETTINGS} --run_dir {folder.name}/nsnn")
run(f"python main_mnist5k.py --neuron LIF {SETTINGS} --run_dir {folder.name}/snn")

# %% [markdown]
# The best epoch is chosen on held-out training images; the test images were used once, at the end. A run is a folder.

# %%
print(sorted(path.name for path in Path(folder.name, "nsnn").iterdir()))
epochs = {}
for name in ("nsnn", "snn"):
    epochs[name] = [json.loads(line) for line in Path(folder.name, name, "metrics.jsonl").read_text().splitlines()]

# %% [markdown]
# `best.pth` is what you test, and carries its configuration; `last.pth` is what `--resume` continues.
#
# ## Test
#
# Both networks see the same images, clean and with Gaussian noise on the pixels of standard deviation 0.2 and 0.4
# (black is 0, white is 1). Because one network and the perturbation are random, everything is drawn three times.

# %%
run(
    f"python testing_mnist5k.py --compare NSNN={folder.name}/nsnn/best.pth SNN={folder.name}/snn/best.pth "
    f"--perturbation add_gaussian --range --left 0 --right 0.4 --step 0.2 --draws 3 --out {folder.name}/report"
)

# %% [markdown]
# ## Read the report
#
# `report.html` is one file with all pictures: open it in a browser. Its parts, from top to bottom:

# %%
page = Path(folder.name, "report", "report.html").read_text()
headings = re.findall(r"<h2>(.*?)</h2>", page)
print(*headings, sep="\n")

# %% [markdown]
# Start with "What differs": its first sentences name the differences that exceed both kinds of chance, that of training
# seeds and that of test images. Our groups have one seed each, so it says that they cannot be told apart, whatever the
# pictures look like. `results.json` beside it has the same numbers for your own plots; it
# [calls groups "kinds"](../evaluation.md#reading-results-in-python).

# %%
results = json.loads(Path(folder.name, "report", "results.json").read_text())
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
points = {}
for group, name in (("NSNN", "nsnn"), ("SNN", "snn")):
    left.plot(range(1, 5), [100 * row["val_accuracy"] for row in epochs[name]], "o-", label=group)
    (network,) = results["kinds"][group]
    points[group] = network["perturbations"]["add_gaussian"]["points"]
    right.errorbar(
        [point["strength"] for point in points[group]],
        [100 * point["accuracy_mean"] for point in points[group]],
        [100 * point["accuracy_std"] for point in points[group]],
        fmt="o-", capsize=3, label=group,
    )  # fmt: skip
    accuracies = ", ".join(f"{100 * point['accuracy_mean']:.1f} %" for point in points[group])
    print(f"{group}: {accuracies} at standard deviations of 0, 0.2, 0.4")
left.set(xlabel="epoch", ylabel="validation accuracy (%)", xticks=range(1, 5))
right.set(xlabel="standard deviation of the pixel noise", ylabel="test accuracy (%)")
for axes in (left, right):
    axes.legend(fontsize=8)
plt.show()
folder.cleanup()

# %% [markdown]
# Both networks learn within a few epochs (left), and lose accuracy as the pixels get noisier (right). Error bars are
# over draws of the noise; they say nothing about other trainings.
#
# ## What to try
#
# - Three seeds each (`--seed 0`, 1, 2), and `--compare NSNN=a.pth,b.pth,c.pth SNN=...`: now differences can be claimed.
# - `--uncertainty --efficiency --attack_preset quick`: what the empty parts of the report hold.
# - `--compare NSNN=a.pth NSNN-noiseless=a.pth@noiseless`: the same network, tested without its noise.
#
# Reference: [training](../training.md), [evaluation and report](../evaluation.md); all flags: `--help`.
