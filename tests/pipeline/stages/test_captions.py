"""Batched ranking equals clip-interrogator's own, patch by patch."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from clip_interrogator import Config, Interrogator, LabelTable
from PIL import Image

from lasr.errors import UserError
from lasr.weights.clip import load_clip
from lasr.weights.locate import locate
from pipeline.stages.captions import DICTIONARY, Captioner, dictionary_sha256, read_dictionary
from schemas.manifest import WORDS_PER_PATCH
from tests.support.upstream import save_clip
from tests.support.words import WORDS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return Captioner(locate(str(folder), "clip"), read_dictionary(DICTIONARY), CPU)


def crops(photographs: Path) -> list[np.ndarray]:
    """Patches of both sizes from real photographs."""
    found = []
    for path in sorted(photographs.iterdir()):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        found += [pixels[:56, :56], pixels[-56:, -56:], pixels[20:244, 30:254]]
    return found


@pytest.mark.filterwarnings("ignore")
def test_words_equal_clip_interrogators_rank(captioner: Captioner, photographs: Path) -> None:
    """Upstream: Interrogator.image_to_features and LabelTable.rank, one picture at a time."""
    config = Config(caption_model_name=None, quiet=True, device="cpu", cache_path=None)
    clip = captioner.clip
    upstream = SimpleNamespace(
        clip_model=clip.model, clip_preprocess=clip.preprocess, config=config, device="cpu",
        dtype=torch.float32, tokenize=clip.tokenize, _prepare_clip=lambda: None,
    )  # fmt: skip
    table = LabelTable(captioner.words, None, upstream)
    patches = crops(photographs)
    ours = captioner.caption(patches)
    assert len({caption.text for caption in ours}) > 1
    for patch, caption in zip(patches, ours, strict=True):
        features = Interrogator.image_to_features(upstream, Image.fromarray(patch))
        assert caption.words == table.rank(features, top_count=24)
        embeddings = torch.from_numpy(np.stack(table.embeds))
        cosines = (features.float() @ embeddings.T)[0].sort(descending=True).values[:24]
        np.testing.assert_allclose(caption.scores, cosines, atol=1e-5)


def test_batch_norms_are_folded_where_the_features_stay(tmp_path: Path, photographs: Path) -> None:
    """CLIP's modified ResNet: its own features, and a network in which the norms come first."""
    save_clip(tmp_path, resnet=True)
    located, patches = locate(str(tmp_path), "clip"), crops(photographs)[:3]
    with torch.no_grad():
        clip = load_clip(located, CPU)
        for module in clip.model.visual.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # nothing is left at 0 or 1
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        safetensors.torch.save_file(
            clip.model.state_dict(), tmp_path / "open_clip_model.safetensors"
        )
    folded = Captioner(located, WORDS, CPU)
    assert not any(isinstance(x, torch.nn.BatchNorm2d) for x in folded.clip.model.visual.modules())
    clip = load_clip(located, CPU)
    with torch.inference_mode():
        batch = torch.stack([clip.preprocess(Image.fromarray(patch)) for patch in patches])
        expected = clip.model.encode_image(batch, normalize=True).numpy()
    found = folded.features([folded.prepare(patch) for patch in patches])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The norm after the first convolution becomes one that belongs to another place.
    wrong = Captioner(located, WORDS, CPU)
    visual = wrong.clip.model.visual = clip.model.visual
    first = visual.conv1.forward
    visual.conv1.forward = lambda x: first(x).relu()
    wrong._fold_norms()
    assert wrong.clip.model.visual is visual


def test_a_batch_answers_for_each_of_its_patches(captioner: Captioner, photographs: Path) -> None:
    patches = crops(photographs) * 4  # more than one CLIP call
    together = captioner.caption(patches)
    alone = [captioner.caption([patch])[0] for patch in patches[:21]]
    assert [c.words for c in together[:21]] == [c.words for c in alone]
    assert [c.words for c in together[-21:]] == [c.words for c in alone]


def test_own_dictionary(tmp_path: Path) -> None:
    words = WORDS[:30]
    path = tmp_path / "mine.txt"
    path.write_text("# mine\n\n" + "\n".join(words) + "  # last\n")
    assert read_dictionary(path) == words
    bare = dictionary_sha256(words)
    assert bare == dictionary_sha256(read_dictionary(path)) != dictionary_sha256(words[::-1])
    path.write_text("\n".join(words[:10]))
    with pytest.raises(UserError, match=r"mine\.txt: 10 words, but a caption needs 24"):
        read_dictionary(path)
    path.write_text("\n".join([*words, words[3]]))
    with pytest.raises(UserError, match=f"'{words[3]}' is listed twice"):
        read_dictionary(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_dictionary(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("tree,0.5", "a comma without a space"),
        ("tree\tsky", "it holds a tab or another control character"),
        ("tree\x1b[31m", "it holds a tab or another control character"),
        ("tree\u2028sky", "it holds a tab or another control character"),
        ("\u200b", "it holds nothing that can be seen"),
    ],
)
def test_lines_that_are_no_words(line: str, why: str, tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(WORDS_PER_PATCH)]
    (tmp_path / "words.txt").write_text("\n".join(["# mine", *words, line]), "utf-8")
    with pytest.raises(UserError, match=rf"words\.txt: line {len(words) + 2}, .*: {why}"):
        read_dictionary(tmp_path / "words.txt")
    (tmp_path / "words.txt").write_text(
        "\n".join([*words, "שמיים", "Barret, Jr.", "می\u200cروم"]), "utf-8"
    )
    assert read_dictionary(tmp_path / "words.txt")[-1] == "می\u200cروم"
