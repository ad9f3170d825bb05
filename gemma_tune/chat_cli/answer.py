"""A model's answer, and a streamer that prints it while it is generated, tool calls as calls."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

from gemma_tune.chat import FORMS, ChatForm, form_of
from gemma_tune.chat.answer_text import decode_answer
from gemma_tune.chat.calls import Call, as_message, content_text, parse_answer, split_thinking
from gemma_tune.chat.render import Messages

# A line that is, or may become, the beginning of a call; the published models often put calls in code fences.
_CALL = re.compile(r"[ \t]*(```[a-z_]*\s*)?[{\[]")
_PERHAPS = re.compile(r"[ \t]*(`{0,2}|```[a-z_]*\s*)\Z")

# Around Gemma 4's thinking.
_THINKS = ("<|channel>", "<channel|>")


@dataclass(frozen=True)
class Answer:
    """A model's answer.

    Attributes:
        said: The text without special tokens; calls and thinking as the model wrote them.
        stopped: Whether the model ended it, not a limit or the user.
        form: Its chat format.
    """

    said: str
    stopped: bool
    form: ChatForm = FORMS["gemma3"]

    @classmethod
    def of(cls, tokenizer: Any, ids: list[int]) -> Answer:
        """The answer of new token ids, [T], including the stop token if there is one."""
        form = form_of(tokenizer)
        stops = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list(form.stop_tokens))}
        return cls(decode_answer(tokenizer, ids).strip(), bool(ids) and ids[-1] in stops, form)

    @property
    def text(self) -> str:
        """The text without thinking; calls as the model wrote them."""
        return split_thinking(self.said, self.form)[1]

    @property
    def calls(self) -> list[Call]:
        """The calls in it, perhaps none."""
        return parse_answer(self.said, self.form).calls

    @property
    def thinking(self) -> str:
        """The thinking before the answer, perhaps empty."""
        return split_thinking(self.said, self.form)[0]

    def message(self) -> dict[str, Any]:
        """The answer as an OpenAI message."""
        return as_message(self.said, self.form)

    def row(self, messages: Messages) -> dict[str, Any]:
        """The answer for programs: `prompt` (the text of the last message), `answer`, `calls`, `stopped`.

        `thinking` is added if there is any.
        """
        calls = [{"name": c.name, "arguments": c.arguments} for c in self.calls]
        row = {"prompt": content_text(messages[-1]), "answer": self.text, "calls": calls, "stopped": self.stopped}
        return row | ({"thinking": self.thinking} if self.thinking else {})


class _Decoder:
    """A tokenizer that keeps the tokens around calls, strings and thinking; TextStreamer only calls `decode`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return decode_answer(self._tokenizer, ids)


class AnswerStreamer(TextStreamer):
    """Prints an answer while it is generated: calls as calls, thinking on standard error.

    From the position where a call begins, or may begin, the text is held back until the end of the answer. Nothing is
    lost: text that turns out not to be a call is printed unchanged.

    Attributes:
        ids: The answer's token ids so far, [T].
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(_Decoder(tokenizer), skip_prompt=True)
        self.ids: list[int] = []
        self._tokenizer = tokenizer
        self._form = form_of(tokenizer)
        self._held = ""  # not printed yet
        self._holding = False
        self._thinks = False
        self._line_begins = True
        self._ended = False

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt's ids, [1, T], and then each new one, [1]."""
        if not self.next_tokens_are_prompt:
            self.ids += value.flatten().tolist()
        super().put(value)

    def end(self) -> None:
        """Prints the rest; called by `generate`, and by whoever interrupts it."""
        if not self._ended:
            self._ended = True
            super().end()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Prints the text that can't be part of a call, and the rest at the end."""
        self._held += text
        if self._form.calls == "native":
            self._print_native()
        else:
            self._print_lines()
        if stream_end:
            self._print_rest()

    def _print_lines(self) -> None:
        """For calls in JSON: prints complete lines, up to one that may begin a call."""
        while self._held and not self._holding:
            if self._line_begins and _CALL.match(self._held):
                self._holding = True
            elif self._line_begins and _PERHAPS.match(self._held):
                break
            else:
                line, line_break, self._held = self._held.partition("\n")
                self._line_begins = bool(line_break)
                print(line + line_break, end="", flush=True)

    def _print_native(self) -> None:
        """For calls between special tokens: prints everything up to the first such token."""
        call = next(t for t in self._form.answer_tokens if "call" in t)
        while self._held and not self._holding:
            stops = [_THINKS[1]] if self._thinks else [call, _THINKS[0]]
            place, found = min((p, t) for t in (*stops, "") if (p := self._held.find(t) if t else len(self._held)) >= 0)
            said, self._held = self._held[:place], self._held[place:]
            if said and self._thinks:
                print(said, end="", file=sys.stderr, flush=True)
            elif said:
                self._line_begins = said.endswith("\n")
                print(said, end="", flush=True)
            if found == call:
                self._holding = True
            elif found:
                self._held = self._held.removeprefix(found).removeprefix("thought\n")
                self._thinks = found == _THINKS[0]
                print("[thinking: " if self._thinks else "]\n", end="", file=sys.stderr, flush=True)

    def _print_rest(self) -> None:
        calls = parse_answer(decode_answer(self._tokenizer, self.ids), self._form).calls
        rest, held_calls, _ = parse_answer(self._held, self._form)
        if not (calls and held_calls == calls):
            rest = self._held
        lines = [f"→ {call}" for call in calls]
        if rest or not self._line_begins:
            lines.insert(0, rest)
        print("\n".join(lines), flush=True)
