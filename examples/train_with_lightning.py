"""PyTorch Lightning: a `Trainer` trains a noisy network in bfloat16, saves it, and tests what it saved."""

import lightning
import torch
from nsnn import NoisyLIF
from nsnn.crits import RateCrossEntropy
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 100), NoisyLIF(), torch.nn.Linear(100, 10))

    def training_step(self, batch, index):
        return RateCrossEntropy()(self.net(batch[0].expand(4, -1, -1)), batch[1])  # [T, B, 64] -> [T, B, 10]

    def test_step(self, batch, index):
        self.log("accuracy", (self.net(batch[0].expand(4, -1, -1)).mean(0).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


digits = [(torch.tensor(image / 16).float(), label) for image, label in zip(*load_digits(return_X_y=True))]
trainer = lightning.Trainer(max_epochs=5, precision="bf16-mixed")
trainer.fit(Classifier(), DataLoader(digits[:1500], 64, shuffle=True))
trainer.test(ckpt_path="best", dataloaders=DataLoader(digits[1500:], 64))
