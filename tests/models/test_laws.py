"""A law is said in one table; a fused kernel computes the laws that it knows, or none in their place."""

import ctypes
import subprocess

import pytest
import torch

from models import Gaussian, NoiseLaw, NoisyLIF, build_neuron, mean_field, noise, noise_generator
from models.functional import noisy_lif
from models.kernels import build, cpu, fused, selftest
from models.kernels.common import Neuron
from models.registry import noisy_neurons
from tests.chance import likely
from tests.conftest import first_are_fast

FUSED = ["Gaussian", "Logistic", "Triangular", "Uniform", "Cauchy"]  # the laws that the fused kernels know


class Sixth(NoiseLaw):
    neuron_name = "NILIF_sixth"

    def cdf(self, x):
        z = (x - self.loc) / self.scale
        return torch.where(z < 0, 0.5 * z.clamp(max=0).exp(), 1 - 0.5 * (-z.clamp(min=0)).exp())

    def pdf(self, x):
        return (-((x - self.loc) / self.scale).abs()).exp() / (2 * self.scale)

    def icdf(self, p):
        return self.loc - self.scale * torch.sign(p - 0.5) * torch.log1p(-2 * (p - 0.5).abs())


@pytest.fixture
def sixth(monkeypatch):
    """A sixth law in the table, which no fused kernel knows."""
    monkeypatch.setattr(noise, "LAWS", (*noise.LAWS, Sixth))
    return Sixth(0.3)


def test_what_a_law_of_the_table_would_not_learn_is_refused(monkeypatch):
    class Wide(Sixth):
        def __init__(self, scale):
            super().__init__(scale)
            self.width = torch.nn.Parameter(torch.ones(()))

    monkeypatch.setattr(noise, "LAWS", (*noise.LAWS, Wide))
    with pytest.raises(ValueError, match="width of the noise would not be learnt"):
        NoisyLIF(Wide(0.3))


@pytest.mark.parametrize("name", ["NILIF", "LIF", "ReLU"])
def test_a_law_with_the_name_of_another_neuron_is_an_error(name):
    law = type("Another", (Sixth,), {"neuron_name": name})
    with pytest.raises(ValueError, match=f"{name!r} of Another is taken"):
        noisy_neurons((Gaussian, law))


@pytest.fixture
def namesake():
    """Another class called Gaussian, whose functions are those of the sixth law."""
    return type("Gaussian", (Sixth,), {"neuron_name": "NILIF_namesake"})


def test_laws_of_one_name_are_an_error(namesake, monkeypatch):
    with pytest.raises(ValueError, match="two laws of LAWS are called Gaussian"):
        noisy_neurons((Gaussian, namesake))
    monkeypatch.setattr(noise, "LAWS", (*noise.LAWS, namesake))
    cpu.kernel.cache_clear()
    try:
        with pytest.raises(ValueError, match="two laws of LAWS are called Gaussian"):
            NoisyLIF(namesake(0.3))(torch.ones(1, 1, 3))
    finally:
        cpu.kernel.cache_clear()
    with pytest.raises(ValueError, match="two laws of LAWS are called Gaussian"):
        fused._cuda(namesake, False)


def test_a_law_is_known_to_kernels_by_its_class_not_by_its_name(namesake, monkeypatch):
    x = torch.linspace(0.0, 2.0, 50).reshape(1, 1, 50)
    assert fused.serves(x, Gaussian(0.3))
    monkeypatch.setattr(noise, "LAWS", (*noise.LAWS, namesake))
    law = namesake(0.3)
    assert fused.serves(x, Gaussian(0.3)) and not fused.serves(x, law)
    neuron = NoisyLIF(law, placement="escape")
    with mean_field(neuron):
        torch.testing.assert_close(neuron(x), law.cdf(x - 1))


