"""What happens to the world before and while commands run, and how a user puts it right again."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.world import World, contents, mount, unmount

# --- Changes of the photographs: the next build has to follow them --------------------------------


def add(world: World, rng: random.Random) -> str:
    return f"added {world.add(rng, f'new{rng.randrange(10**6)}').name}"


def remove(world: World, rng: random.Random) -> str:
    found = world.photographs()
    if len(found) < 5:
        return add(world, rng)
    path = rng.choice(found)
    path.unlink()
    return f"removed {path.name}"


def change(world: World, rng: random.Random) -> str:
    """Another picture under the name of one."""
    path = rng.choice(world.photographs())
    path.write_bytes(world.picture(rng, path.suffix))
    return f"changed {path.name}"


def repeat(world: World, rng: random.Random) -> str:
    """The same bytes under a second name."""
    path = rng.choice(world.photographs())
    copy = path.with_name(f"new{rng.randrange(10**6)}{path.suffix}")
    shutil.copy2(path, copy)
    return f"copied {path.name} to {copy.name}"


def swap(world: World, rng: random.Random) -> str:
    """Another folder with the same names in the place of the photographs' folder."""
    other = world.folder / "other"
    for path in [world.photos, *sorted(world.photos.rglob("*"))]:
        copy = other / path.relative_to(world.photos)
        if path.is_dir():
            copy.mkdir(parents=True)
        elif path in world.photographs():
            copy.write_bytes(world.picture(rng, path.suffix))
        elif path.is_file():
            shutil.copy2(path, copy)
    shutil.rmtree(world.photos)
    other.rename(world.photos)
    return "swapped all photographs"


def swap_unseen(world: World, rng: random.Random) -> str:
    """The same with equal sizes and times, as archives and cameras that count from 1 have them."""
    for path in world.photographs():
        if path.suffix == ".bmp":  # the size of a bitmap does not depend on the picture
            other, state = path.with_name(f".{path.name}"), path.stat()
            other.write_bytes(world.picture(rng, ".bmp"))
            os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
            other.rename(path)
    return "swapped bitmaps, same sizes and times"


def rename_folder(world: World, rng: random.Random) -> str:
    folders = [path for path in sorted(world.photos.iterdir()) if path.is_dir()]
    folder = rng.choice(folders)
    new = folder.with_name(f"folder {rng.randrange(10**6)}")
    folder.rename(new)
    return f"renamed {folder.name} to {new.name}"


def rewrite(world: World, rng: random.Random) -> str:
    """New times, same content."""
    for path in world.photographs():
        os.utime(path)
    return "touched all photographs"


def spoil(world: World, rng: random.Random) -> str:
    """A photograph of which half is there."""
    path = world.photos / f"cut{rng.randrange(3)}.png"
    path.write_bytes(world.picture(rng, ".png")[:20_000])
    return f"half a photograph {path.name}"


def foreign_format(world: World, rng: random.Random) -> str:
    (world.photos / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + rng.randbytes(3000))
    return "a photograph of a phone"


def pipe(world: World, rng: random.Random) -> str:
    """A named pipe; who reads it waits for ever."""
    path = world.photos / "a pipe.png"
    if path.exists():
        path.unlink()
        return "removed the pipe"
    os.mkfifo(path)
    return "a named pipe"


CHANGES: dict[str, Callable[[World, random.Random], str]] = {
    "add": add, "remove": remove, "change": change, "repeat": repeat, "swap": swap,
    "swap-unseen": swap_unseen, "rename-folder": rename_folder, "touch": rewrite, "spoil": spoil,
    "heic": foreign_format, "pipe": pipe,
}  # fmt: skip

# --- Damage to files that commands wrote ----------------------------------------------------------


