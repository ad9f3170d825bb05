"""One message as people have it, read as OpenAI writes it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from gemma_tune.config.data import LANGUAGES
from gemma_tune.data import anthropic, google
from gemma_tune.data.known_fields import CALL, MEDIA, ROLE_NAMES, ROLES, SWITCHES, THINKING, is_thinking, switch_of
from gemma_tune.data.media_fields import message_media, placed
from gemma_tune.data.media_parts import kind_of, read_part
from gemma_tune.data.records import BadRow
from gemma_tune.data.row_fields import RowFields, is_empty, structure_in
from gemma_tune.data.tools import Tools, calls_of_message, checked_call, parsed

_SWITCHES = frozenset(SWITCHES)


class ReadMessage:
    """One message as it was read.

    Args:
        message: Anything.
        number: Its place in the conversation, from 1.
        fields: The row.
        name: The field that it stands in.
    """

    def __init__(self, message: Any, number: int, fields: RowFields, name: str) -> None:
        self.where, self.number = fields.where, number
        self._fields, self._name = fields, name
        message = structure_in(message)
        given: Mapping[str, Any] = message if isinstance(message, dict) else {}
        self._message = {k: v for k, v in given.items() if v is not None and not fields.is_ignored(f"{name}.{k}")}
        self._used: set[str] = set()
        said = self._take(*ROLE_NAMES)
        self._said = said
        self.role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
        if self.role is None:
            known = ", ".join(dict.fromkeys(("system", "user", "assistant", "tool", *ROLES)))
            keys = "" if said else f"; its fields: {', '.join(map(str, given)) or 'none'}"
            raise BadRow(f"{self.where}: message {number} has the role {said!r}, not one of {known}{keys}.")

    def _take(self, *names: str) -> Any:
        """The value under the first of some names that the message has."""
        for name in names:
            if name in self._message:
                self._used.add(name)
                return self._message[name]
        return None

    def entry(self, tools: Tools | None, called: dict[str, str]) -> dict[str, Any]:
        """The message in the OpenAI form; `called` gets the names of its calls by their ids."""
        content = self._take("content", "value", "parts", "text")
        content = self._with_own_media(content)
        calls = calls_of_message(self._message, self.where, self.number)
        self._used |= {"tool_calls", "function_call"}
        role = str(self.role)
        if role == CALL:
            found = parsed(content, self.where, f"message {self.number}")
            calls, content, role = [*(found if isinstance(found, list) else [found]), *calls], "", "assistant"
        thinking = self._thinking(role)
        form = google if google.is_parts(content) else anthropic if anthropic.is_parts(content) else None
        if form:
            said = form.read_parts(content, f"{self.where}: message {self.number}", self._note)
            ids = [c["id"] for c in map(structure_in, calls) if isinstance(c, dict) and c.get("id")]
            more = [
                c for c in said.calls if not isinstance(c, dict) or c.get("id") not in ids
            ]  # LangChain has them twice
            content, calls, thinking = said.text, [*calls, *more], self._one_thinking(thinking, said.thinking, role)
        if calls and role != "assistant":
            raise BadRow(
                f"{self.where}: message {self.number}: tool_calls and function_call stand in an assistant's message."
            )
        entry: dict[str, Any] = {"role": role, "content": self._content(content, role, bool(calls))}
        if calls:
            entry["tool_calls"] = [checked_call(c, self.where, tools, self._note) for c in calls]
            for call, kept in zip(map(structure_in, calls), entry["tool_calls"], strict=True):
                if isinstance(call.get("id"), str | int):
                    called[str(call["id"])] = kept["function"]["name"]
        if role == "tool" and (named := self._answers(called)):
            entry["name"] = named
        if thinking:
            entry["reasoning_content"] = thinking
        if (weight := self._weight(role)) is not None:
            entry["weight"] = weight
        if role == "assistant" and not calls and is_blank(entry["content"]):
            raise BadRow(f"{self.where}: message {self.number}: the assistant's answer is empty.")
        self._fields.check_missing(self._name, _text_of(entry["content"]))
        return entry

    def _with_own_media(self, content: Any) -> Any:
        """The content with what the message's own fields of media hold, as in Ollama's messages."""
        if self.role not in ("user", "tool") or MEDIA.keys().isdisjoint(self._message):
            return content
        media = message_media(self._message, self._fields, self._name, f"message {self.number}")
        self._used |= {name for name, _ in media.values()}
        return placed([content], media, f"{self.where}: message {self.number}", [0])[0]

    def finish(self) -> None:
        """Lists or refuses the fields that were not used."""
        for key, value in self._message.items():
            if key not in self._used and not is_empty(value):
                self._note(key, value)

    def _note(self, key: str, value: Any = None) -> None:
        self._fields.refuse(f"{self._name}.{key}", value)
        self._fields.not_used(f"{self._name}.{key}")

    def _content(self, content: Any, role: str, calls: bool) -> Any:
        if content is None and (calls or role == "assistant"):  # an answer without both is refused as empty
            return ""
        if content is None:
            raise BadRow(f"{self.where}: a message of the role {role!r} has no content.")
        if isinstance(content, int | float | Decimal) and not isinstance(content, bool):
            return str(content)
        if isinstance(content, str) or (isinstance(content, dict) and role == "tool"):
            return content
        if not isinstance(content, list):
            raise BadRow(f"{self.where}: {role}'s content is {type(content).__name__}, not a text.")
        parts = []
        for part in content:
            kept = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
            said = {name: kept.pop(name) for name in LANGUAGES if role == "user" and name in kept}
            if wrong := next((name for name, code in said.items() if not isinstance(code, str)), None):
                raise BadRow(f"{self.where}: message {self.number}: {wrong} is a language's code, such as 'de_DE'.")
            if (kind := kind_of(kept)) and role in ("user", "tool"):
                parts.append({**read_part(kept, self._fields, f"message {self.number}", self._note), **said})
                continue
            if kind:
                raise BadRow(
                    f"{self.where}: message {self.number}: {kind} stands in {role}'s message, and only the user's and "
                    "tools' can hold media."
                )
            if kept.get("type") not in ("text", "input_text", "output_text") or not isinstance(kept.get("text"), str):
                kind = f" of the type {kept['type']!r}" if "type" in kept else ""
                raise BadRow(
                    f"{self.where}: a part of {role}'s content{kind} isn't {{'type': 'text', 'text': …}}, image, audio "
                    "or video. Calls stand in `tool_calls`, thinking in `reasoning_content`."
                )
            for key in kept.keys() - {"type", "text"}:
                self._note(f"content.{key}", kept[key])
            parts.append({"type": "text", "text": kept["text"], **said})
        if role == "system" and len(parts) != 1:
            raise BadRow(
                f"{self.where}: the system text has {len(parts)} parts, and the template reads one; join them."
            )
        return parts

    def _answers(self, called: Mapping[str, str]) -> str | None:
        """Name of the function whose result this is, by the call's id or its own name; None if the row doesn't say."""
        by_id, name = self._take("tool_call_id"), self._take("name")
        found = called.get(str(by_id)) if isinstance(by_id, str | int) else None
        return found or (name if isinstance(name, str) else None)

    def _thinking(self, role: str) -> str | None:
        found: Any = None
        for key in THINKING:
            if key in self._message and is_thinking(self._message[key]):  # else listed as not used
                found = self._one_thinking(found, self._take(key), role)
        return found or None

    def _one_thinking(self, found: Any, said: Any, role: str) -> Any:
        """The one that isn't empty, which is a text of the assistant's."""
        if is_empty(said) or (isinstance(said, str) and not said.strip()):
            return found
        if found and said != found:
            raise BadRow(
                f"{self.where}: message {self.number} has two texts of thinking ({', '.join(THINKING)}); keep one."
            )
        if role != "assistant" or not isinstance(said, str):
            raise BadRow(f"{self.where}: thinking (reasoning_content) is a text, and in an assistant's message.")
        return said

    def _weight(self, role: str) -> int | None:
        """What the message's switches say; None where it has none."""
        found: dict[str, int] = {}
        if _SWITCHES.isdisjoint(self._message):
            return None
        for key in SWITCHES:
            if key not in self._message:
                continue
            try:
                said = switch_of(self._take(key))
            except ValueError:
                raise BadRow(
                    f"{self.where}: message {self.number}: {key} is {self._message[key]!r}, and must be 0 or 1 (false "
                    "or true), in an assistant's message."
                ) from None
            if said is not None:
                found[key] = said
        if role != "assistant":
            if wrong := [key for key, said in found.items() if said]:
                raise BadRow(
                    f"{self.where}: message {self.number}: {wrong[0]} is 0 or 1, and in an assistant's message; the "
                    f"role {self._said!r} is never trained (data.ignore_fields=[{self._name}.{wrong[0]}])."
                )
            return None
        if len(set(found.values())) > 1:
            raise BadRow(f"{self.where}: message {self.number}: {' and '.join(found)} say different things.")
        return next(iter(found.values()), None)


def _text_of(content: Any) -> Any:
    """The text of a checked message, its parts joined; a tool's result may also be a mapping."""
    return "".join(part.get("text", "") for part in content) if isinstance(content, list) else content


def is_blank(content: Any) -> bool:
    """Whether a checked message has no text."""
    text = _text_of(content)
    return isinstance(text, str) and not text.strip()
