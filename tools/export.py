"""Export a trained network: `python tools/export.py SNAPSHOT OUT.onnx|OUT.pt2|OUT.nir|OUT.pth`.

The ending of OUT chooses the format: ONNX, a program of torch.export, the Neuromorphic Intermediate Representation, or
a small checkpoint with weights in half precision, for `models.load_pretrained` and the testing scripts.
The network takes raw pixels in [0, 1], images [B, C, H, W] or frames [T, B, C, H, W], and gives logits [T, B, K]; B is
free, T is that of the training. NIR has neither B nor T, so that images come as frames, and has the noise in its
metadata. What was written is read again, run, and compared with the network.
"""

import argparse
import dataclasses
import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a file: Python would look for modules in tools/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor, nn

from dataset_utils import DATASETS
from models import ArgumentError, interop, load_pretrained, plain
from models.functional import MODES
from tools.attacks.twins import mean_field_twin
from tools.config.evaluate import EvaluationConfig
from tools.config.train import Dataset, OwnDataset, TrainConfig
from tools.errors import UserError
from tools.io import checkpoint
from tools.io.files import check_writable
from tools.networks import NEURON_SETTINGS, load_snapshot, stored_dataset
from tools.probes.hooks import is_noisy

logger = logging.getLogger(__name__)
EXAMPLES = 3  # samples that a network is exported with, and compared on
CLOSE = 1e-4  # of the largest logit, if that is above 1: the networks compute in float32
OF_A_MACHINE = ("data_root", "results", "run_dir", "resume", "device", "threads", "workers")  # settings
Both = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]  # what was written, and what it should be


@dataclasses.dataclass
class Exported:
    """A network for another runtime."""

    net: nn.Module
    trained: TrainConfig
    dataset: Dataset
    mode: str
    sample: Tensor
    timesteps: int | None  # of the direct coding of images; None for frames
    batch_dim: int

    @functools.cached_property
    def plain(self) -> nn.Module:
        """The network of plain operations, in the mode that was asked for."""
        return plain(self.net, self.mode, self.timesteps)

    @property
    def dynamic_shapes(self) -> tuple[dict, ...]:
        return ({self.batch_dim: torch.export.Dim("B")},)


def prepare(snapshot: Path, mode: str) -> Exported:
    """The network of a checkpoint of ours in a mode, and a random sample of its input.

    Raises:
        CheckpointError: if the file cannot be loaded.
        UserError: if it is not of this project, or of a data set of one's own.
    """
    content = checkpoint.read(snapshot)
    if not checkpoint.is_ours(content):
        raise UserError(f"{snapshot} does not carry its configuration: load it yourself, and use models.plain")
    if content["dataset"] not in DATASETS:
        raise UserError(f"{snapshot} was trained on {content['dataset']!r}; there are {', '.join(DATASETS)}")
    dataset = stored_dataset(DATASETS[content["dataset"]], content, snapshot)
    net, trained = load_snapshot(EvaluationConfig(snapshot=str(snapshot)), dataset)
    shape = dataset.input_shape(trained)
    if dataset.has_pixels:
        sample, timesteps, batch_dim = torch.rand(EXAMPLES, *shape), trained.timestep, 0
    else:
        sample, timesteps, batch_dim = torch.rand(trained.timestep, EXAMPLES, *shape), None, 1
    return Exported(net, trained, dataset, mode, sample, timesteps, batch_dim)


def to_pt2(exported: Exported, out: Path) -> Both:
    program = torch.export.export(exported.plain, (exported.sample,), dynamic_shapes=exported.dynamic_shapes)
    torch.export.save(program, out)
    return torch.export.load(out).module(), exported.plain


def to_onnx(exported: Exported, out: Path) -> Both:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # PyTorch's exporter needs it
    except ImportError as error:
        raise UserError(f"ONNX needs pip install onnx onnxscript onnxruntime ({error})") from error
    names = dict(input_names=["pixels"], output_names=["logits"])
    torch.onnx.export(
        exported.plain, (exported.sample,), out, dynamic_shapes=exported.dynamic_shapes, verbose=False, **names
    )
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0]), exported.plain