def damage(path: Path, kind: str, rng: random.Random) -> None:
    """Damage a file in place."""
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
        return
    if kind == "flip" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del content[rng.randrange(len(content) or 1) :]
    elif kind == "empty":
        content.clear()
    elif kind == "garbage":
        content[:] = rng.randbytes(rng.randrange(1, 3000))
    with open(path, "r+b") as file:  # in place: both names of a hard link change
        file.write(content)
        file.truncate()


KINDS = ("flip", "flip", "truncate", "empty", "delete", "garbage")


def damage_build(world: World, rng: random.Random) -> str:
    """Damage one or two of the files of a build."""
    said = []
    for _ in range(rng.choice((1, 1, 2))):
        files = [path for path in world.data.rglob("*") if path.is_file() and is_ours(path, world)]
        if not files:
            return "nothing to damage yet"
        # A part as often as a map, of which there are more.
        suffix = rng.choice(sorted({path.suffix for path in files}))
        path = rng.choice(sorted(path for path in files if path.suffix == suffix))
        kind = rng.choice(KINDS)
        damage(path, kind, rng)
        world.damaged.append(path)
        said.append(f"{kind} {path.relative_to(world.data)}")
    return ", ".join(said)


def is_ours(path: Path, world: World) -> bool:
    """Whether a build wrote a file in the data folder, and did not mark it as its lock."""
    if path.name in ("thesis.md", "precious.parquet", "lock", "theirs.bin"):
        return False
    return path.parent != world.data or path.suffix in (".parquet", ".md")


def damage_run(world: World, rng: random.Random) -> str:
    """Damage a file of the training run, if it has begun."""
    names = ("checkpoint.pt", "checkpoint.pt", "checkpoint.previous.pt", "stats.jsonl")
    files = [world.run / name for name in names if (world.run / name).exists()]
    if not files:
        return "no checkpoint to damage yet"
    path, kind = rng.choice(files), rng.choice(KINDS)
    damage(path, kind, rng)
    world.stats_damaged |= path.name == "stats.jsonl"
    return f"{kind} {path.name}"


def damage_training(world: World, rng: random.Random) -> str:
    """Damage a part of the manifest that the run trains on, before it begins or half-way."""
    files = sorted(world.training.glob("*.parquet"))
    if not files:
        return "the training manifest is gone already"
    path, kind = rng.choice(files), rng.choice(KINDS)
    damage(path, kind, rng)
    world.note_damage()
    return f"{kind} {path.relative_to(world.folder)}"


def damage_prefect(world: World, rng: random.Random) -> str:
    """Damage Prefect's database, which the next build through Prefect meets."""
    if not world.prefect.exists():
        return "no database of Prefect yet"
    kind = rng.choice(KINDS)
    damage(world.prefect, kind, rng)
    return f"{kind} {world.prefect.name}"


DAMAGES: dict[str, Callable[[World, random.Random], str]] = {
    "damage-build": damage_build,
    "damage-prefect": damage_prefect,
    "damage-run": damage_run,
    "damage-training": damage_training,
}

# --- Obstacles: what a command must refuse or get along with, until the user removes it -----------


@dataclass
class Obstacle:
    """What is in the way. must_refuse: no build can succeed meanwhile."""

    said: str
    must_refuse: bool
    heal: Callable[[], None]


def full_disk(world: World, rng: random.Random) -> Obstacle | None:
    """The data folder on a disk with too little space."""
    moved = world.folder / "moved"
    if not world.data.is_dir() or os.getuid() != 0:
        return None
    shutil.copytree(world.data, moved, copy_function=shutil.copy2)
    size = sum(path.stat().st_size for path in moved.rglob("*") if path.is_file())
    megabytes = max(1, round(size / 1e6 + rng.uniform(-0.5, 1.5)))
    if not mount(world.data, megabytes + 1):
        shutil.rmtree(moved)
        return None
    disk = {path.relative_to(moved): path for path in sorted(moved.rglob("*"))}
    for name, path in disk.items():  # the project as it was, as far as it fits
        if path.is_dir():
            (world.data / name).mkdir(exist_ok=True)
        elif path.parent == moved or path.suffix == ".parquet":
            try:
                shutil.copy2(path, world.data / name)
            except OSError:
                (world.data / name).unlink(missing_ok=True)
    for name, path in disk.items():
        if path.parent == moved and path.is_file() and not (world.data / name).exists():
            unmount(world.data)  # not even that: no case for a build
            shutil.rmtree(moved)
            return None

    def heal() -> None:
        shutil.rmtree(moved)
        shutil.copytree(world.data, moved, copy_function=shutil.copy2)
        unmount(world.data)
        shutil.rmtree(world.data)
        moved.rename(world.data)

    return Obstacle(f"a disk of {megabytes + 1} MB", False, heal)


