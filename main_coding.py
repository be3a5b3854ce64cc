"""Neural codes: metrics, the scale of the noise, networks fitted to cells (docs/coding.md)."""

from functools import partial
from pathlib import Path

from dataset_utils import DATASETS
from tools.cli import study


def add_flags(parser):
    parser.add_argument("--recording", metavar="FILE", help="fit networks to a recording: .npz (movie, spikes) or NWB")


def chosen(arguments):
    from tools.studies.coding.experiments import experiments, recording  # needs SciPy; --help does not
    from tools.studies.coding.recordings import read_recording

    if arguments.recording:
        data, name = read_recording(arguments.recording), Path(arguments.recording).name
        return {"recording": partial(recording, data=data, name=name)}
    return experiments(DATASETS["mnist5k"].load().train.images[:, 0])


if __name__ == "__main__":
    study("coding", __doc__, chosen, more_flags=add_flags)
