"""DepthFM: equal to a reference written from the papers, and safe and clear about its files."""

import itertools
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lasr.weights.locate import WeightsError
from pipeline.stages import depthfm
from pipeline.stages.depthfm import (
    DepthFM,
    _build_unet,
    load_depthfm,
    predict,
    prepare,
    processing_size,
)
from tests.support.ldm_unet import LdmUNet
from tests.support.upstream import HPARAMS, SMALL, save_depthfm, save_vae
from tests.support.weights import load_depth

CPU = torch.device("cpu")

OTHERS: dict[str, dict[str, Any]] = {
    "as published": HPARAMS,
    "convolutions around attention": {**SMALL, "use_linear_in_transformer": False},
    "heads of fixed width": {**SMALL, "num_heads": -1, "num_head_channels": 16},
    "attention at some levels": {**SMALL, "channel_mult": [1, 2, 3], "attention_resolutions": [2]},
    "one level": {**SMALL, "channel_mult": [1], "attention_resolutions": [1], "num_heads": 1},
    "wider and deeper": {**SMALL, "model_channels": 64, "num_res_blocks": 3, "num_heads": 4},
}


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("depthfm") / "vae"
    save_vae(folder)
    return folder


@pytest.fixture(scope="module")
def model(vae_folder: Path) -> DepthFM:
    checkpoint = vae_folder.parent / "small.ckpt"
    save_depthfm(checkpoint, SMALL)
    return load_depthfm(checkpoint, vae_folder, CPU)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@torch.no_grad()
def expected_depth(
    unet: nn.Module, vae: Any, text: Tensor, images: Tensor, noise: Tensor, steps: int
) -> Tensor:
    """The method once more, in the precision of what it is given."""
    latent = vae.encode(images).latent_dist.mean * 0.18215
    snr = (math.tan(math.pi * 0.4 / 2) + 1e-5) ** -2  # cosine schedule, step 400 of 1000
    z = latent * (snr / (1 + snr)) ** 0.5 + noise * (1 / (1 + snr)) ** 0.5
    times = np.linspace(0, 1, steps + 1)
    for t, end in itertools.pairwise(times):
        batch_t = torch.full((len(z),), t, dtype=z.dtype)
        z += (end - t) * unet(torch.cat([z, latent], 1), batch_t, text.repeat(len(z), 1, 1))
    return vae.decode(z / 0.18215).sample.mean(1, keepdim=True)


def to_unit(depth: Tensor) -> Tensor:
    return torch.stack([(d - d.min()) / (d.max() - d.min()) for d in depth.exp()])


