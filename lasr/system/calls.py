"""Calls that one of the systems lacks, each with what is done instead.

A call is looked up where it is used, and not by the name of the system, so that a test can take it
away. docs/install.md says what was run on which system.
"""

import contextlib
import ctypes
import errno
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_RENAME_EXCHANGE = 2  # linux/fs.h
_RENAME_SWAP = 2  # sys/stdio.h of macOS
_AT_FDCWD = -100
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGEST = 2**30  # bytes: a block that glibc still takes from what the process has
_QUERY_LIMITED_INFORMATION, _STILL_ACTIVE = 0x1000, 259  # processthreadsapi.h
_ACCESS_DENIED = 5  # winerror.h


def libc() -> Any:
    """The C library of this process; None on Windows, which has no such handle."""
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (TypeError, OSError):
        return None


def _windows(library: str) -> Any:
    """A library of Windows; None elsewhere."""
    windll = getattr(ctypes, "windll", None)
    return getattr(windll, library) if windll else None


# --- Files ----------------------------------------------------------------------------------------


def exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where that is not possible. Raises OSError.

    Linux has renameat2 for it, macOS renamex_np, Windows nothing.
    """
    library = libc()
    names = os.fsencode(first), os.fsencode(second)
    if renameat2 := getattr(library, "renameat2", None):
        status = renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif renamex_np := getattr(library, "renamex_np", None):
        status = renamex_np(names[0], names[1], _RENAME_SWAP)
    else:
        return False
    if status == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # not on this file system
        return False
    raise OSError(code, os.strerror(code), str(second))


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a power failure would otherwise undo a rename.

    Windows opens no folder for that, and keeps the order of renames in its journal.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        if os.path.isdir(folder) and os.access(folder, os.R_OK):  # noqa: PTH112
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def unnamed_file(folder: str | None = None) -> Iterator[Path]:
    """A path to an empty temporary file that is gone afterwards.

    On Linux it has no name, so that nothing is left after a kill. Elsewhere it has one.
    """
    import tempfile

    if os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        with tempfile.TemporaryFile(dir=folder) as file:
            yield Path(f"/proc/self/fd/{file.fileno()}")
        return
    handle, name = tempfile.mkstemp(dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def as_slashes(path: str) -> str:
    """A path of this system with slashes, as manifests have it on every system."""
    return path if os.sep == "/" else path.replace(os.sep, "/")


# --- Processes ------------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs.

    Windows has no signal 0: there, `os.kill` would end the process.
    """
    if kernel := _windows("kernel32"):
        handle = kernel.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid)
        if not handle:
            return bool(kernel.GetLastError() == _ACCESS_DENIED)  # of another user
        status = ctypes.c_ulong()
        known = kernel.GetExitCodeProcess(handle, ctypes.byref(status))
        kernel.CloseHandle(handle)
        return not known or status.value == _STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and waits for its parent to look; False where nobody knows."""
    try:
        # Linux: the state follows the name, which is in brackets and may hold anything.
        state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return state[0] in "ZX"
    except (OSError, IndexError):
        return False


def process_start(pid: int) -> str | None:
    """What tells a process from a later one of the same number; None where nobody knows.

    It needs no clock: Linux counts from the start of the machine, and names each start.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return f"{boot} {fields[19]}"
    except (OSError, IndexError):
        return None


# --- Memory ---------------------------------------------------------------------------------------


class _MemoryStatus(ctypes.Structure):  # MEMORYSTATUSEX
    _fields_ = (
        ("length", ctypes.c_ulong), ("load", ctypes.c_ulong),
        *((name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")),
    )  # fmt: skip


class _MemoryCounters(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS
    _fields_ = (
        ("length", ctypes.c_ulong), ("faults", ctypes.c_ulong),
        *((name, ctypes.c_size_t) for name in ("peak", "a", "b", "c", "d", "e", "f", "g")),
    )  # fmt: skip


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next allocations; False where nothing changed.

    glibc gives large blocks back to the system at once, which clears each of them again when it is
    next touched. A process that needs the same blocks in every step pays for that with time, not
    with memory: its peak stays nearly the same.
    """
    mallopt = getattr(libc(), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _LARGEST))


def physical_memory() -> int:
    """Bytes of the machine's memory; 0 where the system does not say."""
    if kernel := _windows("kernel32"):
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        return int(status.total) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else 0
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def peak_memory() -> int:
    """The most bytes that this process held so far; 0 where the system does not say."""
    if kernel := _windows("kernel32"):
        counters = _MemoryCounters(length=ctypes.sizeof(_MemoryCounters))
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        process = ctypes.c_void_p(kernel.GetCurrentProcess())
        found = kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.length)
        return int(counters.peak) if found else 0
    try:
        resource = importlib.import_module("resource")
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def resident_memory() -> int:
    """Bytes that this process holds; the most that it held where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()
