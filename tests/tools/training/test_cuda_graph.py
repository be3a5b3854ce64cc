"""Training by CUDA graphs, as far as it needs no device: what is refused, and the bookkeeping of `GraphedStep`."""

import itertools

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from crits import LOSSES, REGULARIZERS, RateCrossEntropy, build_loss, build_regularizer
from models import build_model, build_neuron
from tools.config.train import TrainConfig
from tools.errors import UserError
from tools.inference import ForwardPass
from tools.optim import build_optimizer
from tools.runtime.cuda_graph import WARM_UP, GraphedStep
from tools.runtime.processes import Processes
from tools.training.build import check_settings
from tools.training.loop import Learner, gradients_and_update, train_one_epoch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Rehearsed(GraphedStep):
    """What is captured does not run at once; each replay runs it again, and its results are always the same tensors."""

    replays = 0

    def aside(self, run):
        return run()

    def captured(self, run):
        held = []

        def replay():
            self.replays += 1
            now = run()
            if not held:
                held.extend(now)
            for tensor, result in zip(held, now):
                if isinstance(tensor, torch.Tensor):
                    tensor.copy_(result)
            return tuple(held)

        return replay


class Listed(list):
    """Ready batches, with the interface of `Batches`."""

    def order(self):
        return torch.arange(len(self))

    def passing(self, order, first=0):
        return iter(self[first:])


def trained(optimizer_name, batches, with_graph, **options):
    """The losses of two passes, what has been learnt, and the learner."""
    torch.manual_seed(0)
    net = build_model("toynet", neuron=build_neuron("NILIF"), in_shape=(1, 2, 3), num_classes=2)
    optimizer = build_optimizer(optimizer_name, net, 2.0**-6, 0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 2.0 ** -(k % 3))
    scaler, forward = torch.amp.GradScaler("cpu", enabled=False), ForwardPass(CPU, timesteps=2)
    ema = AveragedModel(net)
    learner = Learner(net, RateCrossEntropy(), optimizer, scheduler, scaler, forward, ema=ema, **options)
    if with_graph:
        learner.graph = Rehearsed(lambda given: gradients_and_update(learner, given), optimizer, CPU)
    losses = []
    for epoch in range(2):
        progress = learner.start(batches)
        result = train_one_epoch(learner, batches, epoch, progress)
        losses += [*progress.losses, result.accuracy]
    return losses, [*net.state_dict().values(), *ema.state_dict().values()], learner


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["adam", "sgdm"])
def test_steps_that_are_replayed_are_ordinary_steps(name, accumulate):
    """With a schedule, clipping and a moving average; the batches of one step are smaller than the others."""
    generator = torch.Generator().manual_seed(1)
    sizes = [8] * 12
    sizes[8:10] = [5, 5]
    images = [torch.randn(size, 1, 2, 3, generator=generator) for size in sizes]
    batches = Listed((image, (image[:, 0, 0, 0] > 0).long()) for image in images)
    options = dict(clip_grad=0.1, accumulate=accumulate)
    (losses, state, ordinary), (others, other_state, learner) = (
        trained(name, batches, with_graph, **options) for with_graph in (False, True)
    )
    assert losses == others and len({float(loss) for loss in losses}) > len(batches) // accumulate
    assert all(torch.equal(one, other) for one, other in zip(state, other_state))
    steps, smaller = 2 * len(batches) // accumulate, 2 * 2 // accumulate
    assert learner.graph.replays == steps - smaller - WARM_UP
    groups = [one.optimizer.state_dict()["param_groups"] for one in (learner, ordinary)]
    assert groups[0] == groups[1] and all(type(group["lr"]) is float for group in groups[0])


REFUSED = {
    "--amp fp16": dict(amp="fp16"),
    "--on_nonfinite skip": dict(on_nonfinite="skip"),
    "--on_nonfinite rollback": dict(on_nonfinite="rollback"),
    "--memory lean": dict(memory="lean"),
    "--memory smallest": dict(memory="smallest"),
    "--debug": dict(debug=True),
    "--compile": dict(compile=True),
    "--frames_by duration": dict(frames_by="duration"),
}


@pytest.mark.parametrize("flag", REFUSED)
def test_what_cannot_be_captured_is_refused(flag):
    check_settings(TrainConfig(**REFUSED[flag]), CUDA)
    with pytest.raises(UserError, match=f"--cuda_graph and {flag} do not go together: "):
        check_settings(TrainConfig(cuda_graph=True, **REFUSED[flag]), CUDA)


def test_a_graph_needs_a_cuda_device_and_one_process():
    config = TrainConfig(cuda_graph=True, amp="bf16", clip_grad=1.0, ema=0.99, accumulate=2)
    check_settings(config, CUDA)
    with pytest.raises(UserError, match="--cuda_graph needs a CUDA device, and this run is on cpu"):
        check_settings(config, CPU)
    with pytest.raises(UserError, match="--cuda_graph is for one process"):
        check_settings(config, CUDA, Processes(0, 2))


# Each loss and each regulariser once.
CASES = list(zip(itertools.cycle(["NILIF", "PLIF"]), LOSSES, REGULARIZERS))


@pytest.mark.parametrize("model", ["toynet", "vgg"])
@pytest.mark.parametrize(("neuron", "loss", "reg"), CASES)
def test_a_step_does_not_wait_for_its_device(model, neuron, reg, loss):
    """On the device "meta", whose tensors have no values, asking for one is an error."""
    learnt = {"learnable_scale": True} if neuron == "NILIF" else {}
    with torch.device("meta"):
        made = build_neuron(neuron, **learnt)
        net = build_model(model, neuron=made, in_shape=(1, 8, 8), num_classes=2, width=0.1)
        images, target = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0)
    scaler, forward = torch.amp.GradScaler("cpu", enabled=False), ForwardPass(target.device, timesteps=2)
    learner = Learner(net, build_loss(loss), optimizer, scheduler, scaler, forward, clip_grad=1.0)
    learner.regularizer = build_regularizer(reg)
    *numbers, seen = gradients_and_update(learner, [(images, target)])
    assert seen == 4 and all(number.is_meta for number in numbers)
    assert all(parameter.grad.is_meta for parameter in net.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        numbers[0].item()
