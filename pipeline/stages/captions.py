"""Words for patches: CLIP-Interrogator's ranking of a dictionary (appendix F), in batches."""

import copy
import hashlib
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from lasr.device import Precision, autocast
from lasr.errors import UserError
from lasr.files import read_text
from lasr.weights.locate import Located
from schemas.manifest import WORDS_PER_PATCH

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lasr.weights.clip import Clip, Preprocess

FEATURES_VERSION = 1  # raise it when a patch gets other image features than before
VERSION = 1  # raise it when the same features get other words than before
DICTIONARY = Path(__file__).with_name("dictionary.txt")
# Patches per CLIP call. On a CPU the activations of more leave its cache.
BATCH = {"cpu": 4, "cuda": 128, "mps": 16}
RANKED = 16  # rows of features per product with the words' embeddings


class CaptionConfig(BaseModel):
    """The parameters of this stage."""

    model_config = ConfigDict(frozen=True)

    clip: str | None = Field(
        None, description="CLIP for captions: a name or a folder (default: the profile's)"
    )
    dictionary: Path | None = Field(
        None, description="your own list of caption words, one a line (default: the built-in 1,000)"
    )


def features_fingerprint_inputs(clip: Located, precision: Precision) -> tuple[object, ...]:
    """What determines the CLIP features of a patch's pixels. precision: not `auto`."""
    # float32 adds nothing: features that were computed before there was a choice stay valid.
    return FEATURES_VERSION, clip.identity, *([precision] if precision != "float32" else [])


def fingerprint_inputs(selection: str, features: str, dictionary_sha256: str) -> tuple[object, ...]:
    """What determines captions. selection, features: fingerprints of patches and CLIP features."""
    return VERSION, selection, features, dictionary_sha256, WORDS_PER_PATCH


@dataclass(frozen=True)
class Caption:
    """The words of one patch, best first, and the cosine similarity of each."""

    words: list[str]
    scores: list[float]

    @property
    def text(self) -> str:
        """The caption that the trainer's text encoder reads."""
        return ", ".join(self.words)


def read_dictionary(path: Path) -> list[str]:
    """The words of a list: one per line; `#` starts a comment, blank lines are ignored.

    Raises UserError: unreadable, a line that is no word, a word twice, or fewer words than a
    caption has.
    """
    try:
        lines = read_text(path).split("\n")
    except OSError as error:
        raise UserError(
            f"{path}: the dictionary cannot be read ({error.strerror})",
            "give a text file in UTF-8 with one word per line",
        ) from error
    numbered = [(n, word) for n, line in enumerate(lines, 1) if (word := _without_comment(line))]
    for number, word in numbered:
        if why := _why_no_word(word):
            raise UserError(f"{path}: line {number}, '{word}': {why}", "write one word per line")
    words = [word for _, word in numbered]
    twice = [word for word, count in Counter(words).items() if count > 1]
    if twice:
        raise UserError(f"{path}: '{twice[0]}' is listed twice", "remove one of them")
    if len(words) < WORDS_PER_PATCH:
        raise UserError(
            f"{path}: {len(words)} words, but a caption needs {WORDS_PER_PATCH}",
            "add more words, one per line",
        )
    return words


def _without_comment(line: str) -> str:
    return line.split("#")[0].strip()


def _why_no_word(word: str) -> str:
    """Why a line cannot be a word of a caption; empty if it can."""
    kinds = {unicodedata.category(character) for character in word}
    if re.search(r",\S", word):  # "George Barret, Jr." is a name
        return "a comma without a space: is this a table?"
    if kinds & {"Cc", "Zl", "Zp"}:
        return "it holds a tab or another control character"
    return "it holds nothing that can be seen" if kinds <= {"Cf", "Zs"} else ""


