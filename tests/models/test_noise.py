"""Noise laws against scipy.stats, calculus and their own samples."""

import copy
import math
import pickle

import pytest
import torch
from scipy import stats

from models import Cauchy, Gaussian, Logistic, NoiseLaw, Triangular, Uniform, noise_generator
from models.noise import Rescaled
from tests.chance import ERROR

# What scipy calls each law.
SCIPY = {
    Gaussian: lambda scale, loc: stats.norm(loc, scale),
    Logistic: lambda scale, loc: stats.logistic(loc, scale),
    Triangular: lambda scale, loc: stats.triang(0.5, loc - scale, 2 * scale),
    Uniform: lambda scale, loc: stats.uniform(loc - scale, 2 * scale),
    Cauchy: lambda scale, loc: stats.cauchy(loc, scale),
}
LAWS = list(SCIPY)
every_law = pytest.mark.parametrize("law_class", LAWS, ids=lambda c: c.__name__)
every_width = pytest.mark.parametrize("scale, loc", [(1.0, 0.0), (0.3, 0.0), (0.3, -0.7), (2.5, 1.2)])

EXTREMES = [0.0, 200.0, 1e4, 1e20, 1e30, 3e38]
EXTREMES_64 = [*EXTREMES, 1e100, 1e154, 1e200, 1e300]


class Laplace(NoiseLaw):
    """A user's law, as the README of a user would have it: cdf, pdf, icdf and no more."""

    def cdf(self, x):
        z = (x - self.loc) / self.scale
        return 0.5 + 0.5 * torch.sign(z) * -torch.expm1(-z.abs())

    def pdf(self, x):
        return torch.exp(-((x - self.loc) / self.scale).abs()) / (2 * self.scale)

    def icdf(self, p):
        q = p - 0.5
        return self.loc - self.scale * torch.sign(q) * torch.log1p(-2 * q.abs())


class LaplaceWithSuper(Laplace):
    def __init__(self, b):
        super().__init__(b)


class LaplaceWithoutInit(NoiseLaw):
    """Has no own __init__ arguments and never calls NoiseLaw.__init__: scale and loc stay 1 and 0."""

    b = 0.02

    def __init__(self):
        pass

    def cdf(self, x):
        return 0.5 + 0.5 * torch.sign(x) * -torch.expm1(-x.abs() / self.b)

    def pdf(self, x):
        return torch.exp(-x.abs() / self.b) / (2 * self.b)

    def icdf(self, p):
        q = p - 0.5
        return -self.b * torch.sign(q) * torch.log1p(-2 * q.abs())


def grid(scale, loc):
    """Points of the law's bulk and tails that avoid the corners at z = -1, 0 and 1."""
    return loc + scale * torch.cat([torch.linspace(-5.03, 5.03, 400), torch.linspace(-0.98, 0.98, 98)]).double()


@every_law
@every_width
def test_pdf_is_derivative_of_cdf_by_finite_differences(law_class, scale, loc):
    law, x = law_class(scale, loc), grid(scale, loc)
    h = 1e-5 * scale
    difference = (law.cdf(x + h) - law.cdf(x - h)) / (2 * h)
    torch.testing.assert_close(law.pdf(x), difference, rtol=1e-6, atol=1e-7 / scale)


@every_law
@every_width
def test_pdf_is_derivative_of_cdf_by_autograd(law_class, scale, loc):
    law = law_class(scale, loc)
    x = grid(scale, loc).requires_grad_()
    (slope,) = torch.autograd.grad(law.cdf(x).sum(), x)
    torch.testing.assert_close(slope, law.pdf(x.detach()), rtol=1e-10, atol=1e-12)


@every_law
@every_width
def test_pdf_is_differentiable_itself(law_class, scale, loc):
    law, h = law_class(scale, loc), 1e-5 * scale
    x = grid(scale, loc).requires_grad_()
    (slope,) = torch.autograd.grad(law.pdf(x).sum(), x)
    x = x.detach()
    torch.testing.assert_close(slope, (law.pdf(x + h) - law.pdf(x - h)) / (2 * h), rtol=1e-5, atol=1e-6 / scale**2)


@every_law
@every_width
def test_agrees_with_scipy(law_class, scale, loc):
    law, reference = law_class(scale, loc), SCIPY[law_class](scale, loc)
    x = grid(scale, loc)
    p = torch.linspace(0.001, 0.999, 333, dtype=torch.float64)
    for ours, theirs, points in [
        (law.cdf, reference.cdf, x),
        (law.pdf, reference.pdf, x),
        (law.icdf, reference.ppf, p),
    ]:
        expected = torch.as_tensor(theirs(points.numpy()))
        torch.testing.assert_close(ours(points), expected, rtol=1e-9, atol=1e-12)


