"""Print a script that completes `lasr` commands and flags in a shell.

    lasr completion bash > ~/.local/share/bash-completion/completions/lasr
    lasr completion zsh > ~/.zfunc/_lasr           # a folder in $fpath
    lasr completion fish > ~/.config/fish/completions/lasr.fish

The script is static: pressing Tab runs no Python. Print it again after an upgrade.
"""

from typing import Literal

from pydantic import BaseModel, Field

from lasr.cli import Command


class CompletionConfig(BaseModel):
    """What `lasr completion` takes."""

    shell: Literal["bash", "zsh", "fish"] = Field(description="the shell that reads the script")


def script(config: CompletionConfig) -> str:
    """The completion script of all commands."""
    from lasr.__main__ import main as lasr

    return lasr.app().generate_completion(shell=config.shell)


main = Command(
    CompletionConfig,
    lambda config: print(script(config), end=""),
    name="lasr completion",
    about=__doc__,
    positional="shell",
)
