"""timm: a converted network has a name, by which timm's train.py makes it; that script needs no change.

    PYTHONPATH=examples python -c "import runpy, timm_model; runpy.run_path('train.py', run_name='__main__')" \\
        DATA --model noisy_resnet10t --amp --mixup 0.2
"""

import timm
from nsnn import Gaussian, NoisyLIF, convert


@timm.models.register_model
def noisy_resnet10t(pretrained=False, timesteps=4, **options):
    def neuron():
        return NoisyLIF(Gaussian(0.3), threshold=0.5)  # a spike of 1 from a shortcut alone is to be passed on

    net = convert(timm.create_model("resnet10t", pretrained, **options), neuron, timesteps)
    net.register_forward_hook(lambda net, images, logits: logits.mean(0))  # [T, B, K] -> [B, K]
    return net
