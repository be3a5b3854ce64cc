"""Cards of pretrained networks say what the testing script measured."""

import json
import shutil

import pytest

from dataset_utils import DATASETS
from docs.quote import rendered
from models import pretrained
from tests.tools.test_export import written
from tools import card, cli, export


@pytest.mark.slow
def test_a_card_has_the_results_of_its_network_alone(tmp_path, monkeypatch, repository, caplog):
    for module in (pretrained, card):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    for name in ("tiny", "other"):
        export.export(written(tmp_path, seed=3), tmp_path / f"{name}.pth")
    tiny, other = "pretrained:tiny", f"{tmp_path}/other.pth"
    compared = ["--compare", f"noisy={tiny}", f"quiet={tiny}@noiseless", "--perturbation", "sp", "--draws", "2"]
    flags = ["--uncertainty", "--efficiency", "--severity", "1", "5", "--out", f"{tmp_path}/out"]
    cli.test(DATASETS["mnist5k"], [*compared, *flags])
    texts = ["--data", "digits", "--licence", "free", "--recipe", "python train.py"]
    card.main(["tiny", f"{tmp_path}/out/results.json", *texts])
    content = json.loads((tmp_path / "tiny.json").read_text())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (one,) = results["kinds"]["quiet"]
    mean = one["perturbations"]["clean"]["points"][0]["accuracy_mean"]
    assert str(tmp_path) not in json.dumps(content["commands"])
    assert content["accuracy"]["noiseless"]["mean"] == pytest.approx(mean, abs=1e-4) and content["training_seed"] == 3
    assert content["accuracy"]["noiseless"]["low"] < mean < content["accuracy"]["noiseless"]["high"]
    assert list(content["perturbations"]["noisy"]["sp"]) == ["0.01", "0.07"]
    assert list(content["calibration"]) == ["1", "16"] and content["energy_nj"] > 0 and content["test_samples"] == 1000
    for path in (repository / "pretrained").glob("*.json"):  # which other pages name
        shutil.copy(path, tmp_path)
    page = rendered(repository / "docs" / "src", repository / "docs" / "results", tmp_path)["pretrained.md"]
    assert "| `tiny` | mnist5k | 1000 |" in page
    assert "Data: digits.\n  Their licence: free.\n  `python train.py`.\n" in page
    cli.test(DATASETS["mnist5k"], ["--compare", f"a={tiny}", f"b={other}", "--draws", "1", "--out", f"{tmp_path}/two"])
    with pytest.raises(SystemExit):
        card.main(["tiny", f"{tmp_path}/two/results.json", *texts])
    assert "the results are of" in caplog.text and "other.pth, not of" in caplog.text
