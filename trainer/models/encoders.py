"""The two encoders of section 3.2: CLIP's, the image encoder without position embedding."""

import copy
import functools
from collections.abc import Callable, Sequence

import open_clip
import torch
from open_clip import CustomTextCLIP
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from lasr.weights.clip import Clip, load_clip
from lasr.weights.locate import Located, WeightsError
from trainer.models.blocks import lean_blocks

TOKEN_CACHE = 2**16  # words, and whole texts that are no captions, whose tokens are cached
SEPARATOR = ", "  # between the words of a caption


class Tokens:
    """Tokens of captions, put together from those of their words.

    Tokenising a caption takes a third of a millisecond, and a manifest holds a million of them.
    They are made of a thousand words, each of which is tokenised once. The tokens are the same:
    OpenAI's tokenizer cuts a text at white space and between letters and punctuation before it does
    anything else, so the tokens of a word do not depend on its neighbours.
    """

    def __init__(self, tokenize: Callable[[list[str]], Tensor]):
        self._cached = functools.lru_cache(maxsize=TOKEN_CACHE)(lambda text: tokenize([text])[0])

    def of(self, text: str) -> Tensor:
        """The tokens of a text, (77,) int64 on the CPU: what `tokenize` gives."""
        words = text.split(SEPARATOR)
        if len(words) < 2 or not all(map(_is_plain, words)):
            return self._cached(text)
        empty = self._cached("")  # start, end, zeros
        length, end = len(empty), empty[1:2]
        pieces = [empty[:1]]
        for word in words:
            pieces += [self._inner(word), self._inner(",")]
        pieces[-1] = end
        tokens = torch.cat(pieces)
        if len(tokens) > length:  # cut as `tokenize` cuts
            return torch.cat([tokens[: length - 1], end])
        return torch.nn.functional.pad(tokens, (0, length - len(tokens)))

    def each(self, texts: list[str]) -> Tensor:
        """The tokens of texts, (n, 77) int64 on the CPU."""
        return torch.stack([self.of(text) for text in texts])

    def _inner(self, word: str) -> Tensor:
        """The tokens of a word without those of start and end, which are the largest two."""
        tokens = self._cached(word)
        return tokens[1 : int(tokens.argmax())]


def _is_plain(word: str) -> bool:
    """Whether a word is tokenised alike alone and in a caption.

    It has no character that cleaning or the byte pairs could join with its surroundings, and it is
    too short to be cut.
    """
    ends = word[:1] + word[-1:]
    plain = word.isascii() and word.isprintable() and ends.isalnum() and not set(word) & set("&<;")
    return plain and len(word) < 70


class Encoders(nn.Module):
    """E_I and E_T: pictures and texts to features in one space.

    Without position embedding E_I accepts both 56x56 and 224x224. A ViT then also ignores
    positions: a picture whose 14x14 tiles are shuffled has the same feature, so that only the VGG
    term (section 3.5) preserves the layout.

    The encoders stay in evaluation mode while they are trained: no dropout, and batch norm keeps
    the statistics of its million pictures, of which a batch of 8 patches gives a poor estimate, and
    LR and HR batches would be normalised apart.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Clip):
        super().__init__()
        self.model = clip.model
        is_openai = isinstance(clip.tokenize, open_clip.tokenizer.SimpleTokenizer)
        self._tokenize = Tokens(clip.tokenize).each if is_openai else clip.tokenize
        remove_positions(self.model.visual)
        lean_blocks(self.model)
        self.make_trainable()
        for name in ("mean", "std"):
            values = getattr(clip.model.visual, f"image_{name}", None)
            default = getattr(open_clip, f"OPENAI_DATASET_{name.upper()}")
            buffer = torch.tensor(values or default).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def images(self, pictures: Tensor) -> Tensor:
        """Features F (n, c) of pictures (n, 3, h, w) in [0, 1], which are not resized."""
        features: Tensor = self.model.encode_image((pictures - self.mean) / self.std)
        return features

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features C or Q (n, c) of texts, truncated at CLIP's length (77 tokens of OpenAI's)."""
        return self.encode(self.tokens(texts).to(self.mean.device))

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """The tokens of texts, (n, length) int64 on the CPU."""
        return self._tokenize(list(texts))

    def encode(self, tokens: Tensor) -> Tensor:
        """Features C or Q (n, c) of `tokens` (n, length)."""
        features: Tensor = self.model.encode_text(tokens)
        return features

    def make_trainable(self) -> None:
        """Require gradients of every weight that the losses depend on."""
        self.model.requires_grad_(True)
        self.model.logit_scale.requires_grad_(False)  # the losses have no temperature

    def towers(self) -> tuple[nn.Module, nn.Module]:
        """The modules of the image and the text encoder that do nearly all of the arithmetic."""
        text = self.model.text if isinstance(self.model, CustomTextCLIP) else self.model.transformer
        return self.model.visual, text

    def frozen_images(self) -> "FrozenImages":
        """A second view of E_I for the SR terms, see `FrozenImages`."""
        return FrozenImages(self)


class FrozenImages(nn.Module):
    """E_I over the same weights, as constants: only the pictures receive a gradient.

    The modules are copies that share the weights' storage, so an optimizer's update is effective at
    once. Create it when the encoders are on their device; `load_state_dict` may follow.
    """

    def __init__(self, encoders: Encoders):
        super().__init__()
        visual = encoders.model.visual
        shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in visual.parameters()}
        shared |= {id(b): b for b in visual.buffers()}  # statistics of batch norm, constant too
        self.visual = copy.deepcopy(visual, shared)
        self.mean, self.std = encoders.mean, encoders.std

    def forward(self, pictures: Tensor) -> Tensor:
        """As `Encoders.images`."""
        features: Tensor = self.visual((pictures - self.mean) / self.std)
        return features


def load_encoders(located: Located, device: torch.device) -> Encoders:
    """The encoders of a CLIP, ready to be trained. Raises WeightsError, see `load_clip`."""
    return Encoders(load_clip(located, device)).to(device)


def remove_positions(visual: nn.Module) -> None:
    """Remove the position embedding of an open_clip image encoder, exactly and in place.

    A zero that broadcasts replaces the parameter, because open_clip adds it unconditionally; it is
    neither trained nor saved. Raises WeightsError: an unknown kind of encoder.
    """
    if isinstance(visual, TimmModel):
        if any("pos_embed" in name for name, _ in visual.named_parameters()):
            raise WeightsError(
                "this image encoder of timm has a position embedding, which is not removed",
                "use a CLIP with open_clip's own ViT, or with a convolutional encoder",
            )
        return  # convolutions have none
    holder = (
        visual if hasattr(visual, "positional_embedding") else getattr(visual, "attnpool", None)
    )
    if holder is None or not hasattr(holder, "positional_embedding"):
        raise WeightsError(
            f"{type(visual).__name__}: this image encoder has no position embedding to remove",
            "use a CLIP with a ViT or a modified ResNet",
        )
    positions = holder.positional_embedding
    assert isinstance(positions, Tensor)
    del holder.positional_embedding
    holder.register_buffer("positional_embedding", positions.new_zeros(1, 1), persistent=False)