@every_law
@every_width
def test_std_agrees_with_scipy(law_class, scale, loc):
    expected = math.inf if law_class is Cauchy else SCIPY[law_class](scale, loc).std()
    assert law_class(scale, loc).std == pytest.approx(expected, rel=1e-12)


@every_law
@every_width
def test_icdf_inverts_cdf_both_ways(law_class, scale, loc):
    law = law_class(scale, loc)
    p = torch.linspace(1e-4, 1 - 1e-4, 1001, dtype=torch.float64)
    torch.testing.assert_close(law.cdf(law.icdf(p)), p, rtol=1e-9, atol=1e-12)
    x = loc + scale * torch.linspace(-0.99, 0.99, 301, dtype=torch.float64)  # inside every support
    torch.testing.assert_close(law.icdf(law.cdf(x)), x, rtol=1e-9, atol=1e-10 * scale)


@every_law
@every_width
def test_symmetric_about_loc(law_class, scale, loc):
    law = law_class(scale, loc)
    d = scale * torch.linspace(0.003, 8, 500, dtype=torch.float64)
    torch.testing.assert_close(law.pdf(loc + d), law.pdf(loc - d), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(law.cdf(loc + d) + law.cdf(loc - d), torch.ones_like(d), rtol=1e-12, atol=1e-12)
    assert law.cdf(torch.tensor([loc], dtype=torch.float64)).item() == pytest.approx(0.5, abs=1e-12)
    assert law.icdf(torch.tensor([0.5], dtype=torch.float64)).item() == pytest.approx(loc, abs=1e-12)


@every_law
def test_both_tails_of_the_density_keep_their_digits(law_class):
    """F (1 - F) in place of F(z) F(-z) would lose the upper tail of the logistic density to rounding."""
    law, reference = law_class(1.0), SCIPY[law_class](1.0, 0.0)
    d = torch.tensor([2.0, 5.0, 10.0, 14.0, 20.0, 30.0])
    for x in (d, -d):
        expected = torch.as_tensor(reference.pdf(x.double().numpy()))
        torch.testing.assert_close(law.pdf(x).double(), expected, rtol=1e-4, atol=1e-37)


@pytest.mark.parametrize("law_class", [Gaussian, Logistic, Cauchy], ids=lambda c: c.__name__)
def test_lower_tail_of_the_distribution_keeps_its_digits(law_class):
    """Small firing probabilities are no differences of numbers near 1/2 (as those of torch.special.ndtr are)."""
    x = -torch.tensor([2.0, 5.0, 10.0, 14.0, 20.0, 30.0, 60.0])
    expected = torch.as_tensor(SCIPY[law_class](1.0, 0.0).cdf(x.double().numpy()))
    torch.testing.assert_close(law_class(1.0).cdf(x).double(), expected, rtol=1e-4, atol=1e-37)


@every_law
@every_width
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cdf_rises_from_zero_to_one(law_class, scale, loc, dtype):
    law = law_class(scale, loc)
    far = torch.logspace(-3, 37, 500, dtype=dtype)
    x = torch.cat([-far.flip(0), grid(scale, loc).to(dtype).sort().values, far]).sort().values
    F = law.cdf(x)
    rounding = 4 * torch.finfo(dtype).eps
    assert (F.diff() >= -rounding).all()
    assert F.min() >= 0 and F.max() <= 1
    assert F[0] < 1e-7 and F[-1] > 1 - 1e-7
    assert (law.pdf(x) >= 0).all()


@every_law
@every_width
def test_density_integrates_to_one(law_class, scale, loc):
    """By trapezoids over the whole line, z = tan(angle): exact enough for corners and Cauchy tails."""
    angle = torch.linspace(-math.pi / 2, math.pi / 2, 400_001, dtype=torch.float64)[1:-1]
    x = loc + scale * torch.tan(angle)
    mass = torch.trapezoid(law_class(scale, loc).pdf(x) * scale / torch.cos(angle).square(), angle)
    assert mass.item() == pytest.approx(1.0, abs=3e-5)


@every_law
@every_width
def test_samples_follow_the_law(law_class, scale, loc):
    """Kolmogorov-Smirnov."""
    sample = law_class(scale, loc).sample((200_000,), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert stats.kstest(sample.numpy(), SCIPY[law_class](scale, loc).cdf).pvalue > ERROR


@every_law
def test_float32_samples_follow_the_law(law_class):
    sample = law_class(0.3).sample((200_000,), generator=torch.Generator().manual_seed(4), dtype=torch.float32)
    assert stats.kstest(sample.double().numpy(), SCIPY[law_class](0.3, 0.0).cdf).pvalue > ERROR


@every_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_samples_are_finite(law_class, dtype):
    sample = law_class(0.3).sample((1_000_000,), generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert sample.dtype == dtype
    assert sample.isfinite().all()


@every_law
def test_sample_is_finite_and_right_sided_at_the_ends_of_torch_rand(law_class, monkeypatch):
    """torch.rand can return 0, and 1 - 2^-24 is the largest it returns in float32: rare, so put in by hand."""
    ends = torch.tensor([0.0, 1 - 2.0**-24])
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: ends.clone())
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: torch.tensor([-6.0, 6.0]))
    low, high = law_class(0.3).sample((2,)).tolist()
    assert -math.inf < low < -0.25 and 0.25 < high < math.inf


@every_law
def test_sample_shape_dtype_device(law_class):
    law = law_class(0.3)
    assert law.sample((2, 3)).shape == (2, 3)
    assert law.sample(torch.Size([4])).dtype == torch.get_default_dtype()
    assert law.sample((4,), dtype=torch.float64, device="cpu").dtype == torch.float64
    assert law.sample((0, 3)).shape == (0, 3)


def finite_forward_and_backward(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all(), y
    assert slope.isfinite().all(), slope


@every_law
@pytest.mark.parametrize("scale, loc", [(0.3, 0.0), (1.0, 0.5), (1e-3, 0.0), (1e3, -5.0)])
@pytest.mark.parametrize("dtype, sizes", [(torch.float32, EXTREMES), (torch.float64, EXTREMES_64)], ids=["f32", "f64"])
@pytest.mark.parametrize("method", ["cdf", "pdf"])
def test_finite_for_every_finite_input(law_class, scale, loc, dtype, sizes, method):
    x = torch.tensor(sizes + [-size for size in sizes], dtype=dtype)
    finite_forward_and_backward(getattr(law_class(scale, loc), method), x)


@every_law
@pytest.mark.parametrize("ratio", [0.1, 10.0])
@pytest.mark.parametrize("method", ["cdf", "pdf"])
def test_rescaled_law_is_finite_for_every_finite_input(law_class, ratio, method):
    x = torch.tensor(EXTREMES + [-size for size in EXTREMES])
    law = law_class(0.3)
    finite_forward_and_backward(getattr(Rescaled(law, torch.tensor(0.3 * ratio)), method), x)


@every_law
def test_finite_at_the_corners_of_the_support(law_class):
    law = law_class(0.3, 0.1)
    x = torch.tensor([-0.2, 0.1, 0.4, 0.1 + 0.3, 0.1 - 0.3])
    finite_forward_and_backward(law.cdf, x)
    finite_forward_and_backward(law.pdf, x)


@pytest.mark.parametrize("law", [Logistic(1.0), Logistic(0.3), Gaussian(0.3), Triangular(0.3), Uniform(0.3)], ids=str)
def test_density_far_out_is_exactly_zero(law):
    """In the published code exp(200) overflowed, and the logistic density at -200 was NaN."""
    assert law.pdf(torch.tensor([-200.0, 200.0])).tolist() == [0.0, 0.0]


@every_law
@every_width
def test_rescaled_law_equals_the_law_built_at_that_scale(law_class, scale, loc):
    widened = law_class(scale, loc).widened(1.7)
    assert type(widened) is law_class and widened.scale == 1.7 * scale and widened.loc == loc
    stretched, direct = Rescaled(law_class(scale, loc), 1.7 * scale), law_class(1.7 * scale, loc)
    x, p = grid(scale, loc), torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(stretched.cdf(x), direct.cdf(x), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(stretched.pdf(x), direct.pdf(x), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(stretched.icdf(p), direct.icdf(p), rtol=1e-9, atol=1e-12)
    assert stretched.std == pytest.approx(direct.std)
    one = stretched.sample((100,), torch.Generator().manual_seed(1))
    two = direct.sample((100,), torch.Generator().manual_seed(1))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@every_law
@pytest.mark.parametrize("scale", [0.0, -0.3, math.inf, -math.inf, math.nan])
def test_scale_must_be_positive_and_finite(law_class, scale):
    with pytest.raises(ValueError, match=rf"scale.*positive.*{scale}"):
        law_class(scale)


@every_law
@pytest.mark.parametrize("loc", [math.inf, -math.inf, math.nan])
def test_loc_must_be_finite(law_class, loc):
    with pytest.raises(ValueError, match=rf"loc.*finite.*{loc}"):
        law_class(0.3, loc=loc)


def test_scale_of_the_wrong_type_is_a_type_error():
    with pytest.raises(TypeError):
        Gaussian("0.3")


@pytest.mark.parametrize("missing", ["cdf", "pdf", "icdf"])
def test_a_law_without_one_of_its_functions_cannot_be_made(missing):
    functions = {name: getattr(Gaussian, name) for name in ("cdf", "pdf", "icdf") if name != missing}
    with pytest.raises(TypeError, match=missing):
        type("Part", (NoiseLaw,), functions)(1.0)


def test_noise_is_on_the_device_that_is_asked_for():
    """Numbers of a generator are moved there from its own device."""
    for generator in (None, torch.Generator()):
        assert Gaussian(0.3).sample((2,), generator, device="meta").device.type == "meta"
        assert Gaussian(0.3).sample((2,), generator).device.type == "cpu"


@every_law
def test_repr_pickle_and_deepcopy(law_class):
    law = law_class(0.3, loc=0.25)
    assert repr(law) == f"{law_class.__name__}(0.3, loc=0.25)"
    x = torch.linspace(-1, 1, 9)
    for twin in (pickle.loads(pickle.dumps(law)), copy.deepcopy(law)):
        assert type(twin) is law_class
        assert torch.equal(twin.cdf(x), law.cdf(x))


# ---- where the numbers come from


@every_law
def test_manual_seed_repeats_the_noise(law_class):
    law = law_class(0.3)
    torch.manual_seed(11)
    first, second = law.sample((50,)), law.sample((50,))
    torch.manual_seed(11)
    assert torch.equal(law.sample((50,)), first)
    assert torch.equal(law.sample((50,)), second)
    assert not torch.equal(first, second)


@every_law
def test_generator_argument_repeats_and_leaves_the_default_generator_alone(law_class):
    law = law_class(0.3)
    before = torch.get_rng_state()
    first = law.sample((50,), generator=torch.Generator().manual_seed(5))
    assert torch.equal(law.sample((50,), generator=torch.Generator().manual_seed(5)), first)
    assert not torch.equal(law.sample((50,), generator=torch.Generator().manual_seed(6)), first)
    assert torch.equal(torch.get_rng_state(), before)


@every_law
def test_noise_generator_repeats_and_leaves_the_default_generator_alone(law_class):
    law = law_class(0.3)
    before = torch.get_rng_state()
    with noise_generator(torch.Generator().manual_seed(5)) as generator:
        assert isinstance(generator, torch.Generator)
        first = law.sample((50,))
    with noise_generator(torch.Generator().manual_seed(5)):
        assert torch.equal(law.sample((50,)), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(law.sample((50,), generator=torch.Generator().manual_seed(5)), first)


def test_noise_generator_nests_and_restores():
    law = Gaussian(1.0)
    outer = torch.Generator().manual_seed(1)
    expected_outer = law.sample((6,), generator=torch.Generator().manual_seed(1))
    expected_inner = law.sample((3,), generator=torch.Generator().manual_seed(2))
    with noise_generator(outer):
        a = law.sample((3,))
        with noise_generator(torch.Generator().manual_seed(2)):
            assert torch.equal(law.sample((3,)), expected_inner)
        b = law.sample((3,))
    torch.manual_seed(8)
    expected_default = torch.randn(3)
    torch.manual_seed(8)
    assert torch.equal(law.sample((3,)), expected_default)
    # randn of 3 and 3 numbers is randn of 6 in one go for sizes below its vectorised path
    assert torch.equal(torch.cat([a, b]), expected_outer)


def test_noise_generator_restores_after_an_exception():
    law = Uniform(1.0)
    with noise_generator(torch.Generator().manual_seed(1)):
        with pytest.raises(KeyError), noise_generator(torch.Generator().manual_seed(2)):
            raise KeyError
        after = law.sample((3,))
    assert torch.equal(after, law.sample((3,), generator=torch.Generator().manual_seed(1)))
    torch.manual_seed(8)
    first = law.sample((3,))
    torch.manual_seed(8)
    assert torch.equal(law.sample((3,)), first)


def test_generator_argument_wins_over_noise_generator():
    law = Logistic(1.0)
    expected = law.sample((5,), generator=torch.Generator().manual_seed(3))
    with noise_generator(torch.Generator().manual_seed(4)):
        assert torch.equal(law.sample((5,), generator=torch.Generator().manual_seed(3)), expected)


@pytest.mark.parametrize("wrong", [7, None, "cpu"])
def test_noise_generator_wants_a_generator(wrong):
    with pytest.raises(TypeError, match="torch.Generator"), noise_generator(wrong):
        pass


# ---- a user's own law

USER_LAWS = {"inherited-init": (Laplace(0.4, 0.2), 0.4, 0.2), "super": (LaplaceWithSuper(3.0), 3.0, 0.0)}
USER_LAWS["no-init"] = (LaplaceWithoutInit(), 0.02, 0.0)
every_user_law = pytest.mark.parametrize("law, b, loc", USER_LAWS.values(), ids=USER_LAWS.keys())


@every_user_law
def test_user_law_gets_its_std_by_quadrature(law, b, loc):
    assert law.std == pytest.approx(math.sqrt(2) * b, rel=1e-6)


@every_user_law
def test_user_law_gets_its_sample_by_icdf(law, b, loc):
    sample = law.sample((200_000,), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert stats.kstest(sample.numpy(), stats.laplace(loc, b).cdf).pvalue > ERROR
    assert law.sample((1_000_000,), generator=torch.Generator().manual_seed(0)).isfinite().all()


@every_user_law
def test_user_law_can_be_rescaled(law, b, loc):
    stretched, reference = Rescaled(law, 2 * law.scale), stats.laplace(loc, 2 * b)
    x = torch.linspace(-4 * b, 4 * b, 41, dtype=torch.float64)
    torch.testing.assert_close(stretched.cdf(x), torch.as_tensor(reference.cdf(x.numpy())), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(stretched.pdf(x), torch.as_tensor(reference.pdf(x.numpy())), rtol=1e-9, atol=1e-12)
    assert stretched.std == pytest.approx(2 * law.std)


def test_std_by_quadrature_matches_the_closed_form_of_a_law_with_corners(monkeypatch):
    for law in (Triangular, Uniform):
        monkeypatch.setattr(law, "unit_std", None)
    assert Triangular(0.3, 0.2).std == pytest.approx(0.3 / math.sqrt(6), rel=1e-5)
    assert Uniform(0.3).std == pytest.approx(0.3 / math.sqrt(3), rel=1e-3)


# ---- laws do not change


class LaplaceOfShape(Laplace):
    """Sets attributes after its base class has."""

    def __init__(self, scale):
        super().__init__(scale)
        self.shape = 2.0


IMMUTABLE = [law(0.3) for law in LAWS]
IMMUTABLE += [
    Rescaled(Gaussian(0.3), 0.6),
    Laplace(0.3),
    LaplaceWithSuper(0.3),
    LaplaceWithoutInit(),
    LaplaceOfShape(1),
]


@pytest.mark.parametrize("law", IMMUTABLE, ids=repr)
def test_laws_and_their_copies_are_immutable(law):
    before = law.scale
    for one in (law, copy.copy(law), copy.deepcopy(law), pickle.loads(pickle.dumps(law))):
        for name in ("scale", "loc", "shape"):
            with pytest.raises(AttributeError, match=rf"immutable: set neuron.noise = {type(law).__name__}\("):
                setattr(one, name, 0.7)
            with pytest.raises(AttributeError, match="immutable"):
                delattr(one, name)
        assert one.scale == before and one.loc == 0.0


class Flat(Laplace):
    """Chooses its scale without asking the base class."""

    def __init__(self, scale):
        self.scale = scale


@pytest.mark.parametrize("wrong", [0.0, -0.3, math.inf, math.nan])
def test_a_scale_that_is_not_positive_is_refused_wherever_it_is_set(wrong):
    for law in (Gaussian(0.3), Cauchy(0.3), Laplace(0.3), LaplaceWithoutInit(), Rescaled(Gaussian(1.0), 0.3)):
        with pytest.raises(ValueError, match="scale must be positive and finite"):
            law.widened(wrong)
        with pytest.raises(ValueError, match="scale must be positive and finite"):
            Rescaled(law, wrong)
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        Flat(wrong)
