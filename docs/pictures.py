"""Draw the pictures of the pages, from docs/results, pretrained and small simulations.

    python docs/pictures.py                  # all
    python docs/pictures.py noise studies    # some

Those of the README are transparent, with writing of a grey that stands out from white and from black, in colours that
the colour-blind can tell apart (those of Okabe and Ito, the blue a little lighter). Those of the studies are drawn from
their results, or copied from the folder of a run (theory_firing, regularisation_learnt_scales). report.png is the top
of a report of `bash run_training.sh`:

    chromium --headless --hide-scrollbars --window-size=1180,978 --screenshot=report.png REPORT.html
"""

import argparse
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "pictures"
sys.path.insert(0, str(DOCS.parent))

from dataset_utils import DATASETS  # noqa: E402
from models import Gaussian, NoisyLIF, noise_generator  # noqa: E402
from tools.data.events import motions  # noqa: E402
from tools.data.events.frames import Framing, count_frames  # noqa: E402
from tools.plots import subplots  # noqa: E402
from tools.studies.coding import pictures as of_coding  # noqa: E402
from tools.studies.coding.experiments import DECODING  # noqa: E402
from tools.studies.regularisation import pictures as of_regularisation  # noqa: E402
from tools.studies.theory import pictures as of_theory  # noqa: E402

BLUE, ORANGE, GREEN, PINK, INK = "#1A85C8", "#D55E00", "#009E73", "#CC79A7", "#767676"
DARK, LIGHT = "#22272e", "#c9d1d9"  # ground and writing of the animation, which cannot be transparent
STYLE = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "font.size": 12,
    "lines.linewidth": 2,
    "axes.titlesize": 12,
}


def results(name: str) -> dict:
    """The numbers of docs/results/<name>.json."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text())["experiments"]


def save(name: str, figure: Figure) -> None:
    figure.savefig(FOLDER / f"{name}.png", dpi=150, transparent=True)


@matplotlib.rc_context(STYLE)
def noise() -> None:
    """A noisy neuron below its threshold, its firing probability, and accuracies under attack."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subfigures(1, 3)
    _trains(*left.subplots(2, sharex=True, height_ratios=(3, 2)))
    _probability(middle.subplots())
    _attack(right.subplots())
    save("noise", figure)


def _trains(potential: Axes, raster: Axes) -> None:
    neuron = NoisyLIF(Gaussian(0.3), decay=0.8, placement="escape")
    current = torch.full((60, 20, 1), 0.18)  # brings the potential to 0.9 at most
    with noise_generator(torch.Generator().manual_seed(1)):
        spikes, _, u = neuron.run(current, potentials=True)
    potential.step(range(60), u[:, 0, 0], where="mid", color=BLUE)
    potential.axhline(1, ls="--", lw=1, color=INK)
    potential.text(60, 1.03, "threshold", ha="right", fontsize=10)
    potential.set(ylabel="potential u", ylim=(0, 1.25), title="a noisy neuron below its threshold")
    time, trial = spikes[:, :, 0].nonzero().T
    raster.scatter(time, trial, marker="|", s=30, color=[BLUE if one == 0 else INK for one in trial])
    raster.set(xlabel="time (steps)", ylabel="draw", yticks=[])


def _probability(axes: Axes) -> None:
    law, u = Gaussian(0.3), torch.linspace(0, 2, 201)
    held = u[::10].expand(1, 2000, -1)
    with noise_generator(torch.Generator().manual_seed(0)):
        share = NoisyLIF(law, placement="escape")(held).mean((0, 1))
    axes.plot(u, law.cdf(u - 1), color=BLUE, label="F: probability of a spike")
    axes.plot(u[::10], share, "o", ms=5, color=BLUE, mfc="none", label="share of 2,000 draws")
    axes.plot(u, law.pdf(u - 1), "--", color=ORANGE, label="F': its gradient")
    axes.axvline(1, lw=0.8, color=INK, ls=":")
    axes.set(xlabel="potential u (threshold 1)", ylim=(0, 2.05), title="firing probability, and its gradient")
    axes.legend(fontsize=10, loc="upper left")


def _attack(axes: Axes) -> None:
    for name, colour, style in (("NSNN", BLUE, "o-"), ("SNN", ORANGE, "s--")):
        card = json.loads((DOCS.parent / "pretrained" / f"mnist5k-{name.lower()}.json").read_text())
        curve = card["attacks"]["noisy"]["curves"]["linf"]
        axes.plot([float(radius) for radius in curve], [100 * left for left in curve.values()], style, color=colour)
        axes.lines[-1].set_label(name)
    axes.axhline(50, lw=0.8, color=INK, ls=":")
    axes.set(xlabel="radius of the attack (pixels in [0, 1])", ylabel="test accuracy (%)", ylim=(0, 101))
    axes.set_title("noisy and deterministic, attacked")
    axes.legend()


