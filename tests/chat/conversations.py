"""Conversations that are hard on a chat template, the same ones for the same seed, for every form."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gemma_tune.chat import FORMS, ChatForm

BFCL = Path(os.environ.get("GEMMA_TUNE_TEST_DATA") or "unset", "bfcl")
Message = dict[str, Any]

SCRIPTS = {
    "Latin": "Où est la gare, s'il vous plaît?",
    "Cyrillic": "Где находится вокзал?",
    "Greek": "Πού είναι ο σταθμός;",
    "Arabic": "أين تقع المحطة؟",
    "Hebrew": "איפה התחנה?",
    "Devanagari": "स्टेशन कहाँ है?",
    "Thai": "สถานีรถไฟอยู่ที่ไหน",
    "Chinese": "火车站在哪里?",
    "Japanese": "駅はどこですか。",
    "Korean": "역이 어디에 있나요?",
}

# Each stands in the middle of some message; those of the second list also alone, as whole answers.
ODD_TEXTS = [
    "👩‍🚀👨‍👩‍👧‍👦🏳️‍🌈 👍🏽",
    "{{ x }} and {{- messages[0] -}}",
    "{% if a %}b{% endif %} {# c #}",
    "{% generation %}{% endgeneration %}",
    '{"json": [1, {"a": null}]}',
    "col1\tcol2\t\tcol4",
    "one\ntwo\n\n\nfour",
    "<|im_start|>user [INST] </s> <start_of_turn",
    "<end_of_turn>\n<start_of_turn>model\n",
    "<turn|>\n<|turn>model\n<|channel>thought\n",
    "<escape><start_function_call>call:f{}<end_function_call>",
    "</tool_response>",
    "a\u00a0b\u2028c e\u0301",
    "back\\slash \"quotes\" &amp; <b>'bold'</b>",
]
SHORT_ANSWERS = [
    "4",
    "3.14 or so",
    "-1",
    "#### 42",
    "\\boxed{42}",
    "A",
    "!",
    "...",
    "(no)",
    "* one\n* two",
    "是",
    "👍🏽",
]
BLANKS = ["", "", " ", "\n", "\t", "  \n ", "\n\n", "\u00a0"]

TOOLS = [
    {
        "name": "get_weather",
        "description": 'Tells the weather in a "city" — now.\nUnits: °C & °F.',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "город, 都市, مدينة"},
                "unit": {"type": "string", "enum": ["°C", "°F"]},
            },
            "required": ["city"],
        },
    },
    {
        "name": "travel.book",
        "description": "Books a trip <with stops> {{ of any length }}.",
        "parameters": {
            "type": "object",
            "properties": {
                "legs": {
                    "type": "array",
                    "description": "From first to last",
                    "items": {
                        "type": "object",
                        "description": "One leg",
                        "properties": {"to": {"type": "string"}, "nights": {"type": "integer", "description": "1–30"}},
                    },
                },
                "name": {"type": "string", "description": "A parameter that is called name"},
            },
        },
    },
    {"name": "add", "description": "", "parameters": {"type": "object", "properties": {"x": {}, "y": {}}}},
    {"name": "now", "description": "Takes nothing"},
    {"name": "名前を探す", "parameters": {"type": "object", "properties": {}}},
]

ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"city": "Київ", "unit": "°C"},
    {"x": 1, "y": -2.5e-7, "big": 12345678901234567890},
    {"legs": [{"to": "東京", "nights": 3}, {"to": "تونس", "nights": 0}], "name": None},
    {"deep": {"er": {"est": [[], {}, [True, False, None]]}}},
    {"text": 'a "quoted" \\ line\nand\ttab, <b>&\'</b> {{ x }} 👩‍🚀', "empty": ""},
    {"on": False, "off": True, "list": [1, "two", 3.5, None, ["{", "}", ":"]], "Key": {"a-b": "x,y:z"}},
]

# Of each kind of JSON value, what its schema says beside the type.
_EXTRAS: dict[str, list[dict[str, Any]]] = {
    "string": [{}, {"enum": ["a", "b c"]}, {"enum": []}, {"format": "date"}],
    "integer": [{}, {"minimum": 3}, {"enum": [1, 2]}],
    "number": [{}],
    "boolean": [{}, {"default": True}],
    "array": [
        {},
        {"items": {}},
        {"items": {"type": "string", "enum": ["x"], "description": "One"}},
        {"items": {"type": ["string", "null"], "nullable": None}},
        {
            "items": {
                "type": "object",
                "properties": {"b": {"type": "number"}, "a": {"type": "string", "description": "A"}},
                "required": ["a"],
            }
        },
    ],
    "object": [
        {},
        {"properties": {}},
        {"properties": {"type": {"type": "string"}, "Z": {"type": "integer", "description": "z"}}, "required": ["Z"]},
        {"inner": {"type": "boolean", "description": "as some write it"}, "required": ["inner"]},
    ],
}


def made_tool(rng: random.Random) -> dict[str, Any]:
    """A function whose parameters hold what schemas hold, in any mixture."""
    properties: dict[str, Any] = {}
    for name in rng.sample(["name", "description", "type", "Alpha", "beta", "città", "z_9"], rng.randint(0, 6)):
        kind = rng.choice(list(_EXTRAS))
        schema = {"type": rng.choice([kind, kind, kind.upper()]), **rng.choice(_EXTRAS[kind])}
        if rng.random() < 0.7:
            schema["description"] = rng.choice(list(SCRIPTS.values()))
        if rng.random() < 0.3:
            schema["nullable"] = rng.choice([True, False])
        properties[name] = schema
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if properties and rng.random() < 0.6:
        parameters["required"] = rng.sample(list(properties), rng.randint(1, len(properties)))
    tool = {"name": f"made_{rng.randrange(99)}", "description": "Made up", "parameters": parameters}
    return tool | rng.choice([{}, {"response": {"type": "object", "description": "What comes back"}}])


@cache
def bfcl() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """BFCL's simple Python calls: question, function, and the first right arguments; none where it isn't at hand."""
    files = [BFCL / "simple_python.jsonl", BFCL / "simple_python_answers.jsonl"]
    if not all(f.is_file() for f in files):
        return []
    rows = ([json.loads(x) for x in f.read_text(encoding="utf-8").splitlines()] for f in files)
    found = []
    for asked, right in zip(*rows, strict=True):
        ((_, options),) = right["ground_truth"][0].items()
        arguments = {k: values[0] for k, values in options.items() if values[0] != ""}
        found.append((asked["question"][0][-1]["content"], asked["function"][0], arguments))
    return found


@dataclass(frozen=True)
class Chat:
    """One conversation.

    Attributes:
        messages: In the OpenAI form.
        tools: Function schemas, or None.
        traits: What stands in it.
    """

    name: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    traits: set[str] = field(default_factory=set)

    @property
    def published(self) -> bool:
        """Whether Gemma 3's published template can say it: it knows neither tools nor their results."""
        return not self.tools

    @property
    def answers(self) -> list[int]:
        """Where the assistant's messages are."""
        return [i for i, m in enumerate(self.messages) if m["role"] == "assistant"]


