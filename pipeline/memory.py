"""Memory that stays flat over a long build."""

import ctypes
import sys
from contextlib import suppress

M_ARENA_MAX = -8  # of glibc's malloc.h


def share_arenas() -> None:
    """Let the threads of this process share two heaps of glibc's malloc.

    By default each gets its own, and photographs of many sizes leave holes in all of them: the peak
    then grows with the number of photographs. Elsewhere than on glibc nothing is done.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no mallopt
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
