"""Variability and reliability of neural codes: metrics, the scale of the noise, and networks fitted to cells.

docs/coding.md has the results. `python main_coding.py --help` lists all settings.
"""

from functools import partial
from pathlib import Path

from dataset_utils import DATASETS
from tools.cli import study


def add_flags(parser):
    parser.add_argument("--recording", metavar="FILE", help="fit to a recording: .npz (movie, spikes) or NWB")


def chosen(arguments):
    # These need SciPy and Matplotlib, which --help does without.
    from tools.studies.coding.experiments import experiments, recording
    from tools.studies.coding.recordings import read_recording

    if arguments.recording:
        data, name = read_recording(arguments.recording), Path(arguments.recording).name
        return {"recording": partial(recording, data=data, name=name)}
    return experiments(DATASETS["mnist5k"].load()["train"].images[:, 0])


if __name__ == "__main__":
    description = "Variability and reliability of noisy neurons and of networks fitted to them."
    study("coding", description, chosen, more_flags=add_flags)