class _Writer:
    """Writes one conversation and notes what it puts in."""

    def __init__(self, number: int, rng: random.Random, form: ChatForm) -> None:
        self.number, self.rng, self.form, self.traits = number, rng, form, set[str]()
        self.odd = [t for t in ODD_TEXTS if not any(c in t for c in form.control_tokens)]

    def _text(self) -> str:
        script = self.rng.choice(list(SCRIPTS)) if self.rng.random() < 0.5 else list(SCRIPTS)[self.number % 10]
        self.traits.add(script)
        words = [SCRIPTS[script]]
        if self.rng.random() < 0.6:
            words.insert(self.rng.randrange(2), self.rng.choice(self.odd))
            self.traits.add("odd")
        return self._padded(" ".join(words))

    def _padded(self, text: str) -> str:
        return self.rng.choice(BLANKS) + text + self.rng.choice(BLANKS)

    def content(self) -> str | list[dict[str, str]]:
        """A text, or one in parts, which Gemma 1's published template doesn't know."""
        if self.rng.random() < 0.7 or self.form.name == "gemma":
            return self._text()
        self.traits.add("parts")
        return [{"type": "text", "text": self._text()} for _ in range(self.rng.randint(1, 3))]

    def system(self) -> list[Message]:
        """No system text, one, or one in a list."""
        kind = ("no system", "system", "system in a list")[self.number % 3] if self.form.system else "no system"
        self.traits.add(kind)
        if kind == "no system":
            return []
        text = self._text()
        # The first two texts of Gemma 4 write the Python list
        is_text = kind == "system" or self.form.revision in (1, 2)
        return [{"role": "system", "content": text if is_text else [{"type": "text", "text": text}]}]

    def answer(self) -> Message:
        """The assistant's text, perhaps after thinking."""
        if self.rng.random() < 0.4:
            self.traits.add("short answer")
            return {"role": "assistant", "content": self._padded(self.rng.choice(SHORT_ANSWERS)), **self.thought()}
        return {"role": "assistant", "content": self.content(), **self.thought()}

    def thought(self) -> Message:
        """Thinking, sometimes, where the form has it."""
        if not self.form.thinking or self.rng.random() < 0.6:
            return {}
        self.traits.add("thinking")
        return {"reasoning_content": self._text().strip()}

    def calls(self, tools: list[dict[str, Any]], known: list[dict[str, Any]]) -> Message:
        """One to three calls, after a text, nothing or blanks."""
        n = self.rng.choice([1, 1, 2, 3])
        self.traits.add("one call" if n == 1 else "several calls")
        calls = [
            {
                "id": f"call_{k}",
                "type": "function",
                "function": {"name": self.rng.choice(tools)["function"]["name"], "arguments": a},
            }
            for k, a in enumerate(self.rng.sample([*known, *ARGUMENTS], n))
        ]
        said = self.rng.choice([None, "", "  \n ", [], [{"type": "text", "text": " "}], self.content()])
        self.traits.add("call after text" if said and str(said).strip() else "call alone")
        return {"role": "assistant", "content": said, "tool_calls": calls, **self.thought()}

    def results(self, n: int) -> list[Message]:
        """What `n` calls gave back, not always in their order."""
        self.traits.add("one result" if n == 1 else "several results")
        texts = [self.rng.choice(['{"temp": 21.5}', "", self._text()]) for _ in range(n)]
        found = [{"role": "tool", "tool_call_id": f"call_{k}", "content": t} for k, t in enumerate(texts)]
        return self.rng.sample(found, n) if self.form.calls == "native" else found

    def turn(self, tools: list[dict[str, Any]], known: list[dict[str, Any]], question: str) -> list[Message]:
        """A question, calls with their results as the case may be, and the answer."""
        messages: list[Message] = [{"role": "user", "content": question or self.content()}]
        while tools and self.rng.random() < 0.6:
            messages.append(self.calls(tools, known))
            messages.extend(self.results(len(messages[-1]["tool_calls"])))
        return [*messages, self.answer()]


