"""`data=columns`: one prompt and one answer per row, in fields of any name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.conversation import as_messages, conversation, row_tools
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields, structure_in
from gemma_tune.data.sources import Source, map_rows


def fits(row: Mapping[str, Any], data: DataConfig) -> bool:
    """Whether a row is of this format; never as long as the columns aren't named."""
    named = [data.prompt_column] if data.prompts_only and not data.completion_column else []
    named = named or [data.prompt_column, data.completion_column]
    # A field within another may be missing from the first row
    return all(name is not None and (name in row or name.split(".")[0] in row) for name in named)


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one conversation per row: a prompt, or messages, followed by the answer."""
    prompt, completion, system = data.prompt_column, data.completion_column, data.system_column
    assert prompt  # `validation` requires it

    def record(fields: RowFields) -> Record:
        tools = row_tools(fields, data)
        # A system text in a column of another name; `conversation` reads those of the known names
        if system:
            fields.require(system, "Set data.system_column.")
        said = fields.optional_text(system) if system else ""
        opening = [{"role": "system", "content": said}] if said else []
        if isinstance(structure_in(fields.require(prompt, "Set data.prompt_column.")), list | dict):
            asked = as_messages(fields.get(prompt), "user", prompt, fields)
            asked = [{**m, "weight": 0} if m.get("role") == "assistant" else m for m in asked]
        else:
            asked = [{"role": "user", "content": fields.text(prompt, "data.prompt_column")}]
        answer = []
        if completion and (fields.has(completion) or not data.prompts_only):
            given = fields.require(completion, "Set data.completion_column.")
            if not given or not isinstance(structure_in(given), list | dict):
                given = fields.text(completion, "data.completion_column")
            answer = as_messages(given, "assistant", completion, fields, tools)
        names = [*[str(system)] * len(opening), *[prompt] * len(asked), *[str(completion)] * len(answer)]
        return conversation(fields, [*opening, *asked, *answer], data, names)

    return map_rows(source, record, data)