def dictionary_sha256(words: Sequence[str]) -> str:
    """Identity of a dictionary: its words in their order, without comments."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


class Captioner:
    """Ranks the dictionary for patches with the unmodified CLIP at its own input size.

    It works in three steps, so that threads can prepare patches while the network runs, and
    features can be cached: prepare, features, rank.
    """

    def __init__(
        self,
        clip: Located,
        words: Sequence[str],
        device: "torch.device",
        precision: Precision = "float32",
    ):
        """Load the CLIP and embed the words. precision: not `auto`. Raises WeightsError."""
        import torch

        from lasr.weights.clip import load_clip

        self.clip = load_clip(clip, device)
        # A convolution on a CPU otherwise converts its input and its output.
        self.clip.model.visual.to(memory_format=torch.channels_last)
        self.words = list(words)
        _check_length(self.clip, self.words)
        self.device = device
        self.batch = BATCH["cuda" if device.type == "cuda" else "cpu"]
        self._embeddings = _embed(self.clip, self.words, device)
        self._geometry, statistics = _split(self.clip.preprocess)
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) for values in statistics
        )
        self._autocast = lambda: autocast(device, precision)
        self.length = self._embeddings.shape[1]  # of the features of one patch
        if device.type == "cpu" and precision == "float32":
            self._fold_norms()

    def prepare(self, patch: np.ndarray) -> "torch.Tensor":
        """S x S x 3 uint8 -> s x s x 3 uint8, resized as the CLIP's config says."""
        import torch

        # Nothing else of PyTorch here: each thread that uses it starts a pool of its own.
        return torch.from_numpy(np.array(self._geometry(Image.fromarray(patch))))

    def features(self, prepared: "Sequence[torch.Tensor]") -> np.ndarray:
        """1 to `batch` prepared patches -> n x c float32, of unit length.

        The batch is padded with copies of the first patch: kernels choose their order of summation
        by batch size, and a feature must not depend, to the last bit, on which patches share the
        call. Only if memory runs out is a patch alone.
        """
        import torch

        with suppress(torch.OutOfMemoryError):
            return self._encode(prepared, self.batch)
        return np.concatenate([self._encode([patch], 1) for patch in prepared])

    def _encode(self, prepared: "Sequence[torch.Tensor]", size: int) -> np.ndarray:
        """The features of prepared patches, computed as a batch of `size`."""
        import torch

        padded = [*prepared, *[prepared[0]] * (size - len(prepared))]
        batch = torch.stack(padded)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        with torch.inference_mode():
            moved = batch.to(self.device, non_blocking=True)
            pictures = moved.float().permute(0, 3, 1, 2)  # in channels_last
            pictures.div_(255).sub_(self._mean).div_(self._std)
            with self._autocast():
                features = self.clip.model.encode_image(pictures).float()
            features = torch.nn.functional.normalize(features, dim=-1)
            result: np.ndarray = features[: len(prepared)].cpu().numpy()
        return result

    def _fold_norms(self) -> None:
        """Leave out batch norms, for a sixth of the time; float32 rounds features anew, by 1e-6.

        Not where a norm belongs to another convolution than the one before it: features tell.
        """
        import torch

        plain = self.clip.model.visual
        if not any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules()):
            return
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        expected = self.features([self.prepare(noise)])
        self.clip.model.visual = _without_norms(plain).to(memory_format=torch.channels_last)
        if not np.allclose(self.features([self.prepare(noise)]), expected, atol=1e-4):
            self.clip.model.visual = plain

    def rank(self, features: np.ndarray) -> list[Caption]:
        """The best words for each row of n x c features.

        On the CPU: the product is small, and would wait for all that the device was given before.
        """
        import torch

        captions: list[Caption] = []
        for start in range(0, len(features), RANKED):
            some = torch.from_numpy(features[start : start + RANKED])
            # Padded for the same reason as in `features`.
            padded = torch.nn.functional.pad(some, (0, 0, 0, RANKED - len(some)))
            with torch.inference_mode():
                scores = padded @ self._embeddings.T
                best = scores[: len(some)].topk(WORDS_PER_PATCH, dim=1)
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                captions.append(Caption([self.words[i] for i in indices], values))
        return captions

    def caption(self, patches: Sequence[np.ndarray]) -> list[Caption]:
        """The best words of each patch (S x S x 3 uint8), as LabelTable.rank gives one by one."""
        prepared = [self.prepare(patch) for patch in patches]
        starts = range(0, len(prepared), self.batch)
        return [c for i in starts for c in self.rank(self.features(prepared[i : i + self.batch]))]


def _without_norms(network: "nn.Module") -> "nn.Module":
    """A copy with each batch norm put into the convolution that is registered before it."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    network = copy.deepcopy(network)
    for block in list(network.modules()):
        for (name, conv), (norm_name, norm) in pairwise(list(block.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(block, name, fuse_conv_bn_eval(conv, norm))
                # timm's norms end with an activation.
                setattr(block, norm_name, getattr(norm, "act", nn.Identity()))
    return network


def _check_length(clip: "Clip", words: list[str]) -> None:
    """Raise UserError if a caption of the longest words would be cut."""
    counts = dict(zip(words, clip.count_tokens(words), strict=True))
    longest = sorted(words, key=lambda word: counts[word], reverse=True)[:WORDS_PER_PATCH]
    (count,) = clip.count_tokens([", ".join(longest)])
    if count > clip.length:
        raise UserError(
            f"the dictionary: its {WORDS_PER_PATCH} longest words make a caption of {count} tokens,"
            f" and {clip.identity} reads {clip.length}",
            f"shorten the longest ones, such as '{longest[0]}'",
        )


def _embed(clip: "Clip", words: list[str], device: "torch.device") -> "torch.Tensor":
    """Word embeddings, words x c float32, as CLIP-Interrogator computes them (fp16-rounded)."""
    import torch
    from clip_interrogator import Config, LabelTable

    config = Config(caption_model_name=None, quiet=True, device=str(device))
    # Its cache is keyed by the model's name and would return embeddings of other weights.
    config.cache_path, config.download_cache = None, False
    tokenize = clip.tokenize
    if not hasattr(clip.model, "token_embedding"):  # a text tower that masks its padding

        def tokenize(texts: list[str]) -> "torch.Tensor":
            """Without columns that are padding alone: a word takes 5 tokens, a caption 100."""
            tokens = clip.tokenize(texts)
            used = (tokens != tokens[:, -1:]).any(dim=0).nonzero()
            return tokens[:, : int(used.max()) + 1] if len(used) else tokens

    interrogator = SimpleNamespace(clip_model=clip.model, config=config, tokenize=tokenize)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses a deprecated autocast, for CUDA on a CPU
        table = LabelTable(words, None, interrogator)
    return torch.from_numpy(np.stack(table.embeds)).float()


def _split(
    preprocess: "Preprocess",
) -> tuple[Callable[[Image.Image], Image.Image], tuple[Sequence[float], Sequence[float]]]:
    """open_clip's preprocessing: its steps on a Pillow image, and the statistics of the last one.

    Between them is the conversion to float32 in 0..1, which is left to the device: bytes reach it
    in a quarter of the time.
    """
    from open_clip.transform import MaybeToTensor
    from torchvision.transforms import Compose, Normalize

    *geometry, to_tensor, normalise = preprocess.transforms  # type: ignore[attr-defined]
    assert isinstance(to_tensor, MaybeToTensor) and isinstance(normalise, Normalize)
    return Compose(geometry), (normalise.mean, normalise.std)
