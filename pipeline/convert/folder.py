"""Folders of PNG files, as BasicSR, Real-ESRGAN and traiNNer-redux read them.

    train/hr/KEY.png  train/lr/KEY.png  train/metadata.jsonl  train/hr.txt  train/lr.txt
    val/…             trainner-redux.yml

`hr.txt` is BasicSR's meta_info: a line for each picture, its name and (height,width,channels).
`metadata.jsonl` is that of `datasets`' imagefolder. A far patch is no small version of a near one,
so there are no pairs: the options degrade near patches on the fly.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lasr.errors import UserError
from lasr.files import atomic_path, beside, fsync_folder
from pipeline.convert.rows import PNG, Group, Rows
from schemas.manifest import PATCH_SIZE, SCALE

OPTIONS = "trainner-redux.yml"
METADATA = "metadata.jsonl"
# A crop of traiNNer-redux's and Real-ESRGAN's data set is this much larger than asked for.
_MARGIN = 32


def write_pictures(rows: Rows, out: Path, on_done: Callable[[int], object]) -> int:
    """Write the pictures that are not there yet; returns the number of rows without a PNG.

    Raises UserError: another file has the name of a picture.
    """
    folders = {group: out / group[0] / group[1] for group in rows.groups if rows.count(group)}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    without = 0

    def every(group: Group, numbers: np.ndarray) -> np.ndarray:
        return np.ones(len(numbers), bool)

    for patch in rows.read(every):
        if patch.png.startswith(PNG):
            _write(folders[patch.group] / f"{patch.key}.png", patch.png)
        else:
            without += 1
        on_done(1)
    for folder in folders.values():
        fsync_folder(folder)
    return without


def _write(path: Path, png: bytes) -> None:
    """Write a picture, unless it is there. No fsync: what a power failure cuts is rewritten."""
    if path.is_symlink() or path.exists():
        found = b"" if path.is_symlink() or not path.is_file() else path.read_bytes()
        if found == png:
            return
        if path.is_symlink() or not path.is_file() or not png.startswith(found.rstrip(b"\0")):
            raise UserError(f"{path}: is another file; nothing of it was changed", "move it away")
    temporary = beside(path, ".tmp")
    temporary.write_bytes(png)
    temporary.replace(path)


def write_lists(rows: Rows, out: Path) -> None:
    """Write the lists of pictures and their columns. Files that are there stay as they are."""
    groups = [group for group in rows.groups if rows.count(group)]
    for split in dict.fromkeys(split for split, _ in groups):
        roles = [role for one, role in groups if one == split]
        folder = out / split
        if all((folder / name).exists() for name in (METADATA, *(f"{role}.txt" for role in roles))):
            continue
        with (
            atomic_path(folder / METADATA) as temporary,
            open(temporary, "w", encoding="utf-8", newline="\n") as metadata,
        ):
            lists = {
                role: beside(folder / f"{role}.txt", ".tmp").open(
                    "w", encoding="utf-8", newline="\n"
                )
                for role in roles
            }
            for (own, role), key, about in rows.about():
                if own != split or not (folder / role / f"{key}.png").exists():
                    continue
                line = {"file_name": f"{role}/{key}.png"} | about
                metadata.write(json.dumps(line) + "\n")
                side = about.get("size") or PATCH_SIZE[role]  # type: ignore[index]
                lists[role].write(f"{key}.png ({side},{side},3)\n")
            for role, file in lists.items():
                file.close()
                beside(folder / f"{role}.txt", ".tmp").replace(folder / f"{role}.txt")


def options(rows: Rows, out: Path) -> str:
    """Options for traiNNer-redux: near patches of `train`, degraded on the fly.

    The degradations are those that Real-ESRGAN published for its own training.
    """
    has_train = ("train", "hr") in rows.groups and rows.count(("train", "hr"))
    split = "train" if has_train else "val"
    far = [out / s / r for s, r in rows.groups if r == "lr" and rows.count((s, r))]
    crop = (PATCH_SIZE["hr"] - _MARGIN) // SCALE // 8 * 8
    kernels = "[iso, aniso, generalized_iso, generalized_aniso, plateau_iso, plateau_aniso]"
    probabilities = "[0.45, 0.25, 0.12, 0.03, 0.12, 0.03]"
    validation = (
        f"""
  val:  # real low resolution, to look at: there is no reference
    name: far patches
    type: singleimagedataset
    dataroot_lq: [{json.dumps(str(far[-1].absolute()))}]
"""
        if far
        else ""
    )
    return f"""# Options for traiNNer-redux: python train.py -opt {OPTIONS}
# Patches have {PATCH_SIZE["hr"]} pixels a side; a crop needs {_MARGIN} more than lq_size * scale.
name: lasr_x{SCALE}
scale: {SCALE}
num_gpu: auto

high_order_degradation: true
resize_prob: [0.2, 0.7, 0.1]
resize_range: [0.15, 1.5]
gaussian_noise_prob: 0.5
noise_range: [1, 30]
poisson_scale_range: [0.05, 3]
gray_noise_prob: 0.4
jpeg_range: [30, 95]
resize_prob2: [0.3, 0.4, 0.3]
resize_range2: [0.3, 1.2]
blur_prob: 1.0
blur_prob2: 0.8
gaussian_noise_prob2: 0.5
noise_range2: [1, 25]
poisson_scale_range2: [0.05, 2.5]
gray_noise_prob2: 0.4
jpeg_range2: [30, 95]
queue_size: 160  # a multiple of the batch

datasets:
  train:
    name: near patches
    type: realesrgandataset
    dataroot_gt: [{json.dumps(str((out / split / "hr").absolute()))}]
    meta_info: {json.dumps(str((out / split / "hr.txt").absolute()))}
    lq_size: {crop}
    use_hflip: true
    use_rot: true
    blur_kernel_size: 21
    kernel_list: {kernels}
    kernel_prob: {probabilities}
    kernel_range: [7, 21]
    sinc_prob: 0.1
    blur_sigma: [0.2, 3]
    betag_range: [0.5, 4]
    betap_range: [1, 2]
    blur_kernel_size2: 21
    kernel_list2: {kernels}
    kernel_prob2: {probabilities}
    kernel_range2: [7, 21]
    sinc_prob2: 0.1
    blur_sigma2: [0.2, 1.5]
    betag_range2: [0.5, 4]
    betap_range2: [1, 2]
    final_sinc_prob: 0.8
    final_kernel_range: [7, 21]
    num_worker_per_gpu: 4
    batch_size_per_gpu: 8
{validation}
network_g:
  type: esrgan

path:
  strict_load_g: true

train:
  ema_decay: 0.999
  optim_g:
    type: AdamW
    lr: 0.0002
    weight_decay: 0
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: [200000, 400000]
    gamma: 0.5
  total_iter: 500000
  losses:
    - type: charbonnierloss
      loss_weight: 1.0

val:
  val_enabled: {"true" if far else "false"}
  val_freq: 5000
  save_img: true
  metrics_enabled: false

logger:
  print_freq: 100
  save_checkpoint_freq: 5000
  save_checkpoint_format: safetensors
  use_tb_logger: true
"""
