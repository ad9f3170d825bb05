"""`copy=…`: which recipe `recipe=copy` copies, and where to."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class CopyConfig:
    """A shipped recipe as two files of one's own: its steps (Python) and its values (YAML)."""

    recipe: str = option("", "The recipe to copy.")
    to: str = option(".", "Folder of the two files; it is made where it isn't there.", path="output")
    name: str | None = option(None, "Name of the two files, without a suffix; null: `my_<recipe>`.", longest=100)

    @property
    def named(self) -> str:
        """The name of the files."""
        return f"my_{self.recipe}" if self.name is None else self.name
