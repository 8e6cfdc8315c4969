"""Encoders without positions, against a ViT written out by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip import get_model_config
from PIL import Image
from torch import Tensor

from lasr.weights.locate import WeightsError
from lasr.weights.registry import TABLE
from tests.support.upstream import any_content, expect, save_clip
from tests.support.weights import load_clip, load_encoders
from trainer.models.encoders import Encoders

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


def reference(encoders: Encoders, pictures: Tensor) -> Tensor:
    """CLIP's image encoder (Radford et al. 2021) in plain float64 tensor algebra, no positions."""
    w = {k: v.double() for k, v in encoders.model.visual.state_dict().items()}
    x = ((pictures - encoders.mean) / encoders.std).double()
    n, c, h, _ = x.shape
    size, heads = 14, 2
    tiles = x.reshape(n, c, h // size, size, h // size, size).permute(0, 2, 4, 1, 3, 5)
    tokens = tiles.reshape(n, -1, c * size * size) @ w["conv1.weight"].flatten(1).T
    x = torch.cat([w["class_embedding"].expand(n, 1, -1), tokens], 1)

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = norm(x, "ln_pre")
    for layer in range(2):
        at = f"transformer.resblocks.{layer}"
        y = norm(x, f"{at}.ln_1")
        qkv = y @ w[f"{at}.attn.in_proj_weight"].T + w[f"{at}.attn.in_proj_bias"]
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + linear(attention.transpose(1, 2).flatten(2), f"{at}.attn.out_proj")
        y = linear(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
        x = x + linear(y * torch.sigmoid(1.702 * y), f"{at}.mlp.c_proj")  # QuickGELU
    return norm(x[:, 0], "ln_post") @ w["proj"]


@pytest.mark.parametrize("side", [56, 224])
def test_features_equal_the_reference_at_both_sizes(folder: Path, side: int) -> None:
    encoders = load_encoders(str(folder), CPU)
    pictures = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    ours = encoders.images(pictures)
    torch.testing.assert_close(ours.double(), reference(encoders, pictures), atol=1e-5, rtol=1e-4)


def test_without_positions_shuffled_tiles_look_the_same(folder: Path) -> None:
    pictures = torch.rand(1, 3, 56, 56)
    tiles = pictures.reshape(1, 3, 4, 14, 4, 14)
    shuffled = tiles[:, :, [2, 0, 3, 1]][:, :, :, :, [1, 3, 0, 2]].reshape(1, 3, 56, 56)
    encoders = load_encoders(str(folder), CPU)
    torch.testing.assert_close(
        encoders.images(pictures), encoders.images(shuffled), atol=1e-5, rtol=0
    )
    unmodified = load_clip(folder).model.encode_image
    assert (unmodified(pictures) - unmodified(shuffled)).abs().max() > 1e-3


def test_positions_are_neither_trained_nor_saved(folder: Path) -> None:
    encoders = load_encoders(str(folder), CPU)
    assert not any("visual.positional" in name for name in encoders.state_dict())
    assert not encoders.model.logit_scale.requires_grad
    others = [p for n, p in encoders.named_parameters() if "logit_scale" not in n]
    assert others and all(p.requires_grad for p in others)


def test_resnets_take_both_sizes_too(tmp_path: Path) -> None:
    save_clip(tmp_path, resnet=True)
    encoders = load_encoders(str(tmp_path), CPU)
    assert encoders.images(torch.rand(2, 3, 64, 64)).shape == (2, 24)
    assert encoders.images(torch.rand(2, 3, 224, 224)).shape == (2, 24)


def test_activation_is_what_the_folder_says(folder: Path, tmp_path: Path) -> None:
    """GELU and QuickGELU weights look alike; only the config tells them apart."""
    save_clip(tmp_path, quick_gelu=False)
    picture = torch.rand(1, 3, 56, 56)
    quick, plain = (load_encoders(str(f), CPU).images(picture) for f in (folder, tmp_path))
    assert (quick - plain).abs().max() > 1e-4


def test_folders_that_are_no_clip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no open_clip_config\.json"):
        load_clip(tmp_path)
    save_clip(tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged, incomplete"):
        load_clip(tmp_path)
    weights.unlink()  # open_clip alone would only warn, and go on with random weights
    with pytest.raises(WeightsError, match="no weights beside open_clip_config"):
        load_clip(tmp_path)


def test_tiny_clip_is_the_same_everywhere() -> None:
    first, second = (load_clip("tiny-clip") for _ in range(2))
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.identity == "tiny-clip@built-in"


def test_preprocessing_is_what_the_folder_says(tmp_path: Path) -> None:
    """Other CLIPs than OpenAI's were trained with other means and another interpolation."""
    save_clip(tmp_path)
    config = tmp_path / "open_clip_config.json"
    told = json.loads(config.read_text())
    told["preprocess_cfg"] |= {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}
    config.write_text(json.dumps(told))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    resized = picture.resize((56, 56), Image.Resampling.BILINEAR)
    expected = (np.asarray(resized) / 255 - 0.5) / 0.25
    found = load_clip(tmp_path).preprocess(picture).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    pixel = load_encoders(str(tmp_path), CPU)
    assert pixel.mean.flatten().tolist() == [0.5] * 3 and pixel.std.flatten().tolist() == [0.25] * 3


class Writes(torch.nn.Module):
    """A module whose archive writes a file when `torch.jit.load` reads it."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.weight = torch.nn.Parameter(torch.zeros(3))

    @torch.jit.export
    def __getstate__(self) -> tuple[str, Tensor, bool]:
        return self.path, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, Tensor, bool]) -> None:
        self.path = state[0]
        self.weight = state[1]
        self.training = state[2]
        torch.save(state[1], state[0])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


def test_an_archive_is_never_run(tmp_path: Path) -> None:
    """OpenAI published its CLIPs as such; the table has the same weights as safetensors."""
    trace, path = tmp_path / "it ran", tmp_path / "crafted.pt"
    torch.jit.script(Writes(str(trace))).save(path)
    with pytest.raises(WeightsError, match="TorchScript archive") as refusal:
        load_clip(path)
    assert "for OpenAI's CLIP run `lasr weights fetch clip-vit-l-14`" in refusal.value.fix
    assert "\n" not in str(refusal.value) and not trace.exists()
    torch.jit.load(path)
    assert trace.exists()  # the trap works


def test_gelu_where_quickgelu_is_due_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tensor tells. By name it must be what was published; by path the config is believed."""
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path))
    any_content(monkeypatch, "clip-vit-l-14")
    expect(monkeypatch, "clip-vit-l-14", patch_size=14, width=32, layers=2, quick_gelu=True)
    folder = tmp_path / "clip-vit-l-14"
    save_clip(folder)
    load_clip("clip-vit-l-14")
    save_clip(folder, quick_gelu=False)
    with pytest.raises(WeightsError, match="is not clip-vit-l-14: its quick_gelu is False"):
        load_clip("clip-vit-l-14")
    load_clip(folder)


def test_a_vit_b_is_no_vit_l(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path))
    any_content(monkeypatch, "clip-vit-l-14")
    folder = tmp_path / "clip-vit-l-14"
    save_clip(folder)
    told = {"model_cfg": get_model_config("ViT-B-32-quickgelu")}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    with pytest.raises(WeightsError, match="its patch_size is 32, not 14"):
        load_clip("clip-vit-l-14")