@pytest.mark.parametrize("hparams", OTHERS.values(), ids=OTHERS)
def test_unet_and_prediction_equal_the_reference(
    tmp_path: Path, vae_folder: Path, hparams: dict[str, Any]
) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # takes seconds

    reference = save_depthfm(tmp_path / "depthfm.ckpt", hparams).double()
    ours = load_depthfm(tmp_path / "depthfm.ckpt", vae_folder, CPU)
    vae = AutoencoderKL.from_pretrained(vae_folder).double()
    text = ours.text_embedding.double()

    for batch, height, width in [(1, 8, 8), (2, 8, 16)]:
        x, t = torch.randn(batch, 8, height, width), torch.rand(batch)
        context = ours.text_embedding.repeat(batch, 1, 1)
        with torch.no_grad():
            theirs = reference(x.double(), t.double(), context.double())
            assert theirs.std() > 0.1
            torch.testing.assert_close(
                ours.unet(x, t, context).sample, theirs.float(), atol=2e-5, rtol=1e-4
            )

        images = torch.rand(batch, 3, 8 * height, 8 * width) * 2 - 1
        noise = torch.randn(batch, 4, height, width, generator=seeded(5)).double()
        theirs = to_unit(expected_depth(reference, vae, text, images.double(), noise, steps=2))
        depth = ours.depth(images, seeded(5))
        assert depth.shape == (batch, 1, 8 * height, 8 * width)
        torch.testing.assert_close(depth, theirs.float(), atol=1e-4, rtol=0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_published_sizes_are_accepted() -> None:
    """At full size, without its 3.5 GB: every name and shape of the published network."""
    hparams = {**HPARAMS, "model_channels": 320, "context_dim": 1024}
    with torch.device("meta"):
        weights = LdmUNet(**hparams).state_dict()  # type: ignore[arg-type]
    config = _build_unet(hparams, weights).config
    assert config["block_out_channels"] == [320, 640, 1280, 1280]
    assert config["attention_head_dim"] == [8, 8, 8, 8]
    assert sum(math.prod(w.shape) for w in weights.values()) == 865_922_244


def test_distance_grows_with_depth(model: DepthFM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the decoder gives more, it is farther: the sign that tells far patches from near."""

    def decode(z: Tensor) -> Any:
        ramp = torch.linspace(-1, 1, 128).expand(len(z), 3, 64, 128)
        return type("Decoded", (), {"sample": ramp})

    monkeypatch.setattr(model.vae, "decode", decode)
    monkeypatch.setattr(depthfm, "LONGER_SIDE", 128)
    distance = predict(model, prepare(photograph(64, 128)), seed=0)
    assert distance[:, 0].max() == 0
    assert distance[:, -1].min() == 1
    assert (np.diff(distance, axis=1) > 0).all()


def test_distance_is_the_depth_of_the_same_noise(
    model: DepthFM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthfm, "LONGER_SIDE", 128)
    image = photograph(64, 128)
    images = torch.tensor(image / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
    expected = model.depth(images, seeded(9))[0, 0].numpy()
    np.testing.assert_array_equal(predict(model, prepare(image), seed=9), expected)


def test_a_photograph_does_not_depend_on_what_came_before(
    model: DepthFM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthfm, "LONGER_SIDE", 64)
    images = [photograph(50, 70), photograph(90, 40, 1), photograph(50, 70, 2)]
    torch.manual_seed(1)
    forwards = [predict(model, prepare(image), seed=4) for image in images]
    torch.manual_seed(2)
    backwards = [predict(model, prepare(image), seed=4) for image in reversed(images)]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.float32
        assert (one.min(), one.max()) == (0, 1)
    assert not np.array_equal(predict(model, prepare(images[0]), seed=5), forwards[0])


def test_an_estimator_draws_the_noise_of_its_seed(
    model: DepthFM, vae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter passes the build's seed on, and finds the autoencoder beside the checkpoint."""
    monkeypatch.setattr(depthfm, "LONGER_SIDE", 64)
    image = photograph(50, 70)
    estimator = load_depth(str(vae_folder.parent / "small.ckpt"), CPU, seed=4)
    (distance,) = estimator.predict_some([estimator.prepare(image)])
    np.testing.assert_array_equal(distance, predict(model, prepare(image), seed=4))


def test_a_flat_depth_is_zero_and_a_broken_one_is_refused(
    model: DepthFM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthfm, "LONGER_SIDE", 64)
    for value in (0.3, math.nan):
        flat = type("Decoded", (), {"sample": torch.full((1, 3, 64, 64), value)})
        monkeypatch.setattr(model.vae, "decode", lambda z, flat=flat: flat)
        prepared = prepare(photograph(20, 30))
        if value == value:
            np.testing.assert_array_equal(predict(model, prepared, 0), np.zeros((64, 64)))
        else:
            with pytest.raises(ValueError, match="not finite"):
                predict(model, prepared, 0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (768, 768)),  # upstream enlarges too
        ((2040, 1356), (768, 512)),
        ((1356, 2040), (512, 768)),
        ((300, 200), (768, 512)),
        ((4000, 100), (768, 64)),  # upstream: 0
        ((768, 479), (768, 448)),  # 7.48 times 64
        ((768, 96), (768, 128)),  # 1.5 and 2.5 round to the even number
        ((768, 160), (768, 128)),
    ],
)
def test_processing_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert processing_size(*size) == expected


def test_arrays_of_either_numpy_and_tensors_load(tmp_path: Path, vae_folder: Path) -> None:
    text = np.ones((1, 7, 24), np.float32)
    for stored in (text, torch.from_numpy(text)):
        save_depthfm(tmp_path / "a.ckpt", SMALL, empty_text_embedding=stored)
        loaded = load_depthfm(tmp_path / "a.ckpt", vae_folder, CPU)
        assert torch.equal(loaded.text_embedding, torch.ones(1, 7, 24))

    # As NumPy 1 wrote it: the same, but for where its function was.
    save_depthfm(tmp_path / "b.ckpt", SMALL, empty_text_embedding=text)
    assert as_numpy_1(tmp_path / "b.ckpt")
    loaded = load_depthfm(tmp_path / "b.ckpt", vae_folder, CPU)
    assert torch.equal(loaded.text_embedding, torch.ones(1, 7, 24))


