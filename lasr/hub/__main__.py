"""The command `lasr push`: share a data set or a trained network on the Hugging Face Hub."""

import sys

from lasr.cli import Group, Lazy

ABOUT = """\
Share a data set or a trained network on the Hugging Face Hub, with its card.

    lasr push dataset data/patches.parquet owner/name --dry-run
    lasr push model data/runs/patches owner/name --private

Log in with `hf auth login`, or set HF_TOKEN. A repository's files are replaced only if this command
put them there and nobody changed them since.
"""

SECTIONS = {
    "Commands": [
        Lazy("lasr push dataset", "pipeline.push", "Upload a manifest and its data card"),
        Lazy("lasr push model", "trainer.push.__main__", "Upload a trained network and its card"),
    ],
}

main = Group("lasr push", about=ABOUT, sections=SECTIONS)

if __name__ == "__main__":
    sys.exit(main())