@matplotlib.rc_context(STYLE)
def studies() -> None:
    """What the three studies found, together and each alone."""
    panels = {"theory": _theory, "regularisation": _regularisation, "coding": _coding}
    figure, (axes,) = subplots(13.2, 3.8, columns=3, grid=False)
    figure.get_layout_engine().set(w_pad=0.15)
    for one, (name, draw) in zip(axes, panels.items()):
        draw(one)
        alone, ((panel,),) = subplots(6.6, 3.8, grid=False)
        draw(panel)
        save(f"study_{name}", alone)
    save("studies", figure)


def _theory(axes: Axes) -> None:
    gradients = results("theory_full")["gradients"]
    medians = gradients["medians_over_networks"]["Gaussian"]["3 layers"]
    for name, label, colour, style in (
        ("NDL", "noise-driven", BLUE, "o-"),
        ("mean field", "mean field", GREEN, "^:"),
        ("surrogate", "surrogate, no noise", ORANGE, "s--"),
    ):
        axes.plot(gradients["std"], medians[name]["bias"], style, color=colour, label=label)
    axes.set(xscale="log", ylim=(0, None), xlabel="standard deviation of the noise (thresholds)")
    axes.set(ylabel="bias / norm of the gradient", title="gradients of three layers")
    _plain_ticks(axes, gradients["std"])
    axes.legend(fontsize=10)


def _regularisation(axes: Axes) -> None:
    rows = results("regularisation_full")["generalisation"]["rows"]
    chosen = [row for row in rows if row["law"] == "Gaussian" and row["noisy"] and row["std"] > 0.05]
    for images, colour, style in ((100, BLUE, "o-"), (1000, GREEN, "^:"), (4000, ORANGE, "s--")):
        gains = {row["std"]: row["test_loss_gain"] for row in chosen if row["images"] == images}
        means = [gain["mean"] for gain in gains.values()]
        halves = [gain["high"] - gain["mean"] for gain in gains.values()]
        axes.errorbar(list(gains), means, halves, fmt=style, capsize=3, color=colour, label=f"{images:,} images")
    axes.axhline(0, lw=0.8, color=INK)
    axes.set(xscale="log", xlabel="standard deviation of the noise (thresholds)")
    axes.set(ylabel="change of test loss by noise (nats)", title="few and many training images")
    _plain_ticks(axes, list(gains))
    axes.legend(fontsize=10, loc="lower left")


def _coding(axes: Axes) -> None:
    fits = results("coding")["fits"]["results"]["LIF cells"]
    names = {"NSNN": "noisy", "SNN": "deterministic", "SNN, noisy output": "noisy output only", "LN": "LN model"}
    places = {"NSNN": (-8, 10), "SNN": (10, 6), "SNN, noisy output": (-10, -21), "LN": (-14, 8), "oracle": (8, -20)}
    for name, marker, colour in zip(places, "os^Dv", (BLUE, ORANGE, GREEN, PINK, INK)):
        x, y = fits[name]["cc_norm"]["mean"], fits[name]["fano"]["mean"]
        axes.plot(x, y, marker, ms=9, color=colour)
        label = names.get(name, "true cells")
        align = "left" if name == "SNN" else "right"
        axes.annotate(label, (x, y), places[name], textcoords="offset points", color=colour, ha=align, fontsize=11)
    axes.axhline(fits["NSNN"]["fano_recorded"]["mean"], lw=1, ls="--", color=INK)
    axes.text(0.1, 0.63, "recorded", fontsize=10)
    axes.set(xlabel="shape of the mean response (CC_norm)", ylabel="variability (Fano factor)")
    axes.set(xlim=(0.1, 1.08), ylim=(-0.05, 1.0), title="networks fitted to noisy cells")


def _plain_ticks(axes: Axes, ticks: list[float]) -> None:
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def redrawn() -> None:
    """The pictures of studies that need no more than their results; `firing` and `learnt_scales` need a run."""
    theory, coding = results("theory"), results("coding")
    gaussian = theory["gradients"]["medians_over_networks"]["Gaussian"]
    bias = [SimpleNamespace(**row) for row in theory["exactness"]["median_bias"]]
    scales = {row["std"]: _intervals(row) for row in coding["scale"]["rows"]}
    lif = {name: _intervals(fit) for name, fit in coding["fits"]["results"]["LIF cells"].items()}
    rows, rows_full = (_groups(results(name)) for name in ("regularisation", "regularisation_full"))
    sizes = sorted({row.images for row in rows})
    figures = {
        "theory_limit": of_theory.limit(theory["limit"]["std"], theory["limit"]["differing"]),
        "theory_exactness": of_theory.exactness(bias, theory["gradients"]["width"]),
        "theory_gradients_gaussian": of_theory.gradients(theory["gradients"]["std"], gaussian, "Gaussian"),
        "coding_truth": of_coding.truth([SimpleNamespace(**row) for row in coding["truth"]["rows"]]),
        "coding_noise_scale": of_coding.scale(scales, DECODING),
        "coding_fits_lif": of_coding.fits(lif, "LIF cells"),
        "regularisation_generalisation": of_regularisation.generalisation(rows, sizes),
        "regularisation_few_images": of_regularisation.few_images(rows, std=0.3),
        "regularisation_few_images_full": of_regularisation.few_images(rows_full, std=0.3),
    }
    for name, figure in figures.items():
        figure.savefig(FOLDER / f"{name}.png", dpi=110)


