"""The record that every data format yields, and the checks that every record passes."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from typing import Any

from gemma_tune.errors import bounded

# Control tokens of every Gemma tokenizer; those of one chat format alone are refused when a row is rendered.
_ANYWHERE = (
    "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<start_of_image>", "<end_of_image>", "<image_soft_token>",
    "<start_of_audio>", "<end_of_audio>", "<audio_soft_token>",
)  # fmt: skip
CONTROL_TOKENS = (*_ANYWHERE, "<start_of_turn>", "<end_of_turn>")
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
# Texts in which the turns of a chat are written already, by the tokens or the words of common templates.
_TURNS = re.compile(
    r"<start_of_turn>|<end_of_turn>|<\|turn>|<turn\|>|<\|im_start\|>|<\|start_header_id\|>|<\|eot_id\|>"
    r"|\[INST\].*\[/INST\]|<\|user\|>.*<\|assistant\|>"
    r"|^### ?(?:Human|User|Instruction)(?::|\s*$).*### ?(?:Assistant|Response)(?::|\s*$)"
    r"|^(?:USER|Human): .*(?:ASSISTANT|Assistant):",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
        messages: The conversation in the OpenAI form, or None for running text. An assistant's message with
            `"weight": 0` (as in OpenAI's fine-tuning) is not trained on. Media are parts of a content with the path of
            a file: `{"type": "image", "image": "/absolute/path"}`; `audio` and `video` likewise.
        text: Running text, or None for a conversation.
        tools: Function schemas in the OpenAI form, or None.
        rejected: The answer that is worse than the last one of `messages`, as messages after `prompt`, or None.
        desirable: Whether the last answer is a good one, for learning from both (KTO); None without a label.
        where: File and line, for messages to the user.
        thinking: Whether the prompt asks the model to think.
        unanswered: Whether the whole conversation is the prompt, earlier answers included.
        row: The original row of the file, which rewards may read; a reader of the user's own may leave it empty.
        unused: Names of the row's and its messages' fields that were not used.
        missing: Names of those that read `nan`, `None` or `null`, as tools write a missing value.
        ignored: Names in `data.ignore_fields` that the row has.
        beside: Of the first row of a file: names of the file's fields beside its rows, which no row gets.
        doubts: Of the first row of a file: what seems wrong with how the whole file is read.
    """

    where: str
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    tools: list[dict[str, Any]] | None = None
    rejected: list[dict[str, Any]] | None = None
    desirable: bool | None = field(default=None, kw_only=True)
    thinking: bool = False
    unanswered: bool = False
    row: dict[str, Any] = field(default_factory=dict, compare=False, repr=False, kw_only=True)
    unused: tuple[str, ...] = field(default=(), compare=False, repr=False, kw_only=True)
    missing: tuple[str, ...] = field(default=(), compare=False, repr=False, kw_only=True)
    ignored: tuple[str, ...] = field(default=(), compare=False, repr=False, kw_only=True)
    beside: tuple[str, ...] = field(default=(), compare=False, repr=False, kw_only=True)
    doubts: tuple[str, ...] = field(default=(), compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        self._refuse_other_types()
        if (self.messages is None) == (self.text is None):
            raise BadRow(f"{self.where}: a record has either messages or text.")
        try:
            said = [self.messages, self.text, self.tools, self.rejected]
            _JSON.encode(said).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):x}"
            raise BadRow(f"{self.where}: {half} stands without the other half of its character.") from error
        except (TypeError, ValueError) as error:  # also NaN and Infinity
            raise BadRow(f"{self.where}: a value is not valid in JSON ({error}).") from error
        for message in [*(self.messages or ()), *(self.rejected or ())]:
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            for part in parts:
                if isinstance(part, dict):
                    _refuse_control_tokens(part.get("text"), CONTROL_TOKENS, self.where)
        if self.text and (found := _TURNS.search(self.text)):
            raise BadRow(
                f"{self.where}: the text holds {found[0][:20]!r}, the turns of a chat: as running text, the user's "
                "turns would be trained, too. Write the conversation as messages (data=messages)."
            )
        _refuse_control_tokens(self.text, _ANYWHERE, self.where)

    def _refuse_other_types(self) -> None:
        """What a reader of the user's own may get wrong, and no row of a file can.

        Raises:
            TypeError: A field of another type.
        """
        if not isinstance(self.where, str):
            raise TypeError(_other_type("where", self.where, "text with file and line, as in f'{path}:{line}'"))
        if not isinstance(self.text, str | None):
            raise TypeError(_other_type("text", self.text, "text"))
        for name in ("messages", "rejected"):
            given = getattr(self, name)
            if not isinstance(given, list | None):
                raise TypeError(_other_type(name, given, "a list of messages, each a dict with role and content"))
            for place, message in enumerate(given or ()):
                if not isinstance(message, dict):
                    raise TypeError(_other_type(f"{name}[{place}]", message, "a dict with role and content"))
        if not isinstance(self.tools, list | None):
            raise TypeError(_other_type("tools", self.tools, "a list of function schemas"))
        if not isinstance(self.row, dict):
            raise TypeError(_other_type("row", self.row, "a dict"))

    def with_remarks(self, **remarks: tuple[str, ...]) -> Record:
        """The same with other remarks (`unused` to `doubts`); its content isn't checked once more."""
        made = copy.copy(self)
        vars(made).update(remarks)
        return made

    @property
    def prompt(self) -> list[dict[str, Any]]:
        """The conversation up to its last answer."""
        messages = self.messages or []
        if self.unanswered:
            return messages
        last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages))
        return messages[:last]

    @property
    def wanted(self) -> dict[str, Any] | None:
        """The last answer of the conversation as a message (the reference answer), or None."""
        messages, last = self.messages or [], len(self.prompt)
        return messages[last] if last < len(messages) else None

    @property
    def answer(self) -> str:
        """The text of the last answer; empty where there is none."""
        content = (self.wanted or {}).get("content") or ""
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _other_type(name: str, given: Any, wanted: str) -> str:
    return f"the field {name} of a Record must be {wanted}, not {type(given).__name__}"


class BadRow(ValueError):
    """A row that can't be used; the message names file and line, and is `bounded`."""

    def __init__(self, message: str) -> None:
        super().__init__(bounded(message))


def _refuse_control_tokens(text: Any, tokens: tuple[str, ...], where: str) -> None:
    """In a row's text they would become real control tokens: a second <bos>, or a forged turn."""
    if not isinstance(text, str) or "<" not in text:
        return
    if found := [t for t in tokens if t in text]:
        raise BadRow(f"{where}: the text holds {', '.join(found)}, which the template writes itself; take it out.")
