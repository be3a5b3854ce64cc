"""Networks from files that say how they are built."""

import functools
import http.server
import threading

import pytest
import torch

from models import ArgumentError, build_model, build_neuron, load_pretrained, noiseless, pretrained
from models.layers import Normalize


def written(path, **changed):
    """A file as `tools/export.py` writes them, and its network with weights in half precision."""
    settings = dict(sigma=0.4, placement="escape", learnable_scale=True)
    about = dict(model="toynet", width=0.5, norm="bn", in_shape=[2, 8, 8], num_classes=3, timesteps=4)
    about |= dict(neuron="NILIF_sigmoid", neuron_settings=settings, dataset="own", classes=["a", "b", "c"])
    neuron = build_neuron(about["neuron"], **settings)
    net = build_model("toynet", neuron=neuron, in_shape=(2, 8, 8), num_classes=3, width=0.5).half()
    net.normalize = Normalize([0.5, 0.25], [0.25, 0.5])
    torch.save({"network": {**about, **changed}, "model": net.state_dict()}, path)
    return net.float().eval()


def outputs(net):
    torch.manual_seed(0)
    with torch.no_grad(), noiseless(net):
        return net(torch.rand(5, 4, 2, 8, 8))


def test_a_file_is_the_network_that_was_written(tmp_path):
    net = written(tmp_path / "net.pth")
    loaded = load_pretrained(tmp_path / "net.pth")
    assert torch.equal(outputs(loaded), outputs(net)) and not loaded.training
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert loaded.about["classes"] == ["a", "b", "c"] and loaded.about["timesteps"] == 4
    for left, right in zip(loaded.modules(), net.modules()):
        assert repr(left) == repr(right)


def test_a_name_is_a_file_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(ArgumentError, match="nosuch is neither a file nor a pretrained network; there are none"):
        load_pretrained("nosuch")
    net = written(tmp_path / "small.pth")
    assert torch.equal(outputs(load_pretrained("small")), outputs(net))
    with pytest.raises(ArgumentError, match="nosuch.*there are small$"):
        load_pretrained("nosuch")


def test_an_address_is_fetched(tmp_path, monkeypatch):
    net = written(tmp_path / "net.pth")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            loaded = load_pretrained(f"http://127.0.0.1:{server.server_port}/net.pth")
        finally:
            server.shutdown()
    assert torch.equal(outputs(loaded), outputs(net))


@pytest.mark.parametrize(
    "changed, problem",
    [
        (dict(width=1.0), "its weights are not those of its network"),
        (dict(width=900.0), "its weights are not those of its network"),
        (dict(model="nosuch"), "unknown model"),
        (dict(neuron_settings={"sigma": 0.4, "nosuch": 1}), "nosuch"),
        (dict(in_shape=[2, 8]), "in_shape"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(changed, problem, tmp_path):
    written(tmp_path / "net.pth", **changed)
    with pytest.raises(ArgumentError, match=f"net.pth cannot be loaded: .*{problem}"):
        load_pretrained(tmp_path / "net.pth")


@pytest.mark.parametrize("content", [torch.ones(2), {"weight": torch.ones(2)}, {"network": 3, "model": {}}])
def test_other_files_are_errors(content, tmp_path):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ArgumentError, match="does not say how its network is built"):
        load_pretrained(tmp_path / "net.pth")
