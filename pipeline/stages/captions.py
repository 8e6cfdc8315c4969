"""Words for patches: CLIP-Interrogator's ranking of a dictionary (appendix F), many at a time."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from clip_interrogator import Config, LabelTable
from PIL import Image

from lasr.errors import UserError
from lasr.weights.clip import Clip, load_clip
from lasr.weights.locate import locate
from schemas.manifest import WORDS_PER_PATCH

BATCH = {"cpu": 16, "cuda": 128}  # patches per CLIP call


@dataclass(frozen=True)
class Caption:
    """The words of one patch, best first, and the cosine similarity of each."""

    words: list[str]
    scores: list[float]

    @property
    def text(self) -> str:
        """What the trainer's text encoder reads."""
        return ", ".join(self.words)


def read_dictionary(path: Path) -> list[str]:
    """The words of a list: one a line, `#` starts a comment, blank lines are passed over.

    Raises UserError: unreadable, a word twice, or fewer words than a caption has.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the dictionary cannot be read ({error})") from error
    words = [word for line in lines if (word := line.split("#")[0].strip())]
    twice = [word for word, count in Counter(words).items() if count > 1]
    if twice:
        raise UserError(f"{path}: '{twice[0]}' stands there twice; keep one")
    if len(words) < WORDS_PER_PATCH:
        raise UserError(
            f"{path}: {len(words)} words, a caption needs {WORDS_PER_PATCH}; add some, one a line"
        )
    return words


def dictionary_sha256(words: Sequence[str]) -> str:
    """Identity of a dictionary: its words in their order, whatever comments stand around them."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


class Captioner:
    """Ranks the dictionary for patches with the unmodified CLIP at its own input size.

    Its work is in three steps, so that threads can prepare patches while the network runs, and
    features can be kept: prepare, features, rank.
    """

    def __init__(self, clip_name: str, words: Sequence[str], device: torch.device):
        self.clip = load_clip(locate(clip_name, "clip"), device)
        self.words = list(words)
        self.device = device
        self.batch = BATCH[device.type]
        self._embeddings = _embed(self.clip, self.words, device)

    def prepare(self, patch: np.ndarray) -> torch.Tensor:
        """S x S x 3 uint8 -> 3 x s x s float32 as the CLIP's own folder asks for it."""
        return self.clip.preprocess(Image.fromarray(patch))

    @torch.inference_mode()
    def features(self, prepared: Sequence[torch.Tensor]) -> np.ndarray:
        """Up to `batch` prepared patches -> n x c float32, of unit length.

        A call always has the same size: kernels choose their order of summation by it, and filled
        up with copies a feature does not depend, to the last bit, on who shares the call.
        """
        filled = [*prepared, *[prepared[0]] * (self.batch - len(prepared))]
        batch = torch.stack(filled).to(self.device)
        features = self.clip.model.encode_image(batch, normalize=True).float()
        result: np.ndarray = features[: len(prepared)].cpu().numpy()
        return result

    @torch.inference_mode()
    def rank(self, features: np.ndarray) -> list[Caption]:
        """The best words for each of n x c features."""
        captions: list[Caption] = []
        for start in range(0, len(features), self.batch):
            some = torch.from_numpy(features[start : start + self.batch])
            # Filled up for the same reason as in `features`.
            filled = torch.nn.functional.pad(some, (0, 0, 0, self.batch - len(some)))
            scores = filled.to(self.device) @ self._embeddings.T
            best = scores[: len(some)].topk(WORDS_PER_PATCH, dim=1)
            for values, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                captions.append(Caption([self.words[i] for i in places], values))
        return captions

    def caption(self, patches: Sequence[np.ndarray]) -> list[Caption]:
        """The best words of each patch (S x S x 3 uint8), equal to LabelTable.rank one by one."""
        prepared = [self.prepare(patch) for patch in patches]
        cuts = range(0, len(prepared), self.batch)
        return [c for i in cuts for c in self.rank(self.features(prepared[i : i + self.batch]))]


def _embed(clip: Clip, words: list[str], device: torch.device) -> torch.Tensor:
    """Word embeddings, words x c float32, as CLIP-Interrogator makes them (fp16-rounded)."""
    config = Config(caption_model_name=None, quiet=True, device=str(device))
    # Its cache is keyed by the model's name: other weights would meet stale embeddings there.
    config.cache_path, config.download_cache = None, False
    interrogator = SimpleNamespace(clip_model=clip.model, config=config, tokenize=clip.tokenize)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for a CUDA autocast on a CPU, in the old spelling
        table = LabelTable(words, None, interrogator)
    return torch.from_numpy(np.stack(table.embeds)).float().to(device)
