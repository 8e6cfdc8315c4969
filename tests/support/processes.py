"""Processes of a test that start with everything imported.

They are forked from a server process, one for each worker of the tests, which imports once what
commands import, also on use, and what the modules of tests import that define the targets. A
process then begins within milliseconds instead of seconds, and most of its life is work.
"""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path
from pkgutil import iter_modules

import PIL

ROOT = Path(__file__).parents[2]
PRELOADED = [
    "clip_interrogator", "imagehash", "pytest", "lasr.weights.clip", "pipeline.build.plan",
    "pipeline.build.publish", "pipeline.build.shard", "pipeline.query.answer",
    "pipeline.report.page", "tests.conftest", "tests.support.upstream", "trainer.loop",
    "trainer.run", "trainer.upscale.__main__", "trainer.upscale.run",
    # What libraries import on use.
    "cyclopts", "pandas", "pipeline.query.__main__", "pipeline.report.__main__", "pipeline.run",
    "pyarrow.acero", "pyarrow.dataset", "pyarrow.pandas_compat",
    "pipeline.stages.scene_layout", "scipy.fftpack", "scipy.sparse.csgraph", "zoneinfo",
    *(f"PIL.{found.name}" for found in iter_modules(PIL.__path__) if "ImagePlugin" in found.name),
]  # fmt: skip


def context() -> ForkServerContext:
    """What `multiprocessing` starts these processes with.

    Their environment is that of the first process started, and not what a test has set since.
    """
    # The server does not inherit sys.path before Python 3.13, and ignores a module not found.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found