def to_nir(exported: Exported, out: Path) -> Both:
    """In the mean field, both are compared: rounding may decide a spike, but hardly changes a probability."""
    try:
        nir = interop.nir
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from error

    def frames(pixels: Tensor) -> Tensor:
        return pixels if exported.timesteps is None else pixels.expand(exported.timesteps, *pixels.shape)

    try:
        nir.write(out, exported.net, frames(exported.sample))
    except ArgumentError as error:
        raise UserError(str(error)) from error
    written, net = mean_field_twin(nir.read(out)), mean_field_twin(exported.net)
    return lambda pixels: written(frames(pixels)), lambda pixels: net(frames(pixels))


def to_pth(exported: Exported, out: Path) -> Both:
    """Compared with the network of rounded weights: rounding may decide a spike."""
    net, trained, dataset = exported.net, exported.trained, exported.dataset
    weights = net.state_dict()
    for key, value in weights.items():
        if value.is_floating_point():
            weights[key] = value.half()
            value.copy_(weights[key])
    about = dict(
        dataset=dataset.name,
        classes=list(dataset.classes),
        timesteps=trained.timestep,
        in_shape=list(dataset.input_shape(trained)),
        num_classes=dataset.num_classes,
        model=trained.model,
        width=trained.width,
        norm=None if trained.nobn else "bn",
        neuron=trained.neuron,
        neuron_settings={name: getattr(trained, name) for name in NEURON_SETTINGS},
    )
    elsewhere = dataclasses.replace(trained, **{name: getattr(TrainConfig, name) for name in OF_A_MACHINE})
    content = dict(config=dataclasses.asdict(elsewhere), dataset=dataset.name, model=weights, network=about)
    if isinstance(dataset, OwnDataset):
        content["facts"] = dataset.facts()
    checkpoint.save(out, content)
    return plain(load_pretrained(out), exported.mode, exported.timesteps), exported.plain


FORMATS: dict[str, Callable[[Exported, Path], Both]] = {
    ".onnx": to_onnx,
    ".pt2": to_pt2,
    ".nir": to_nir,
    ".pth": to_pth,
}


def export(snapshot: Path, out: Path, mode: str = "noiseless") -> float | None:
    """Write the network of a checkpoint to a file, and return how much its logits differ; None if they are random.

    The difference is the largest one, in units of the largest logit if that is above 1.

    Raises:
        UserError: if the ending of `out` is unknown, a package is missing, or the written network differs.
        OSError: if the folder of `out` cannot be made or written.
    """
    if out.suffix not in FORMATS:
        raise UserError(f"OUT must end in {', '.join(FORMATS)}, got {out.name!r}")
    exported = prepare(snapshot, mode)
    out.parent.mkdir(parents=True, exist_ok=True)
    check_writable(out.parent)  # PyTorch's own errors are of many kinds
    run, right = FORMATS[out.suffix](exported, out)
    fewer = exported.sample.narrow(exported.batch_dim, 0, EXAMPLES - 1)  # another batch than at the export
    with torch.no_grad():
        logits, expected = run(fewer), right(fewer)
    if mode == "noisy" and is_noisy(exported.net) and out.suffix != ".nir":
        return None
    difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    if not difference <= CLOSE:
        raise UserError(f"the logits of {out} differ by {difference:.2g} from those of the network")
    return difference


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("snapshot", type=Path, metavar="SNAPSHOT", help="a checkpoint, such as best.pth")
    parser.add_argument("out", type=Path, metavar="OUT", help=f"file to write; ends in {', '.join(FORMATS)}")
    parser.add_argument(
        "--inference",
        "--mode",
        dest="mode",
        choices=MODES,
        default="noiseless",
        help="mode of noisy neurons (default: %(default)s); NIR has no modes",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        difference = export(options.snapshot, options.out, options.mode)
    except (ArgumentError, OSError, UserError) as error:
        logger.error("error: %s", error)
        sys.exit(1)
    how = "draws its own noise" if difference is None else f"equal to the network up to {difference:.1g} in the logits"
    mode = "noise in the metadata" if options.out.suffix == ".nir" else options.mode
    logger.info("%s: %s, %s", options.out, mode, how)


if __name__ == "__main__":
    main()
