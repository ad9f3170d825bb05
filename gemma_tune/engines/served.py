"""A model behind an OpenAI-compatible API as an engine: it is asked as any client asks it, and gives answers alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from gemma_tune.chat import Rendered, Unrenderable, form_of, render_chat
from gemma_tune.chat.calls import parse_answer
from gemma_tune.chat.forms import thinking_of
from gemma_tune.config import ModelConfig
from gemma_tune.engines.api_models import client_of, explained, served_model
from gemma_tune.engines.base import Dialogue
from gemma_tune.engines.json_client import Refused, Unreachable
from gemma_tune.errors import RunError
from gemma_tune.media.encoded import as_sent
from gemma_tune.media.kinds import UnusableMedium
from gemma_tune.progress import progress

_AT_ONCE = 8  # requests
_SECONDS = 1800.0  # for one answer, behind all others
# A conversation of one turn, to which an answer is put to be rendered
_ASKED = {"role": "user", "content": "."}
# llama.cpp's error where a call doesn't fit the tools of the request, or is cut off: its client has no answer, and the
# row is wrong
_UNPARSED = "The model produced output that does not match"
_NO_PROBABILITIES = "a server of this kind gives answers, and no probabilities"


class ServedEngine:
    """Answers by chat completions, greedily; what a server says is rendered as its model would have written it.

    Args:
        model: `base_url` and `served_name`.
        tokenizer: The model's tokenizer, with its chat template.

    Raises:
        UserError: There is no such server, or no such model.
    """

    def __init__(self, model: ModelConfig, tokenizer: Any) -> None:
        assert model.base_url
        self.tokenizer = tokenizer
        from gemma_tune.models.load import stop_token_ids  # loads torch; a comparison of runs needs none of it

        self.stops = frozenset(stop_token_ids(tokenizer))
        self.max_length = sys.maxsize  # what the server takes isn't known
        self.name = served_model(model)
        self._url, self._client = model.base_url, client_of(model.base_url, _SECONDS)
        self._form = form_of(tokenizer)

    def replies(self, dialogues: Sequence[Dialogue], max_new_tokens: int, name: str) -> list[list[int]]:
        """Greedy answers as token ids, in the dialogues' order, with the stop token where the answer wasn't cut off.

        Args:
            dialogues: What is asked.
            max_new_tokens: Tokens of an answer at most.
            name: For the progress bar.

        Raises:
            UserError: The server is gone, or wants another key.
            RunError: It refuses a request, or its answer is none.
        """
        bar = progress(total=len(dialogues), desc=name, unit=" rows")
        with bar, ThreadPoolExecutor(_AT_ONCE) as pool:
            waiting = [pool.submit(self._reply, dialogue, max_new_tokens) for dialogue in dialogues]
            try:
                found = []
                for one in waiting:
                    found.append(one.result())
                    bar.update()
                return found
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, name: str) -> NoReturn:
        """See `Engine`; a client has conversations, and no token ids."""
        raise RunError("a server takes conversations, and no token ids: use inputs.answers(engine, records).")

    def losses(self, rows: Sequence[Rendered], name: str) -> NoReturn:
        """See `Engine`."""
        raise RunError(f"losses can't be measured: {_NO_PROBABILITIES}.")

    def log_probs(self, rows: Sequence[Sequence[int]], name: str) -> Iterator[Any]:
        """See `Engine`."""
        raise RunError(f"log-probabilities can't be measured: {_NO_PROBABILITIES}.")

    def _reply(self, dialogue: Dialogue, max_new_tokens: int) -> list[int]:
        asked: dict[str, Any] = {"model": self.name, "temperature": 0, "max_tokens": max_new_tokens}
        asked["messages"] = as_openai(dialogue.messages)
        if dialogue.tools:
            asked["tools"] = dialogue.tools
        if dialogue.thinking:
            asked["chat_template_kwargs"] = {"enable_thinking": True}
        try:
            choice = self._client.post("/chat/completions", **asked)["choices"][0]
            message, reason = choice["message"], choice["finish_reason"]
            return self._rendered(message, cut=reason == "length")
        except Refused as error:
            if error.status in (401, 403):
                raise explained(self._url, error) from None
            if _UNPARSED in str(error):
                return []
            raise
        except Unreachable as error:
            raise explained(self._url, error) from None
        except (LookupError, TypeError, AttributeError):
            raise RunError(f"{self._url}: its answer is no chat completion of OpenAI's form.") from None

    def _rendered(self, message: dict[str, Any], cut: bool) -> list[int]:
        """The token ids of a server's message, as its model would have written it."""
        said: dict[str, Any] = {"role": "assistant", "content": message.get("content") or ""}
        if self._form.thinking and (thinking := thinking_of(message)):
            said["reasoning_content"] = thinking
        calls = [_call(one["function"]) for one in message.get("tool_calls") or []]
        try:
            if None in calls:
                raise Unrenderable("a call whose arguments are no mapping")
            if calls:
                said["tool_calls"] = [{"type": "function", "function": call} for call in calls]
            rendered = render_chat(self.tokenizer, [_ASKED, said])
            ids = [i for i, label in zip(rendered.input_ids, rendered.labels, strict=True) if label != -100]
        except Unrenderable:  # as text: it is no right answer
            broken = [json.dumps(one["function"], ensure_ascii=False) for one in message.get("tool_calls") or []]
            text = "\n".join([said["content"], *broken]).strip()
            ids = [*self.tokenizer(text, add_special_tokens=False).input_ids, min(self.stops)]
        return [i for i in ids if i not in self.stops] if cut else ids


def _call(function: dict[str, Any]) -> dict[str, Any] | None:
    """A server's call with its arguments as data; None where they are none."""
    try:
        arguments = json.loads(function["arguments"]) if isinstance(function["arguments"], str) else None
    except ValueError:
        return None
    return {"name": function["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def as_openai(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a client sends them: arguments as JSON text, each result with the id of its call, media with content.

    Raises:
        RunError: A file of an image, a sound or a video can't be used.
    """
    sent: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for number, message in enumerate(messages):
        one = {key: value for key, value in message.items() if key != "weight"}
        if calls := one.get("tool_calls"):
            ids = [call.get("id") or f"call_{number}_{place}" for place, call in enumerate(calls)]
            one["tool_calls"] = [
                {"id": name, "type": "function", "function": _sent_function(call["function"])}
                for name, call in zip(ids, calls, strict=True)
            ]
            open_calls = list(ids)
        elif one["role"] == "tool":
            first = open_calls.pop(0) if open_calls else f"call_{number}"
            one.setdefault("tool_call_id", first)
            if isinstance(one["content"], dict):
                one["content"] = json.dumps(one["content"], ensure_ascii=False)
        if isinstance(one.get("content"), list):
            one["content"] = _sent_parts(one["content"])
        sent.append(one)
    return sent


def _sent_parts(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        return [as_sent(part) for part in parts]
    except UnusableMedium as error:
        raise RunError(str(error)) from error


def _sent_function(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"name": function["name"], "arguments": text}


def same_answer_text(one: str, other: str, form: Any) -> bool:
    """Whether two answers say the same: the same calls as data, and the same words around them."""
    a, b = parse_answer(one, form), parse_answer(other, form)
    return a.text == b.text and a.calls == b.calls
