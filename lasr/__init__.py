"""The front door of LA-SR, and what its programs share.

    import lasr

    lasr.build_patches(images=["photos"], out="data/patches.parquet")
    lasr.train(manifest="data/patches.parquet")
    sharp = lasr.Upscaler("data/runs/patches/model.safetensors")(picture)
    lasr.open_manifest("data/patches.parquet").schema

docs/api.md has an example of each. A name is imported when it is first used, so `import lasr` loads
neither PyTorch nor a program that is not installed.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {  # by name, since lasr itself depends on neither program
    "open_manifest": "lasr.storage.manifest",
    "build_patches": "pipeline.run",
    "train": "trainer.run",
    "Upscaler": "trainer.upscale.upscaler",
}
__all__ = ["Upscaler", "build_patches", "open_manifest", "train"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lasr' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