def conversations(count: int = 200, seed: int = 0, form: ChatForm = FORMS["gemma3"]) -> list[Chat]:
    """The conversations, as a form can have them.

    Every second one has tools (one in four of them BFCL's, where it is at hand), and one in ten ends before its last
    answer.
    """
    chats = []
    for number in range(count):
        writer = _Writer(number, random.Random(f"{seed}-{number}"), form)
        functions = writer.rng.sample(TOOLS, writer.rng.randint(1, len(TOOLS))) if number % 2 and form.calls else []
        question, known = "", []
        if functions and form.calls == "native":
            functions = [made_tool(writer.rng), *functions[:3]]
        if functions and number % 8 == 1 and bfcl():
            question, function, arguments = writer.rng.choice(bfcl())
            functions, known = [function, *functions], [arguments]
            writer.traits.add("BFCL")
        tools = [{"type": "function", "function": f} for f in functions]
        if tools:
            writer.traits.add("one tool" if len(tools) == 1 else "several tools")
        turns = 1 + number // 2 % 4
        writer.traits.add("one turn" if turns == 1 else "several turns")
        messages = writer.system()
        for _ in range(turns):
            messages += writer.turn(tools, known, question)
            question = ""
        if number % 10 > 7 and len(messages) > 3:
            messages.pop()
            writer.traits.add(f"ends with {messages[-1]['role']}")
        chats.append(Chat(f"chat{number:03}", messages, tools or None, writer.traits))
    return chats