def locked(folder: Path, mode: int, said: str, must_refuse: bool) -> Obstacle:
    before = folder.stat().st_mode
    folder.chmod(mode)
    return Obstacle(said, must_refuse, lambda: folder.chmod(before))


def unreadable_folder(world: World, rng: random.Random) -> Obstacle | None:
    """A folder of photographs that cannot be listed: a lost mount, or permissions."""
    folders = [path for path in sorted(world.photos.iterdir()) if path.is_dir()]
    folder = rng.choice(folders)
    return locked(folder, 0, f"{folder.name} cannot be listed", False)


def unreadable_photograph(world: World, rng: random.Random) -> Obstacle | None:
    path = rng.choice(world.photographs())
    return locked(path, 0, f"{path.name} cannot be read", False)


def read_only(world: World, rng: random.Random) -> Obstacle | None:
    """The data folder, or the work folder in it, cannot be written."""
    folder = rng.choice([path for path in (world.data, world.work) if path.is_dir()])
    return locked(folder, 0o555, f"{folder.name} cannot be written", True)


def foreign_file_in(world: World, rng: random.Random) -> Obstacle | None:
    """A file of the user's in the manifest or its work folder."""
    folder = rng.choice([path for path in (world.out, world.work) if path.is_dir()] or [world.data])
    path = folder / "theirs.bin"
    path.write_bytes(rng.randbytes(500))
    return Obstacle(f"{path.relative_to(world.folder)}", folder != world.data, path.unlink)


def foreign_output(world: World, rng: random.Random) -> Obstacle | None:
    """A folder, a file or a link of the user's in the place of the manifest or its neighbours."""
    target = rng.choice(
        [world.out, world.data / "images.parquet", world.data / "card.md", world.work]
    )
    aside = world.folder / "aside"
    existed = os.path.lexists(target)
    if existed:
        target.rename(aside)
    kind = rng.choice(("folder", "file", "link"))
    elsewhere = world.folder / "theirs"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "theirs.bin").write_bytes(rng.randbytes(500))
    if kind == "folder":
        shutil.copytree(elsewhere, target)
    elif kind == "file":
        target.write_bytes(rng.randbytes(500))
    else:
        target.symlink_to(elsewhere)
    before = contents(world.folder / target.relative_to(world.folder).parent)

    def heal() -> None:
        after = contents(world.folder / target.relative_to(world.folder).parent)
        name = target.name
        theirs = {k: v for k, v in before.items() if k == name or k.startswith(f"{name}/")}
        assert theirs.items() <= after.items(), f"a foreign {kind} at {target.name} was changed"
        assert [path.name for path in elsewhere.iterdir()] == ["theirs.bin"], "a link was followed"
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink()
        if existed:
            aside.rename(target)
        shutil.rmtree(elsewhere)

    return Obstacle(f"a foreign {kind} at {target.name}", True, heal)


OBSTACLES: dict[str, Callable[[World, random.Random], Obstacle | None]] = {
    "full-disk": full_disk,
    "unreadable-folder": unreadable_folder,
    "unreadable-photograph": unreadable_photograph,
    "read-only": read_only,
    "foreign-file": foreign_file_in,
    "foreign-output": foreign_output,
}
