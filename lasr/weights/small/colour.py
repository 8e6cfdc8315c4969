"""Train batch norms of the image tower so that its features tell colours.

An ImageNet classifier learns to ignore colour. A linear map of pooled features predicts the mean
colour of a crop with R² 0.94 after the tower's stage 3, 0.42 after stage 6 and 0.10 at its end. So
the scales and shifts of the batch norms after stage 3, and nothing else of the tower, are trained
(Frankle et al. 2021, "Training BatchNorm and only BatchNorm"): a linear map of the tower's features
is to give the shares of colours in a crop, while the features stay close to what they were.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lasr.cli import progress
from lasr.weights.small.crops import COLOURS

FIRST = 4  # the first stage that is trained, from 0
STEPS, RATE = 200, 4e-3
PARTS, PART = 4, 8  # of a batch, and crops in each: one thread works on a part
WEIGHT = 1.0  # of colours, where what the features were has 1


class Tower(nn.Module):
    """EfficientNet-Lite0 in two parts, its convolutions in bfloat16: three times as fast on a CPU.

    Args:
        network: EfficientNet-Lite0, which is changed in place.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        network = network.requires_grad_(False).to(memory_format=torch.channels_last)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.bfloat16()
        self.network = network
        blocks = network.blocks
        self.early = nn.Sequential(network.conv_stem, network.bn1, *blocks[:FIRST])
        self.late = nn.Sequential(*blocks[FIRST:], network.conv_head, network.bn2)

    @torch.no_grad()
    def maps(self, pixels: Tensor) -> Tensor:
        """What comes before stage FIRST, (n, 80, h/16, w/16), of pixels (n, h, w, 3) uint8."""
        batch = ((pixels.permute(0, 3, 1, 2).float() - 127) / 128).bfloat16()
        result: Tensor = self.early(batch.contiguous(memory_format=torch.channels_last))
        return result

    def forward(self, maps: Tensor) -> Tensor:
        """Pooled features (n, 1280) of maps."""
        result: Tensor = self.late(maps).float().mean(dim=(2, 3))
        return result

    @torch.no_grad()
    def features(self, maps: Tensor) -> Tensor:
        """Pooled features of any number of maps."""
        return torch.cat([self(part) for part in maps.split(32)])

    def trained(self) -> dict[str, nn.Parameter]:
        """The scales and shifts of the batch norms of the second part, by their names in timm."""
        found = {
            id(parameter)
            for module in self.late.modules()
            if isinstance(module, nn.BatchNorm2d)
            for parameter in module.parameters()
        }
        return {name: p for name, p in self.network.named_parameters() if id(p) in found}


def tune(tower: Tower, maps: Tensor, features: Tensor, shares: Tensor, seed: int) -> None:
    """Train the batch norms of a tower, and leave them in the precision in which they are stored.

    maps: of crops. features: what the tower gives for them before. shares: of COLOURS, (n, 11).
    """
    draw = torch.Generator().manual_seed(seed)
    mean, deviation = features.mean(dim=0), features.std(dim=0) + 1e-2
    read = nn.Linear(features.shape[1], len(COLOURS))
    nn.init.zeros_(read.weight)
    nn.init.zeros_(read.bias)
    norms = list(tower.trained().values())
    learned = [norm.requires_grad_(True) for norm in norms] + list(read.parameters())
    groups = [{"params": norms, "lr": RATE}, {"params": read.parameters(), "lr": 1e-3}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    def gradients(rows: Tensor) -> tuple[Tensor, ...]:
        now = (tower(maps[rows]) - mean) / deviation
        kept = F.smooth_l1_loss(now, (features[rows] - mean) / deviation)
        told = -(shares[rows] * read(now).log_softmax(dim=1)).sum(dim=1).mean()
        return torch.autograd.grad(kept + WEIGHT * told, learned)

    with ThreadPoolExecutor(PARTS) as pool, progress(STEPS, "colours", "steps") as bar:
        for _ in range(STEPS):
            rows = torch.randint(len(maps), (PARTS, PART), generator=draw)
            # Summed in one order, on however many cores.
            parts = list(pool.map(gradients, rows))
            for parameter, each in zip(learned, zip(*parts, strict=True), strict=True):
                parameter.grad = torch.stack(each).mean(dim=0)
            optimizer.step()
            schedule.step()
            bar.update()
    for norm in norms:
        norm.requires_grad_(False).copy_(norm.half())
