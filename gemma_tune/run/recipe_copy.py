"""The files of a recipe under another name, for `recipe=copy`. No torch."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from gemma_tune.config import CopyConfig
from gemma_tune.config.methods import named_method
from gemma_tune.errors import UserError
from gemma_tune.run.paths import RECIPES, resolve, shipped_recipes


@dataclass(frozen=True)
class NewFile:
    """A file to be written.

    Attributes:
        path: Its place, where nothing stands yet.
        text: What it will hold.
    """

    path: Path
    text: str


def copied(copy: CopyConfig) -> tuple[NewFile, NewFile, str]:
    """The steps and the values of a recipe as files of the user's own, and the command that runs them.

    The steps are those of the recipe as they stand. In the values only the commands of the comment change.
    """
    folder = resolve(copy.to)
    values = shipped_recipes()[copy.recipe].read_text(encoding="utf-8")
    method = named_method(yaml.safe_load(values))
    assert method is not None, "every shipped recipe names one"
    steps = (RECIPES / f"{method.file}.py").read_text(encoding="utf-8")
    place = folder / f"{copy.named}.py"
    word = shlex.quote(f"recipe={place}")
    renamed = re.sub(rf"(?<![\w.])recipe={re.escape(copy.recipe)}(?![\w.])", lambda _: word, values)
    head, _, rest = renamed.partition("\n")
    origin = f"# A copy of recipe={copy.recipe}; the steps stand in {place.name}, and `method` says what they vary.\n#"
    return (
        NewFile(place, steps),
        NewFile(folder / f"{copy.named}.yaml", f"{head}\n{origin}\n{rest}"),
        f"python -m gemma_tune {word}",
    )


def write_both(*files: NewFile) -> None:
    """Writes the files, all or none.

    Raises:
        UserError: One is there already, or can't be written.
    """
    written: list[Path] = []
    try:
        for file in files:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            with file.path.open("x", encoding="utf-8") as new:
                written.append(file.path)
                new.write(file.text)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise UserError(f"copy.to: {error.filename} can't be written ({error.strerror}).") from error
