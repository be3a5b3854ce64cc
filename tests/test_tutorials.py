"""The tutorials run as they stand, teach what they say, and leave nothing behind."""

import re
import runpy
import sys
import tempfile
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot as plt

from tests.conftest import first_are_fast

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "tutorials"
PATHS = sorted(FOLDER.glob("*.py"))
LINES = 150  # at most

# What holds of the variables that a tutorial leaves, if its text is true. The first fixes its seeds; chance in the
# others is that of training, whose accuracies are far from these bounds.
TAUGHT = {
    "01_a_noisy_neuron": [
        "error < allowed",
        "(gradient - law.pdf(current - 1)).abs().max() < 1e-5",
        "torch.equal(trains, repeated)",
        "silent.sum() == 0 and potentials.max() < 1",
        "trains.sum(0).min() > 0 and trains.sum(0).unique().numel() > 1",
    ],
    "02_train_test_and_read_the_report": [
        "'What differs' in headings",
        "all(rows[-1]['val_accuracy'] > 0.7 for rows in epochs.values())",
        "all(rows[-1]['train_loss'] < rows[0]['train_loss'] for rows in epochs.values())",
        "all(rows[0]['accuracy_mean'] > rows[2]['accuracy_mean'] + 0.05 for rows in points.values())",
        "'A single seed per group cannot tell NSNN from SNN' in page",
    ],
    "03_your_network_now_noisy": [
        "results.keys() - {'nsnn'} == {name for name in BUILDERS if importlib.util.find_spec(name)} - {'nsnn'}",
        "all(wrong == 0 for one in mismatches.values() for wrong, _ in one.values())",
        "all(abs(noiseless - trained) < 1e-6 for trained, noiseless, _, _ in results.values())",
        "all(abs(noisy - trained) < 0.05 for trained, _, noisy, _ in results.values())",
        "all(tuned > max(0.85, noisy - 0.02) for _, _, noisy, tuned in results.values())",
    ],
    "04_convert_a_relu_network": [
        "relu > 0.9",
        "abs(calibrated[-1] - relu) < 0.015 < relu - calibrated[0]",
        "calibrated[0] < calibrated[-1] and plain[-1] < calibrated[-1]",
        "after > before and after > calibrated[steps.index(few)]",
    ],
    "05_event_recordings": ["frames.sum() == len(events) > 0", "accuracy > 0.7"],
    "06_robustness_you_may_believe": [
        "weak['SNN'][2] > max(weak['NSNN'][2], strong['SNN'][radii[1]] + 0.3)",
        "all(found <= before + 0.05 for name in nets for found, before in zip(strong[name].values(), weak[name]))",
        "len(reports['NSNN'].gates) > len(reports['SNN'].gates) > 5",
        "found.low < found.difference < found.high",
    ],
    "07_uncertainty": [
        "scores[16]['accuracy'] > 0.85 and scores[16]['nll'] < scores[1]['nll'] - 0.003",
        "min(separation.scores.values()) > 0.6",
        "right_of_certain > scores[16]['accuracy'] + 0.02",
    ],
    "08_fit_spike_trains": [
        "judged['NSNN'].cc_norm > judged['SNN'].cc_norm + 0.1",
        "judged['NSNN'].fano_mismatch < 0.3 and judged['NSNN'].reliability < judged['NSNN'].reliability_recorded",
        "judged['SNN'].fano == 0 and judged['SNN'].reliability > 0.999",
    ],
    "09_your_own_law_and_neuron": [
        "slope_error < 1e-9 and quantile_error < 1e-9",
        "abs(sample.std() - 0.3) < 0.01 and abs(law.std - 0.3) < 1e-4",
        "rates['TiringLIF'][-20:].mean() < 0.7 * rates['TiringLIF'][:5].mean()",
        "abs(rates['NoisyLIF'][-20:].mean() - rates['NoisyLIF'][5:25].mean()) < 0.05",
        "accuracy > 0.7 and len(stream.state[0]) == 2",
    ],
    "10_stream_and_export": [
        "difference < 1e-5",
        "accuracy[-1] > 0.8 and accuracy[-1] > accuracy[0] + 0.05",
        "all(map(importlib.util.find_spec, ('onnx', 'onnxscript', 'onnxruntime'))) == ('largest' in globals())",
        "globals().get('largest', 0) < 1e-4",
    ],
}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a script in an empty folder, and with another one for its temporary files: path -> its variables."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    matplotlib.use("agg")
    with plt.rc_context():
        yield lambda path: runpy.run_path(str(path))
    plt.close("all")


@pytest.mark.parametrize("name", first_are_fast(TAUGHT))
def test_a_tutorial_teaches_what_it_says_and_leaves_nothing_behind(name, run, tmp_path):
    names = run(FOLDER / f"{name}.py")
    for condition in TAUGHT[name]:
        assert eval(condition, names), condition
    assert list((tmp_path / "here").iterdir()) == []
    assert list(tmp_path.glob("tmp*")) == []  # PyTorch and onnxruntime leave files of other names there


def test_each_tutorial_is_run_and_in_the_contents():
    names = [path.stem for path in PATHS]
    assert names == list(TAUGHT)
    assert re.findall(r"\]\((\w+)\.py\)", (FOLDER / "index.md").read_text()) == names


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_tutorial_is_a_notebook_that_begins_with_a_question(path):
    text = path.read_text()
    cells = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)
    assert cells[0] == "" and len(text.splitlines()) <= LINES
    kinds, cells = cells[1::2], cells[2::2]
    assert set(kinds) == {"", " [markdown]"} and kinds[0] == kinds[-1] == " [markdown]"
    for kind, cell in zip(kinds, cells):
        if kind:  # all of it is text
            assert all(line.startswith("#") for line in cell.strip().splitlines())
    assert re.match(r"# # [^\n]+\n#\n# \*\*[^*]+\?\*\*\n", cells[0])
    assert "# ## What to try" in cells[-1] and "# Reference: " in cells[-1]
    for link in re.findall(r"\]\(([^)#:]+)", text):
        assert (FOLDER / link).exists(), link
