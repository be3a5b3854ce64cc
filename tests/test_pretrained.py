"""The networks of the folder `pretrained` are as good as their cards say."""

import json
import os

import pytest

from dataset_utils import DATASETS
from models import load_pretrained
from models.pretrained import FOLDER
from tests.chance import deviations
from tools.config.evaluate import EvaluationConfig
from tools.evaluation.snapshot import Snapshot

CARDS = sorted(FOLDER.glob("*.json"))


def test_each_network_has_a_card_and_is_small():
    assert CARDS and {path.stem for path in CARDS} == {path.stem for path in FOLDER.glob("*.pth")}
    for path in FOLDER.glob("*.pth"):
        assert path.stat().st_size <= 4e6
        assert set(load_pretrained(path.stem).about) >= {"dataset", "classes", "timesteps", "in_shape"}


@pytest.mark.slow
@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_accuracy_is_that_of_the_card(path):
    content = json.loads(path.read_text())
    dataset = DATASETS[content["dataset"]]
    config = EvaluationConfig(snapshot=f"pretrained:{path.stem}", data_root=os.environ.get("NSNN_DATA", ""))
    try:
        snapshot = Snapshot(config, dataset)
    except FileNotFoundError:
        pytest.skip(f"{dataset.name} is not here")
    assert len(snapshot.test) == content["test_samples"]
    assert snapshot.folder.path.parts[:2] == ("results", dataset.name)  # not in the folder of the networks
    log_p, target = snapshot.predict(snapshot.test, "card")
    accuracy, expected = (log_p[0].argmax(-1) == target).double().mean().item(), content["accuracy"]["noisy"]["mean"]
    # The samples are the same: only the noise of those that are undecided differs, and rounding on other processors.
    error = (expected * (1 - expected) / len(target)) ** 0.5
    assert abs(accuracy - expected) < deviations() * error + 1 / len(target)