def test_a_law_in_the_tables_of_the_c_kernel_needs_its_functions(tmp_path):
    (tmp_path / "cpu.c").write_text(replaced("CAUCHY, LAW_COUNT };", "CAUCHY, SIXTH, LAW_COUNT };"))
    command = ["cc", "-std=gnu11", "-fsyntax-only", "-DINPUT_BITS=32", "cpu.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "each law has a name" in done.stderr and "give a new law its draw" in done.stderr


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_sixth_law_is_computed_by_itself_and_not_by_another(sixth):
    x = torch.linspace(0.0, 2.0, 20).repeat_interleave(20_000).reshape(1, 1, -1).requires_grad_()
    assert not fused.serves(x, sixth) and fused.serves(x, Gaussian(0.3))
    with pytest.raises(ValueError, match="no fused kernel supports Sixth"):
        noisy_lif(x, sixth, backend="fused")
    neuron = NoisyLIF(sixth, placement="escape")
    with noise_generator(seeded(1)):
        spikes = neuron(x)
    spikes.sum().backward()
    p = sixth.cdf(torch.linspace(-1.0, 1.0, 20))
    assert likely(spikes.detach().reshape(20, -1).sum(1), 20_000, p)
    torch.testing.assert_close(x.grad, sixth.pdf(x.detach() - 1))
    with mean_field(neuron):
        torch.testing.assert_close(neuron(x), sixth.cdf(x - 1))


def test_a_sixth_law_as_surrogate_keeps_its_density(sixth):
    x = torch.linspace(0.0, 2.0, 50).reshape(1, 1, 50).requires_grad_()
    NoisyLIF(Gaussian(0.3), placement="escape", surrogate=sixth)(x).sum().backward()
    torch.testing.assert_close(x.grad, sixth.pdf(x.detach() - 1))


def test_a_kernel_that_is_built_with_a_sixth_law_in_the_table_leaves_it_out(sixth):
    cpu.kernel.cache_clear()
    try:
        kernel = cpu.kernel(torch.float32)
        assert {law.__name__ for law in kernel.laws} == set(FUSED)
        with pytest.raises(KeyError, match="Sixth"):
            kernel.forward(torch.zeros(1, 1, 3), None, None, Neuron(sixth, 0.3), False, False)
    finally:
        cpu.kernel.cache_clear()


def test_every_law_is_a_neuron_of_the_registry():
    for law in noise.LAWS:
        neuron = build_neuron(law.neuron_name, sigma=0.7)()
        assert type(neuron.noise) is law and neuron.noise.scale == 0.7


def test_a_law_with_a_constructor_of_its_own_is_widened_about_its_centre(monkeypatch):
    class Shaped(Sixth):
        def __init__(self, scale, shape=2.0, loc=0.0):
            super().__init__(scale, loc)
            self.shape = shape

    monkeypatch.setattr(noise, "LAWS", (*noise.LAWS, Shaped))
    law, x = Shaped(0.3, shape=5.0, loc=0.1), torch.linspace(-2, 2, 41)
    wide = law.widened(2)
    torch.testing.assert_close(wide.cdf(x), Sixth(0.6, 0.1).cdf(x))
    torch.testing.assert_close(wide.pdf(x), Sixth(0.6, 0.1).pdf(x))
    assert wide.scale == 0.6 and wide.loc == 0.1 and law.shape == 5.0


BUGS = {  # what the compiler might have made of one law
    "draws of the Gaussian": ("scale, i) * sqrtf(-2.0f", "scale, i) * sqrtf(-1.0f"),
    "draws of the Cauchy": ("magnitude = q < 0.25f ? c / s : s / c;", "magnitude = c / s;"),
    "draws of the Triangular": ("magnitude = 1.0f - sqrtf(2.0f * q);", "magnitude = 1.0f - 2.0f * q;"),
    "density of the Triangular": ("inverse * (1 - y); /*", "inverse * (1 - y * y); /*"),
    "density of the Logistic": ("return inverse * e / ((1 + e) * (1 + e));", "return inverse * e / (1 + e);"),
    "probabilities of the Uniform": ("return (real)0.5 * (1 + y);", "return (real)0.5 + y;"),
    "probabilities of the Gaussian": ("p = fused_f(p, s, 6.18176", "p = fused_f(p, s, 6.19176"),
    "probabilities of the Cauchy": ("away > 1 ? part : (real)0.5 - part;", "part;"),
}


def compiled(text, folder):
    """cpu.c of this text, for float32."""
    (folder / "cpu.c").write_text(text)
    flags = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-DINPUT_BITS=32"]
    subprocess.run(["cc", *flags, "cpu.c", "-lm", "-o", "cpu.so"], cwd=folder, check=True)
    return cpu.Kernel(ctypes.CDLL(str(folder / "cpu.so")), torch.float32).checked()


def replaced(right, wrong):
    text = cpu.SOURCE.read_text()
    assert text.count(right) == 1
    return text.replace(right, wrong)


@pytest.mark.parametrize("bug", first_are_fast(BUGS, 2))
def test_a_law_that_is_compiled_wrongly_is_left_to_the_eager_kernel(bug, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "warnings_given", [])
    with pytest.warns(RuntimeWarning, match=f"eager kernel: the compiled {bug} law are not those"):
        kernel = compiled(replaced(*BUGS[bug]), tmp_path)
    assert set(FUSED) - {law.__name__ for law in kernel.laws} == {bug.split()[-1]}


def test_numbers_of_laws_come_from_the_kernel_so_that_their_order_cannot_disagree(tmp_path):
    enum = "enum { GAUSSIAN, LOGISTIC, TRIANGULAR, UNIFORM, CAUCHY, LAW_COUNT };"
    kernel = compiled(replaced(enum, "enum { CAUCHY, UNIFORM, TRIANGULAR, GAUSSIAN, LOGISTIC, LAW_COUNT };"), tmp_path)
    numbers = {law.__name__: number for law, number in kernel.laws.items()}
    assert numbers == {"Cauchy": 0, "Uniform": 1, "Triangular": 2, "Gaussian": 3, "Logistic": 4}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("law", FUSED)
def test_the_self_test_of_the_triton_kernel(law, dtype, monkeypatch):
    cuda = pytest.importorskip("models.kernels.cuda")
    like = torch.empty(0, dtype=dtype, device="cuda" if torch.cuda.is_available() else "cpu")
    kind = getattr(noise, law)
    selftest.check_law(cuda, kind, like)
    if dtype == torch.float32:
        monkeypatch.setattr(cuda, "KNOWN_LAWS", (*cuda.KNOWN_LAWS[1:], cuda.KNOWN_LAWS[0]))  # in another order
        with pytest.raises(build.BuildError, match=f"of the {law} law"):
            selftest.check_law(cuda, kind, like)


def test_the_triton_kernel_refuses_a_law_that_it_does_not_know(monkeypatch):
    cuda = pytest.importorskip("models.kernels.cuda")
    like = torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(noise, "LAWS", (*noise.LAWS, Sixth))
    with pytest.raises(ValueError, match="not in tuple|x not in"):
        selftest.check_law(cuda, Sixth, like)
    monkeypatch.setattr(cuda, "KNOWN_LAWS", (*cuda.KNOWN_LAWS, "Sixth"))
    with pytest.raises(Exception, match="does not know the law"):
        selftest.check_law(cuda, Sixth, like)
