"""timm: a converted network trains with timm's mixup, optimisers and schedules, as it does in timm's train.py."""

import timm
import timm_model  # noqa: F401, makes the name noisy_resnet10t known
import torch
from sklearn.datasets import load_digits
from timm import data, optim, scheduler

digits = [(torch.tensor(image / 16).float(), label) for image, label in zip(*load_digits(return_X_y=True))]
net = timm.create_model("noisy_resnet10t", in_chans=1, num_classes=10, channels=(16, 32, 64, 128))
optimizer = optim.create_optimizer_v2(net, "adamw", lr=5e-3)
schedule, epochs = scheduler.create_scheduler_v2(optimizer, num_epochs=3)
for epoch in range(epochs):
    losses = []
    for images, labels in torch.utils.data.DataLoader(digits, 64, shuffle=True, drop_last=True):
        images, labels = data.Mixup(0.2, num_classes=10)(images.reshape(-1, 1, 8, 8), labels)
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    schedule.step(epoch + 1)
    print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")