@pytest.mark.parametrize("name", ["vit-l-14", "vit-b-16", "vit-b-32"])
def test_the_table_expects_the_networks_that_open_clip_lists(name: str) -> None:
    known = {model.lower(): model for model in open_clip.list_models()}
    model = get_model_config(known[f"{name}-quickgelu"])
    published = {**model["vision_cfg"], "quick_gelu": model["quick_gelu"]}
    expected = TABLE[f"clip-{name}"].expected
    assert expected and expected.items() <= published.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 48}, r"does not fit open_clip_config\.json"),
        ({"layers": 3}, r"does not fit open_clip_config\.json"),
        ({"image_size": 70}, r"does not fit .*positional_embedding"),  # open_clip would stretch it
        ({"timm_model_name": "vit_tiny_patch16_224"}, r"does not fit open_clip_config\.json"),
        ({"no_such_option": 1}, r"no config of a plain CLIP: .*no_such_option"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save_clip(tmp_path)
    config = tmp_path / "open_clip_config.json"
    told = json.loads(config.read_text())
    told["model_cfg"]["vision_cfg"] |= change
    config.write_text(json.dumps(told))
    with pytest.raises(WeightsError, match=message) as refusal:
        load_clip(tmp_path)
    assert "\n" not in str(refusal.value)


def test_folders_answer_as_through_open_clip(folder: Path) -> None:
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ours = load_clip(folder)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 70, 3), np.uint8))
    assert torch.equal(ours.preprocess(picture), preprocess(picture))
    pixels, tokens = preprocess(picture)[None], ours.tokenize(["a dog"])
    with torch.no_grad():
        theirs.eval()
        assert torch.equal(ours.model.encode_image(pixels), theirs.encode_image(pixels))
        assert torch.equal(ours.model.encode_text(tokens), theirs.encode_text(tokens))
