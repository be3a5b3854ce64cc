"""What was pickled where this package has one name loads where it has the other."""

import pickle
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder

import pytest
from torch import nn

import models
from crits.losses import RateCrossEntropy
from models import Gaussian, NoisyLIF, build_neuron
from models.names import CRITS, NAMES, BothNames

(OTHER,) = [name for name in NAMES if name != models.__name__]

USE = """
import pickle, sys, warnings, torch
name, other, folder, made, to_make = sys.argv[1:]
sys.path.insert(0, folder)
package = __import__(name)
assert package.__file__.startswith(folder)
def start(seed):
    torch.manual_seed(seed)
    return package.build_model("toynet", neuron=package.build_neuron("NILIF"), in_shape=(1, 8, 8), num_classes=2)
def logits(net):
    with package.noise_generator(torch.Generator().manual_seed(0)):
        return net(torch.ones(4, 1, 8, 8), timesteps=3)
if made:
    law, neuron, factory, net = torch.load(made + ".pkl", weights_only=False)
    assert type(law) is package.Gaussian and isinstance(net, package.layers.SpikingNetwork)
    assert type(neuron) is type(factory()) is package.NoisyLIF
    assert torch.equal(logits(net), logits(start(0)))
    assert [type(one) for one in pickle.load(open(made + ".laws", "rb"))] == list(package.noise.LAWS)
    with torch.serialization.safe_globals([(package.Gaussian, other + ".noise.Gaussian")]):
        assert type(torch.load(made + ".law", weights_only=True)) is package.Gaussian
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of other settings of neurons
        twin = start(1)
        twin.load_state_dict(torch.load(made + ".weights", weights_only=True))
    assert torch.equal(logits(net), logits(twin))
torch.save((package.Gaussian(0.3), package.NoisyLIF(), package.build_neuron("NILIF"), start(0)), to_make + ".pkl")
torch.save(start(0).state_dict(), to_make + ".weights")
torch.save(package.Gaussian(0.3), to_make + ".law")
pickle.dump([law(0.2) for law in package.noise.LAWS], open(to_make + ".laws", "wb"))
"""


@pytest.fixture
def forgotten(monkeypatch):
    """Modules that were imported by the other name are imported anew in the test, and removed after it."""

    def others():
        return [name for name in sys.modules if name.split(".")[0] == OTHER]

    for name in others():
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in others():
        del sys.modules[name]


@pytest.fixture
def alone(monkeypatch, forgotten):
    """No other package is found, though one may be installed."""
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if isinstance(finder, BothNames)][-1:])


@pytest.mark.parametrize("content", [Gaussian(0.3), NoisyLIF(), nn.Sequential(NoisyLIF()), build_neuron("PLIF")])
def test_a_pickle_of_the_other_name_loads(alone, content):
    text = pickle.dumps(content, protocol=0)  # names are lines of text in it
    renamed = text.replace(f"{models.__name__}.".encode(), f"{OTHER}.".encode())
    assert renamed != text
    assert repr(pickle.loads(renamed)) == repr(content)
    assert pickle.dumps(pickle.loads(renamed), protocol=0).count(OTHER.encode()) == 0


def test_a_pickle_of_the_other_place_of_crits_loads(alone):
    assert pickle.loads(f"c{CRITS[OTHER]}.losses\nRateCrossEntropy\n.".encode()) is RateCrossEntropy


def test_both_names_give_the_same_modules(alone):
    scope = {}
    exec(f"import {OTHER}.kernels.common, {OTHER}.noise\nfrom {OTHER} import Gaussian, __version__", scope)
    assert scope["Gaussian"] is Gaussian and scope["__version__"] == models.__version__
    assert scope[OTHER].noise is models.noise and scope[OTHER].kernels.common is models.kernels.common
    with pytest.raises(ModuleNotFoundError, match=f"{OTHER}.absent"):
        exec(f"import {OTHER}.absent")


def test_another_package_of_that_name_is_not_hidden(alone, monkeypatch, tmp_path):
    sys.meta_path.insert(0, PathFinder)
    (tmp_path / OTHER).mkdir()
    (tmp_path / OTHER / "__init__.py").write_text("MINE = 1")
    monkeypatch.syspath_prepend(tmp_path)
    scope = {}
    exec(f"from {OTHER} import MINE", scope)
    assert scope["MINE"] == 1
    with pytest.raises(ModuleNotFoundError, match=f"{OTHER}.noise"):  # of this package, and no part of that one
        exec(f"import {OTHER}.noise")


def test_a_module_that_is_imported_later_is_found(alone, monkeypatch, tmp_path):
    sys.meta_path.append(PathFinder)
    (tmp_path / "later.py").write_text("class Late: pass")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.delattr(models, "later", raising=False)
    late = pickle.loads(f"c{OTHER}.later\nLate\n.".encode())
    assert late is sys.modules.pop(f"{models.__name__}.later").Late


@pytest.mark.slow
def test_laws_networks_and_weights_go_to_and_fro(tmp_path):
    # -I: neither the working directory nor PYTHONPATH is searched
    if not subprocess.run([sys.executable, "-I", "-c", f"import {NAMES[1]}"], capture_output=True).returncode:
        pytest.skip(f"{NAMES[1]} is installed in this environment, so that its pickles load as its own")
    for name in NAMES:
        shutil.copytree(models.__path__[0], tmp_path / f"only {name}" / name)
    made = ""
    for name, other, to_make in zip((*NAMES, NAMES[0]), (*NAMES[::-1], NAMES[1]), "123"):
        folder, to_make = tmp_path / f"only {name}", tmp_path / to_make
        command = [sys.executable, "-I", "-c", USE, name, other, folder, made, to_make]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made = to_make
