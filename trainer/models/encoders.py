"""The two encoders of section 3.2: CLIP's, with the image encoder freed of its positions."""

import copy
import functools
from collections.abc import Sequence

import open_clip
import torch
from torch import Tensor, nn

from lasr.weights.clip import Clip, load_clip
from lasr.weights.locate import WeightsError, locate

CAPTIONS = 2**18  # tokens of so many captions are kept, 160 MB


class Encoders(nn.Module):
    """E_I and E_T: pictures and texts to features in one space.

    Without position embedding E_I takes 56x56 and 224x224 alike. It also no longer sees where
    things are: a picture and the same picture with its 14x14 tiles shuffled get one feature, so
    only the VGG term (section 3.5) holds the layout.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Clip):
        super().__init__()
        self.model = clip.model
        # A caption costs a third of a millisecond, and comes back every epoch.
        self._tokens = functools.lru_cache(maxsize=CAPTIONS)(lambda text: clip.tokenize([text])[0])
        remove_positions(self.model.visual)
        self.make_trainable()
        for name in ("mean", "std"):
            values = getattr(clip.model.visual, f"image_{name}", None)
            default = getattr(open_clip, f"OPENAI_DATASET_{name.upper()}")
            buffer = torch.tensor(values or default).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def images(self, pictures: Tensor) -> Tensor:
        """Features F (n, c) of pictures (n, 3, h, w) in [0, 1], at their own size."""
        features: Tensor = self.model.encode_image((pictures - self.mean) / self.std)
        return features

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features C or Q (n, c) of texts; what exceeds CLIP's 77 tokens is cut."""
        return self.encode(self.tokens(texts).to(self.mean.device))

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """What the text encoder reads of texts, (n, 77) int64 on the CPU."""
        return torch.stack([self._tokens(text) for text in texts])

    def encode(self, tokens: Tensor) -> Tensor:
        """Features C or Q (n, c) of `tokens` (n, 77)."""
        features: Tensor = self.model.encode_text(tokens)
        return features

    def make_trainable(self) -> None:
        """Let every weight that the losses depend on take gradients."""
        self.model.requires_grad_(True)
        self.model.logit_scale.requires_grad_(False)  # the losses have no temperature

    def towers(self) -> tuple[nn.Module, nn.Module]:
        """The two modules in which nearly all of the arithmetic is: image and text."""
        return self.model.visual, self.model.transformer

    def frozen_images(self) -> "FrozenImages":
        """`images` by a second view of E_I, for the SR terms; see FrozenImages."""
        return FrozenImages(self)


class FrozenImages(nn.Module):
    """E_I over the same weights, which take no gradient here: only pictures receive one.

    The modules are copied and the weights are not, so that an optimizer's update is seen at once.
    To be made when the encoders stand on their device; `load_state_dict` may follow.
    """

    def __init__(self, encoders: Encoders):
        super().__init__()
        visual = encoders.model.visual
        shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in visual.parameters()}
        self.visual = copy.deepcopy(visual, shared)
        self.mean, self.std = encoders.mean, encoders.std

    def forward(self, pictures: Tensor) -> Tensor:
        """As `Encoders.images`."""
        features: Tensor = self.visual((pictures - self.mean) / self.std)
        return features


def load_encoders(name_or_path: str, device: torch.device) -> Encoders:
    """The encoders of a CLIP (see lasr.weights.clip), ready to be trained. WeightsError."""
    return Encoders(load_clip(locate(name_or_path, "clip"), device)).to(device)


def remove_positions(visual: nn.Module) -> None:
    """Take the position embedding out of an open_clip image encoder, exactly, in place.

    A zero that broadcasts stands where the parameter stood, because open_clip adds it unasked; it
    is neither trained nor saved. Raises WeightsError: an encoder of a kind not known here.
    """
    holder = (
        visual if hasattr(visual, "positional_embedding") else getattr(visual, "attnpool", None)
    )
    if holder is None or not hasattr(holder, "positional_embedding"):
        raise WeightsError(
            f"{type(visual).__name__}: an image encoder without a position embedding to remove;"
            " take a CLIP with a ViT or a modified ResNet"
        )
    positions = holder.positional_embedding
    assert isinstance(positions, Tensor)
    del holder.positional_embedding
    holder.register_buffer("positional_embedding", positions.new_zeros(1, 1), persistent=False)