def as_numpy_1(path: Path) -> bool:
    """Rewrites the names in a checkpoint's pickle."""
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    names = [name for name in content if name.endswith("data.pkl")]
    changed = content[names[0]].replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    different = changed != content[names[0]]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in {**content, names[0]: changed}.items():
            new.writestr(name, data)
    return different


def without(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def recast(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A checkpoint of another UNet, whole in itself."""
    hparams = {**SMALL, **changes}
    return {**content, "ldm_hparams": hparams, "state_dict": LdmUNet(**hparams).state_dict()}


FIRST, BIAS = "input_blocks.0.0.weight", "input_blocks.2.0.op.bias"
BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no hparams": (lambda c: without(c, "ldm_hparams"), "no ldm_hparams"),
    "not a dict": (lambda c: [1, 2], "no noising_step"),
    "an argument missing": (
        lambda c: {**c, "ldm_hparams": without(SMALL, "context_dim")},
        "ldm_hparams lacks or has an unknown form of 'context_dim'",
    ),
    "another width": (
        lambda c: {**c, "ldm_hparams": {**SMALL, "model_channels": 64}},
        r"state_dict: \S+ is \(.*\), not \(.*\) as ldm_hparams has it",
    ),
    "another depth": (
        lambda c: {**c, "ldm_hparams": {**SMALL, "channel_mult": [1, 2, 2]}},
        "state_dict",
    ),
    "a first level of its own width": (  # which diffusers' UNet cannot be
        lambda c: recast(c, channel_mult=[2, 1]),
        r"state_dict: time_embed\.0\.weight is \(128, 32\), not \(256, 64\)",
    ),
    "another context": (
        lambda c: {**c, "empty_text_embedding": torch.zeros(1, 7, 25)},
        r"empty_text_embedding \(1, 7, 25\) does not fit context_dim",
    ),
    "a weight missing": (
        lambda c: {**c, "state_dict": without(c["state_dict"], FIRST)},
        r"state_dict lacks 1 tensors, first \(diffusers\) conv_in.weight",
    ),
    "a bias missing": (
        lambda c: {**c, "state_dict": without(c["state_dict"], BIAS)},
        "state_dict lacks 1 tensors, .*downsamplers.0.conv.bias",
    ),
    "a weight too many": (
        lambda c: {**c, "state_dict": {**c["state_dict"], "label_emb.weight": torch.ones(3)}},
        "state_dict has 1 too many, first label_emb.weight",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_checkpoint_that_does_not_fit_is_named_in_one_line(
    tmp_path: Path, vae_folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    checkpoint = tmp_path / "a.ckpt"
    save_depthfm(checkpoint, SMALL)
    torch.save(change(torch.load(checkpoint, weights_only=False)), checkpoint)
    with pytest.raises(WeightsError, match=message) as caught:
        load_depthfm(checkpoint, vae_folder, CPU)
    assert str(caught.value).startswith(f"{checkpoint}: ")
    assert "\n" not in str(caught.value)


def test_the_vae_is_whole_and_the_right_one(tmp_path: Path, vae_folder: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # takes seconds

    checkpoint, folder = tmp_path / "a.ckpt", tmp_path / "vae"
    save_depthfm(checkpoint, SMALL)
    with pytest.raises(WeightsError, match=r"vae: no config\.json"):
        load_depthfm(checkpoint, folder, CPU)

    AutoencoderKL.from_pretrained(vae_folder).save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file(without(weights, "decoder.conv_in.bias"), file)
    with pytest.raises(WeightsError, match=r"vae: missing keys: decoder\.conv_in\.bias"):
        load_depthfm(checkpoint, folder, CPU)

    # Stable Diffusion 1.5's file has the older names of the attention's weights.
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = dict(weights)
    for name in weights:
        for new, old in older.items():
            if f".{new}." in name:
                renamed[name.replace(new, old)] = renamed.pop(name)
    assert renamed.keys() != weights.keys()
    save_file(renamed, file)
    older_vae = load_depthfm(checkpoint, folder, CPU).vae
    loaded = older_vae.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    newer_vae = load_depthfm(checkpoint, vae_folder, CPU).vae
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        latent = older_vae.encode(picture).latent_dist.mean
        assert torch.equal(latent, newer_vae.encode(picture).latent_dist.mean)
        assert torch.equal(older_vae.decode(latent).sample, newer_vae.decode(latent).sample)

    config = folder / "config.json"
    config.write_text(config.read_text().replace("0.18215", "0.13025"))
    with pytest.raises(WeightsError, match=r"scaling_factor 0\.13025"):
        load_depthfm(checkpoint, folder, CPU)
