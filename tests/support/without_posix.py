"""Import every module and use the main ones with what Windows lacks taken away from our code.

    python tests/support/without_posix.py FOLDER PHOTOGRAPHS

Libraries keep it all: what is tested is what *our* modules call. Names that Windows lacks are gone
from `os` and `signal`, folders cannot be opened, a rename replaces nothing, ctypes has no C library
but kernel32, and /proc and /dev are not there.
"""

import builtins
import ctypes
import importlib
import os
import pkgutil
import signal
import sys
import types
from pathlib import Path
from typing import Any

OURS = {"lasr", "schemas", "pipeline", "trainer"}
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
OS = {
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "fchmod", "fchown", "fork",
    "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "kill", "killpg",
    "lchown", "mkfifo", "mknod", "nice", "openpty", "posix_fadvise", "posix_spawn", "pread",
    "pwrite", "sched_getaffinity", "sendfile", "setsid", "statvfs", "sysconf", "uname", "wait",
    "waitpid", "getpgrp", "setpgid", "ttyname", "sync", "chroot", "confstr", "pathconf",
}  # fmt: skip
SIGNAL = {
    "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP",
    "SIGUSR1", "SIGUSR2", "SIGWINCH", "alarm", "pause", "pthread_kill", "pthread_sigmask",
    "setitimer", "sigwait",
}  # fmt: skip
_import = builtins.__import__


class Without(types.ModuleType):
    """A module without some names, and with others in the place of its own."""

    def __init__(self, module: types.ModuleType, lacking: set[str], instead: dict[str, Any]):
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, _lacking=lacking, **instead)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["_lacking"]:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on Windows")
        return getattr(self.__dict__["_module"], name)


def open_descriptor(path: Any, *arguments: Any, **options: Any) -> int:
    if Path(path).is_dir():
        raise PermissionError(13, "Permission denied", str(path))
    return os.open(path, *arguments, **options)


def rename(source: Any, target: Any) -> None:
    if os.path.lexists(target):
        raise FileExistsError(17, "File exists", str(target))
    os.rename(source, target)


def symlink(*arguments: Any, **options: Any) -> None:
    raise OSError(1314, "A required privilege is not held by the client")


def is_folder(path: Any) -> bool:
    return not str(path).startswith(("/proc", "/dev")) and Path(path).is_dir()


def library(name: Any, *arguments: Any, **options: Any) -> Any:
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    return ctypes.CDLL(name, *arguments, **options)


class Kernel32:
    """The functions of kernel32 that are used: this process is alive, and memory has a size."""

    class GetCurrentProcess:
        restype: Any = None

        def __new__(cls) -> Any:
            return 1

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: 1

    def GetExitCodeProcess(self, handle: int, status: Any) -> int:  # noqa: N802
        status._obj.value = 259
        return 1

    def GlobalMemoryStatusEx(self, status: Any) -> int:  # noqa: N802
        status._obj.total = 2**34
        return 1

    def K32GetProcessMemoryInfo(self, process: Any, counters: Any, length: int) -> int:  # noqa: N802
        counters._obj.peak = 2**30
        return 1


PATH = Without(os.path, set(), {"isdir": is_folder})
INSTEAD = {
    "os": Without(
        os, OS,
        {"name": "nt", "open": open_descriptor, "rename": rename, "symlink": symlink, "path": PATH},
    ),
    "signal": Without(signal, SIGNAL, {}),
    "ctypes": Without(
        ctypes, set(), {"CDLL": library, "windll": types.SimpleNamespace(kernel32=Kernel32())}
    ),
}  # fmt: skip


def importing(
    name: str, globals_: Any = None, locals_: Any = None, fromlist: Any = (), level: int = 0
) -> Any:
    """`__import__`, for our modules with what Windows has."""
    module = _import(name, globals_, locals_, fromlist, level)
    if str((globals_ or {}).get("__name__", "")).split(".")[0] not in OURS:
        return module
    top = name.split(".")[0]
    if top in MODULES:
        raise ImportError(f"{name}: Windows has no such module")
    if top in INSTEAD and not (fromlist and "." in name):
        return INSTEAD[top]  # `from os import fork` then fails, too
    return module


def import_module(name: str, package: str | None = None) -> Any:
    if name in MODULES:
        raise ImportError(f"{name}: Windows has no such module")
    return _import_module(name, package)


_import_module = importlib.import_module


def import_all() -> int:
    """Import every module of ours; returns their number."""
    names = [
        found.name
        for package in sorted(OURS)
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    ]
    for name in names:
        if name.endswith("__main__") and name.count(".") == 1:
            continue
        importlib.import_module(name)
    return len(names)


def main(folder: Path, photographs: Path) -> None:
    builtins.__import__ = importing
    importlib.import_module = import_module
    from lasr.__main__ import main as lasr  # this module is none of ours, so it names `lasr` freely
    from lasr.system import calls

    assert calls.physical_memory() == 2**34 and calls.peak_memory() == 2**30
    assert calls.is_alive(os.getpid())
    print(f"{import_all()} modules")

    import lasr as api

    os.chdir(folder)
    for seed in (0, 1):  # the second build replaces the folder of the first
        built = api.build_patches(
            [str(photographs)], "p q/patches.parquet", profile="test", k=2, limit=2, seed=seed
        )
    assert built.patches["lr"] == built.patches["hr"] > 0, built
    train = ["--profile", "test", "--batch-size", "2", "--steps", "1", "--out", "run"]
    status = lasr(["train", "--manifest", "p q/patches.parquet", *train])
    assert status == 0
    one = next(photographs.glob("*.jpg"))
    weights = ["--weights", "run/model.safetensors"]
    (folder / "in").mkdir()
    from PIL import Image

    Image.open(one).crop((0, 0, 40, 30)).save("in/small.png")
    assert lasr(["upscale", "in/small.png", *weights, "--out", "up"]) == 0
    assert Image.open("up/small.png").size == (160, 120)
    query = "SELECT DISTINCT image_path FROM patches ORDER BY 1"
    assert lasr(["query", query, "--manifest", "p q/patches.parquet", "--format", "csv"]) == 0
    assert lasr(["query", query, "--manifest", "p q/patches.parquet", "--out", "a.parquet"]) == 0
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
