"""Hugging Face Hub: a noisy network is saved in a folder with its arguments, and made again from there.

`net.push_to_hub("you/digits")` uploads what `save_pretrained` writes.
"""

import warnings

import torch
from huggingface_hub import PyTorchModelHubMixin
from nsnn import build_model, build_neuron, noiseless


class DigitsNet(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, neuron="NILIF", sigma=0.3, timesteps=4):
        super().__init__()
        self.net = build_model("toynet", neuron=build_neuron(neuron, sigma=sigma), in_shape=(1, 8, 8), num_classes=10)
        self.timesteps = timesteps

    def forward(self, images):  # [B, 1, 8, 8] -> [B, 10]
        return self.net(images, timesteps=self.timesteps).mean(0)


warnings.filterwarnings("ignore", "these weights carry no neuron settings")  # config.json has them
net = DigitsNet(sigma=0.5)
net.save_pretrained("digits")
again = DigitsNet.from_pretrained("digits")
images = torch.rand(5, 1, 8, 8)
with noiseless(net), noiseless(again):
    print("largest difference:", (net(images) - again(images)).abs().max().item())