def _intervals(row: dict) -> dict:
    """{quantity: interval} of a row; null, where there is none, is NaN."""
    intervals = {}
    for name, value in row.items():
        if isinstance(value, dict):
            intervals[name] = SimpleNamespace(**{key: np.nan if one is None else one for key, one in value.items()})
    return intervals


def _groups(content: dict) -> list[SimpleNamespace]:
    return [SimpleNamespace(**row, intervals=_intervals(row)) for row in content["generalisation"]["rows"]]


def animation() -> None:
    """A turning digit before an event camera, and the spikes of a layer of noisy neurons, untrained, that sees it."""
    random = np.random.RandomState(4)
    images = DATASETS["mnist5k"].load().train.images[:, 0].float() / 255
    label = motions.MOTIONS.index("rotate_clockwise")
    paths = motions.trajectories(np.array([label]), random)
    paths[..., 0] += motions.WIDTH / 2 - paths[:, :1, 0]  # in the middle
    paths[..., 1] += motions.HEIGHT / 2 - paths[:, :1, 1]
    light = motions.render(images[random.randint(len(images), size=1)], paths, torch.tensor([1.5]))
    events, _ = motions.camera(light, motions.STEP_US, random)
    steps = motions.STEPS
    size = motions.WIDTH, motions.HEIGHT
    counts = count_frames(events, Framing(steps, "time", sensor=size, size=size))
    binary = torch.from_numpy(counts.astype(np.float32)).clamp(max=1)  # [T, 2, H, W]
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 8, 7, stride=4)
    with torch.no_grad(), noise_generator(torch.Generator().manual_seed(0)):
        spikes = NoisyLIF(Gaussian(0.15), decay=0.7, placement="escape")(3 * layer(binary)[:, None]).flatten(1)
    shown = spikes.sum(0).topk(60).indices.sort().values
    spikes = spikes[:, shown]
    frames = []
    with matplotlib.rc_context({**STYLE, **{key: LIGHT for key, value in STYLE.items() if value == INK}}):
        figure, ((seen, raster),) = subplots(7.4, 3.5, columns=2, grid=False, width_ratios=(1, 1.25))
        image = seen.imshow(np.zeros((motions.HEIGHT, motions.WIDTH, 3)), interpolation="nearest")
        seen.set(xticks=[], yticks=[], xlabel="x (48 pixels)", ylabel="y (48 pixels)")
        seen.set_title("events: brighter (orange), darker (blue)", fontsize=10)
        for spine in seen.spines.values():
            spine.set_visible(True)
        (dots,) = raster.plot([], [], "s", ms=2.2, color=LIGHT)
        now = raster.axvline(0, lw=1, color="#56B4E9")
        raster.set(xlim=(-5, 10 * steps), ylim=(-1, len(shown)), xlabel="time (ms)", ylabel="neuron")
        raster.set_title("spikes of a noisy layer", fontsize=10)
        for axes in (seen, raster):
            axes.set_facecolor(DARK)
        figure.draw_without_rendering()  # places all
        figure.set_layout_engine("none")  # each frame would be placed again
        for step in range(steps):
            colours = np.full((motions.HEIGHT, motions.WIDTH, 3), matplotlib.colors.to_rgb(DARK))
            colours[counts[step, 0] > 0] = matplotlib.colors.to_rgb("#56B4E9")
            colours[counts[step, 1] > 0] = matplotlib.colors.to_rgb("#E69F00")
            image.set_data(colours)
            time, neuron = spikes[: step + 1].nonzero().T
            dots.set_data(10 * time, neuron)
            now.set_xdata([10 * step])
            buffer = io.BytesIO()
            figure.savefig(buffer, dpi=100, facecolor=DARK)
            frames.append(Image.open(buffer).convert("RGB").quantize(32, dither=Image.Dither.NONE))
    path = FOLDER / "motions.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0, optimize=True)


PICTURES = {"noise": noise, "studies": studies, "redrawn": redrawn, "animation": animation}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"{', '.join(PICTURES)}; default: all"
    parser.add_argument("names", nargs="*", choices=[[], *PICTURES], metavar="NAME", help=names)
    for name in parser.parse_args().names or PICTURES:
        PICTURES[name]()
