"""The Markdown of data cards and model cards."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import CardData


def page(
    front: "CardData", title: str, about: str, sections: Mapping[str, str], banner: str = ""
) -> str:
    """A card. front: what the Hub reads. sections: by title. banner: whole lines below `about`."""
    text = "".join(f"\n## {heading}\n\n{body}\n" for heading, body in sections.items())
    return f"---\n{front.to_yaml()}\n---\n\n# {title}\n\n{about}\n{banner}{text}"


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table. Its cells may hold any text of one line."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    head = list(head)
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])
