"""The folder of a run."""

from pathlib import Path

from tools.io.files import make_folder_of_now


def make_run_folder(results, dataset, model, neuron, seed):
    """Make <results>/<dataset>/<model>-<neuron>/<time>-s<seed>/, which no other run has."""
    return make_folder_of_now(Path(results) / dataset / f"{model}-{neuron}", f"-s{seed}")
