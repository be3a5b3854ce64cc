"""Losses over time against sums written out by hand."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from crits import LOSSES, TET, PerStepCrossEntropy, RateCrossEntropy, build_loss

T, B, K = 4, 3, 5


def logits_and_target(dtype=torch.float64):
    logits = torch.randn(T, B, K, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2
    return logits.requires_grad_(), torch.tensor([0, 4, 2])


def cross_entropy(row, label, smoothing=0.0):
    """-sum_k q_k log softmax(row)_k with q = (1 - smoothing) one-hot + smoothing / K, for one row of numbers."""
    log_sum = math.log(sum(math.exp(value) for value in row))
    q = [smoothing / len(row) + (1 - smoothing) * (k == label) for k in range(len(row))]
    return -sum(weight * (value - log_sum) for weight, value in zip(q, row))


def rate_by_hand(logits, target, smoothing=0.0):
    T, B, K = logits.shape
    means = [[sum(logits[t, b, k].item() for t in range(T)) / T for k in range(K)] for b in range(B)]
    return sum(cross_entropy(means[b], target[b].item(), smoothing) for b in range(B)) / B


def per_step_by_hand(logits, target, smoothing=0.0):
    T, B, _ = logits.shape
    terms = [cross_entropy(logits[t, b].tolist(), target[b].item(), smoothing) for t in range(T) for b in range(B)]
    return sum(terms) / (T * B)


def pull_by_hand(logits, mean):
    return sum((value - mean) ** 2 for value in logits.flatten().tolist()) / logits.numel()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_rate_cross_entropy(smoothing):
    logits, target = logits_and_target()
    loss = RateCrossEntropy(label_smoothing=smoothing)(logits, target)
    assert loss.shape == () and loss.item() == pytest.approx(rate_by_hand(logits, target, smoothing), rel=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_per_step_cross_entropy(smoothing):
    logits, target = logits_and_target()
    loss = PerStepCrossEntropy(label_smoothing=smoothing)(logits, target)
    assert loss.shape == () and loss.item() == pytest.approx(per_step_by_hand(logits, target, smoothing), rel=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mean", [1.0, -0.5])
@pytest.mark.parametrize("weight", [0.0, 0.05, 0.3, 1.0])
def test_tet(weight, mean, smoothing):
    logits, target = logits_and_target()
    loss = TET(weight, mean, smoothing)(logits, target)
    entropy, pull = per_step_by_hand(logits, target, smoothing), pull_by_hand(logits, mean)
    assert loss.shape == () and loss.item() == pytest.approx((1 - weight) * entropy + weight * pull, rel=1e-10)


def test_tet_at_the_ends_is_one_of_its_two_terms():
    logits, target = logits_and_target()
    torch.testing.assert_close(TET(0.0)(logits, target), PerStepCrossEntropy()(logits, target))
    torch.testing.assert_close(TET(1.0)(logits, target), (logits - 1.0).square().mean())
    other = torch.tensor([1, 1, 1])
    torch.testing.assert_close(TET(1.0)(logits, target), TET(1.0)(logits, other))


def test_tet_defaults_are_those_of_the_paper():
    logits, target = logits_and_target()
    torch.testing.assert_close(
        TET()(logits, target), TET(lambda_tet=0.05, mean=1.0, label_smoothing=0.0)(logits, target)
    )


def test_rate_and_per_step_differ_unless_all_steps_are_alike():
    logits, target = logits_and_target()
    constant = logits[:1].expand(T, -1, -1)
    torch.testing.assert_close(PerStepCrossEntropy()(constant, target), RateCrossEntropy()(constant, target))
    # cross-entropy is convex, so by Jensen's inequality the mean over steps is the larger
    assert PerStepCrossEntropy()(logits, target) > RateCrossEntropy()(logits, target) + 0.1


def test_one_step_is_plain_cross_entropy():
    logits, target = logits_and_target()
    expected = sum(cross_entropy(logits[0, b].tolist(), target[b].item()) for b in range(B)) / B
    for criterion in (RateCrossEntropy(), PerStepCrossEntropy()):
        assert criterion(logits[:1], target).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("make", [RateCrossEntropy, PerStepCrossEntropy, lambda: TET(0.3)])
def test_gradient_matches_finite_differences(make):
    logits, target = logits_and_target()
    assert torch.autograd.gradcheck(lambda x: make()(x, target), (logits,))


def test_gradient_of_the_rate_loss_by_hand():
    """(softmax(mean) - one-hot) / (B T), the same at every step."""
    logits, target = logits_and_target()
    RateCrossEntropy()(logits, target).backward()
    expected = torch.softmax(logits.detach().mean(0), -1)
    expected[range(B), target] -= 1
    torch.testing.assert_close(logits.grad, (expected / (B * T)).expand(T, B, K))


@pytest.mark.parametrize("make", [RateCrossEntropy, PerStepCrossEntropy, TET])
@pytest.mark.parametrize("T, B", [(3, 3), (5, 2)])
def test_the_batch_is_the_second_dimension(make, T, B):
    """With T = B a mix-up would not be an error, only wrong: permuting the batch changes nothing, its target does."""
    logits = torch.randn(T, B, K, generator=torch.Generator().manual_seed(2))
    target, order = torch.arange(B), torch.arange(B).flip(0)
    loss = make()(logits, target)
    torch.testing.assert_close(make()(logits[:, order], target[order]), loss)
    torch.testing.assert_close(make()(logits.flip(0), target), loss)
    assert (make()(logits[:, order], target) - loss).abs() > 1e-3


@pytest.mark.parametrize("make", [RateCrossEntropy, PerStepCrossEntropy, TET])
@pytest.mark.parametrize(
    "logits, target",
    [
        ((B, K), (B,)),
        ((T, B, K), (T,)),
        ((T, B, K), (B, 1)),
        ((T, B, K), (B, K)),
        ((T, B, K), ()),
        ((T, B, K, 1), (B,)),
    ],
)
def test_wrong_shapes_show_what_came_and_what_was_wanted(make, logits, target):
    with pytest.raises(ValueError) as error:
        make()(torch.zeros(logits), torch.zeros(target, dtype=torch.long))
    message = str(error.value)
    assert "[B, K] of probabilities" in message
    assert "[T, B, K]" in message and "[B]" in message
    assert str(list(logits)) in message and str(list(target)) in message


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_tet_weight_out_of_range(weight):
    with pytest.raises(ValueError, match=rf"lambda_tet.*\[0, 1\].*{weight}"):
        TET(weight)


@pytest.mark.parametrize("make", [RateCrossEntropy, PerStepCrossEntropy, TET])
@pytest.mark.parametrize("smoothing", [-0.1, 1.5, math.nan])
def test_label_smoothing_out_of_range_is_refused_at_construction(make, smoothing):
    with pytest.raises(ValueError, match=rf"label_smoothing.*{smoothing}"):
        make(label_smoothing=smoothing)


@pytest.mark.parametrize("make", [RateCrossEntropy, PerStepCrossEntropy, TET])
def test_bfloat16_logits_give_a_finite_loss_under_autocast(make):
    logits, target = logits_and_target(torch.float32)
    expected = make()(logits, target)
    with torch.autocast("cpu", torch.bfloat16):
        loss = make()(logits.bfloat16(), target)
    torch.testing.assert_close(loss.float(), expected, rtol=0.03, atol=0.03)


def test_losses_by_name():
    logits, target = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    expected = {
        "rate": RateCrossEntropy(0.1),
        "per_step": PerStepCrossEntropy(0.1),
        "tet": TET(0.3, label_smoothing=0.1),
    }
    assert LOSSES.keys() >= expected.keys()
    for name, loss in expected.items():
        built = build_loss(name, label_smoothing=0.1, lambda_tet=0.3)
        assert type(built) is type(loss) and torch.equal(built(logits, target), loss(logits, target))
    assert build_loss("tet").lambda_tet == 0.05
    with pytest.raises(ValueError, match="unknown loss 'TET'; choose from .*rate, per_step, tet"):
        build_loss("TET")
    with pytest.raises(ValueError, match="label_smoothing"):
        build_loss("rate", label_smoothing=1.0)


CRITERIA = [RateCrossEntropy, PerStepCrossEntropy, lambda smoothing=0.0: TET(0.3, label_smoothing=smoothing)]


def probabilities(dtype=torch.float64):
    return torch.rand(B, K, generator=torch.Generator().manual_seed(3), dtype=dtype).softmax(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("make", CRITERIA)
def test_a_soft_target_is_the_mean_over_classes(make, smoothing):
    """Cross-entropy is linear in the target."""
    logits, _ = logits_and_target()
    soft, criterion = probabilities(), make(smoothing)
    loss = criterion(logits, soft)
    each = [[criterion(logits[:, [b]], torch.tensor([k])) for k in range(K)] for b in range(B)]
    expected = sum(soft[b, k] * each[b][k] for b in range(B) for k in range(K)) / B
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.gradcheck(lambda x: criterion(x, soft), (logits,))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("make", CRITERIA)
def test_a_target_that_is_certain_is_its_class(make, dtype, smoothing):
    logits, target = logits_and_target(torch.float32)
    one_hot = torch.nn.functional.one_hot(target, K).to(dtype)
    torch.testing.assert_close(make(smoothing)(logits, one_hot), make(smoothing)(logits, target))


@pytest.mark.parametrize("make", CRITERIA)
def test_soft_targets_belong_to_the_samples_also_where_sizes_agree(make):
    logits = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(2))
    soft, order = torch.rand(4, 4, generator=torch.Generator().manual_seed(3)).softmax(-1), torch.tensor([2, 0, 3, 1])
    loss = make()(logits, soft)
    torch.testing.assert_close(make()(logits[:, order], soft[order]), loss)
    torch.testing.assert_close(make()(logits.flip(0), soft), loss)
    assert (make()(logits, soft[order]) - loss).abs() > 1e-4


@pytest.mark.parametrize("make", CRITERIA)
@pytest.mark.parametrize(
    "target",
    [torch.zeros(B), torch.zeros(T, B, K), torch.zeros(B, K + 1), torch.zeros(B, K).long(), torch.zeros(B, K).bool()],
)
def test_targets_that_are_neither_indices_nor_probabilities_are_refused(make, target):
    with pytest.raises(ValueError, match=r"\[B, K\] of probabilities in floating point; got .* of torch\."):
        make()(torch.zeros(T, B, K), target)


@pytest.mark.parametrize("make", CRITERIA)
@pytest.mark.parametrize("shape", [(0, B, K), (T, 0, K), (T, B, 0), (0, 0, K)])
@pytest.mark.parametrize("soft", [False, True])
def test_a_mean_over_nothing_is_refused(make, shape, soft):
    target = torch.zeros(shape[1:]) if soft else torch.zeros(shape[1], dtype=torch.long)
    with pytest.raises(ValueError, match=rf"mean loss of empty logits .*\[T, B, K\] = \[{shape[0]}, {shape[1]}, "):
        make()(torch.zeros(shape), target)


def with_row(*row):
    target = probabilities(torch.float32)
    target[1] = torch.tensor(row)
    return target


@pytest.mark.parametrize("make", CRITERIA)
@pytest.mark.parametrize(
    "target",
    [
        with_row(0.5, 0.7, -0.2, 0.0, 0.0),  # the sum is 1
        with_row(0.5, 0.5, 0.5, 0.0, 0.0),
        with_row(0.0, 0.0, 0.0, 0.0, 0.0),
        with_row(0.3, 0.3, 0.3, 0.05, 0.03),
        with_row(0.5, 0.5, math.nan, 0.0, 0.0),
        with_row(math.inf, 0.0, 0.0, 0.0, 0.0),
        torch.randn(B, K, generator=torch.Generator().manual_seed(4)),  # logits
        torch.rand(B, K, generator=torch.Generator().manual_seed(4)).log_softmax(-1),
        torch.rand(B, K, generator=torch.Generator().manual_seed(4)).softmax(0),  # over the batch
        torch.full((B, K), 0.5).bfloat16(),
        torch.nn.Parameter(torch.ones(B, K)),
    ],
)
def test_soft_targets_that_are_not_probabilities_are_refused(make, target):
    with pytest.raises(ValueError, match="must be probabilities, non-negative and summing to 1 .* sums from"):
        make()(torch.zeros(T, B, K), target)


@pytest.mark.parametrize("make", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_may_be_rounded(make, dtype):
    logits = torch.randn(2, 8, 1000, generator=torch.Generator().manual_seed(0))
    for scale in (0.1, 1.0, 10.0):
        assert make()(logits, (scale * logits[0].to(dtype)).softmax(-1)).isfinite()
    mixed = 0.3 * torch.eye(1000, dtype=dtype)[:8] + 0.7 * torch.eye(1000, dtype=dtype)[-8:]
    assert make(0.1)(logits, mixed).isfinite()


@pytest.mark.parametrize("make", CRITERIA)
@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (None, torch.zeros(B).long(), "logits must be a tensor, got NoneType"),
        ([0.0], torch.zeros(B).long(), "logits must be a tensor, got list"),
        (torch.zeros(T, B, K), None, "target must be a tensor, got NoneType"),
        (torch.zeros(T, B, K), [0] * B, "target must be a tensor, got list"),
        (torch.zeros(T, B, K), 0, "target must be a tensor, got int"),
        *(
            (torch.zeros(T, B, K), torch.zeros(B, dtype=dtype), "must be int64, got .* use target.long()")
            for dtype in (torch.int32, torch.int16, torch.int8, torch.bool)
        ),
        (torch.zeros(T, B, K).long(), torch.zeros(B).long(), "logits must be in floating point, got torch.int64"),
        (torch.zeros(T, B, K, dtype=torch.complex64), torch.zeros(B).long(), "logits must be in floating point"),
    ],
)
def test_arguments_of_other_types_are_refused_in_words(make, logits, target, message):
    with pytest.raises(TypeError, match=message):
        make()(logits, target)


@pytest.mark.parametrize("make", CRITERIA)
def test_uint8_labels_are_those_of_int64(make):
    logits, target = logits_and_target(torch.float32)
    assert torch.equal(make()(logits, target.byte()), make()(logits, target))


@pytest.mark.parametrize("make", CRITERIA)
def test_soft_targets_whose_values_are_not_known_pass(make):
    """Their check must not stop vmap, fake tensors, the meta device or a compiled graph."""
    logits, soft = torch.randn(6, T, B, K), torch.rand(6, B, K).softmax(-1)
    expected = torch.stack([make()(one, target) for one, target in zip(logits, soft)])
    torch.testing.assert_close(torch.func.vmap(make())(logits, soft), expected)
    gradient = torch.func.grad(make())(logits[0], soft[0])
    assert gradient.shape == logits[0].shape
    assert make()(logits[0].to("meta"), soft[0].to("meta")).is_meta
    one, target = logits[0], soft[0]
    with FakeTensorMode() as mode:
        assert make()(mode.from_tensor(one), mode.from_tensor(target)).shape == ()


@pytest.mark.slow
def test_losses_are_one_compiled_graph():
    logits, soft = torch.randn(T, B, K), torch.rand(B, K).softmax(-1)
    for make in CRITERIA:
        compiled = torch.compile(make(), backend="eager", fullgraph=True)
        for target in (soft, torch.zeros(B).long()):
            torch.testing.assert_close(compiled(logits, target), make()(logits, target))


@pytest.mark.parametrize("name", ["rate", "per_step", "tet"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_samples_of_different_lengths_have_the_loss_and_gradient_of_each_alone(name, soft, smoothing):
    criterion = build_loss(name, smoothing)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 4, dtype=torch.float64, generator=generator)
    lengths = torch.tensor([2, 5, 1])
    target = torch.rand(3, 4, dtype=torch.float64, generator=generator).softmax(-1) if soft else torch.tensor([0, 3, 1])
    alone = logits.clone().requires_grad_()
    each = [criterion(alone[:length, [b]], target[[b]]) for b, length in enumerate(lengths)]
    torch.stack(each).mean().backward()
    for unused in (0.0, 1e30, torch.nan):
        padded = logits.clone()
        for b, length in enumerate(lengths):
            padded[length:, b] = unused
        padded.requires_grad_()
        loss = criterion(padded, target, lengths)
        loss.backward()
        torch.testing.assert_close(loss, torch.stack(each).mean())
        torch.testing.assert_close(padded.grad, alone.grad)
    torch.testing.assert_close(criterion(logits, target, torch.tensor([5, 5, 5])), criterion(logits, target))


@pytest.mark.parametrize("lengths", [torch.tensor([2]), torch.tensor([[2, 2]]), torch.tensor([2.0, 2.0])])
@pytest.mark.parametrize("name", ["rate", "per_step", "tet"])
def test_lengths_are_one_whole_number_for_each_sample(name, lengths):
    with pytest.raises(ValueError, match="expected lengths"):
        build_loss(name)(torch.zeros(2, 2, 3), torch.tensor([0, 1]), lengths)
