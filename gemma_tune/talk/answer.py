"""What a model said, and how it is printed while it is said: calls of tools as calls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

from gemma_tune.chat.calls import Call, parse_answer
from gemma_tune.chat.render import Messages
from gemma_tune.models.load import stop_token_ids

# A line that is, or may become, the beginning of a call; the published models like to fence theirs.
_CALL = re.compile(r"[ \t]*(```[a-z_]*\s*)?[{\[]")
_PERHAPS = re.compile(r"[ \t]*(`{0,2}|```[a-z_]*\s*)\Z")


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: The text without special tokens, calls as the JSON that the model wrote.
        stopped: Whether the model ended it, and not a limit or the person.
    """

    text: str
    stopped: bool

    @classmethod
    def of(cls, tokenizer: Any, ids: list[int]) -> Answer:
        """The answer of new token ids, [T], the stop token among them where there is one."""
        stops = stop_token_ids(tokenizer)
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        return cls(text, stopped=bool(ids) and ids[-1] in stops)

    @property
    def calls(self) -> list[Call]:
        """The calls in it, perhaps none."""
        return parse_answer(self.text)[1]

    def row(self, messages: Messages) -> dict[str, Any]:
        """The answer for programs: `prompt` (the last message's text), `answer`, `calls` and `stopped`."""
        content = messages[-1]["content"]
        prompt = content if isinstance(content, str) else " ".join(part["text"] for part in content)
        calls = [{"name": c.name, "arguments": c.arguments} for c in self.calls]
        return {"prompt": prompt, "answer": self.text, "calls": calls, "stopped": self.stopped}


class AnswerStreamer(TextStreamer):
    """Prints an answer while it is made, and its calls as calls.

    From a line on that begins as a call does, the text is held back until the end, where it shows what it is. Nothing
    is lost: text that turns out to be no call is printed as it stands.

    Attributes:
        ids: The answer's token ids so far, [T].
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.ids: list[int] = []
        self._held = ""  # not printed yet
        self._holding = False
        self._line_begins = True
        self._ended = False

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt's ids, [1, T], and then each new one, [1]."""
        if not self.next_tokens_are_prompt:
            self.ids += value.flatten().tolist()
        super().put(value)

    def end(self) -> None:
        """Prints what is left; `generate` says so, and whoever interrupts it."""
        if not self._ended:
            self._ended = True
            super().end()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Prints what can't be part of a call, and at the end the rest."""
        self._held += text
        while self._held and not self._holding:
            if self._line_begins and _CALL.match(self._held):
                self._holding = True
            elif self._line_begins and _PERHAPS.match(self._held):
                break
            else:
                line, line_break, self._held = self._held.partition("\n")
                self._line_begins = bool(line_break)
                print(line + line_break, end="", flush=True)
        if stream_end:
            self._print_rest()

    def _print_rest(self) -> None:
        calls = parse_answer(self.tokenizer.decode(self.ids, skip_special_tokens=True))[1]
        rest, held_calls = parse_answer(self._held)
        if not (calls and held_calls == calls):
            rest = self._held
        lines = [f"→ {call}" for call in calls]
        if rest or not self._line_begins:
            lines.insert(0, rest)
        print("\n".join(lines), flush=True)
