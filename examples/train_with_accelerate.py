"""Hugging Face accelerate: `accelerate launch` trains a noisy network in bfloat16, in one or several processes.

With a seed, give `set_seed(0, device_specific=True)`: otherwise all processes draw the same noise.
"""

import torch
from accelerate import Accelerator
from nsnn import NoisyLIF
from nsnn.crits import RateCrossEntropy
from sklearn.datasets import load_digits

digits = [(torch.tensor(image / 16).float(), label) for image, label in zip(*load_digits(return_X_y=True))]
loader = torch.utils.data.DataLoader(digits, 64, shuffle=True, drop_last=True)
net = torch.nn.Sequential(torch.nn.Linear(64, 100), NoisyLIF(), torch.nn.Linear(100, 10))
accelerator = Accelerator(mixed_precision="bf16")
net, optimizer, loader = accelerator.prepare(net, torch.optim.Adam(net.parameters(), 1e-2), loader)
for epoch in range(5):
    for images, labels in loader:
        loss = RateCrossEntropy()(net(images.expand(4, -1, -1)), labels)  # [T, B, 64] -> [T, B, 10]
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")
accelerator.save_state("state", safe_serialization=False)  # safetensors would lose the settings of neurons
accelerator.load_state("state")
accelerator.end_training()
