"""FunctionGemma's chat against its documentation: written out in full, and by a small renderer of its own.

Sources, all of Google:
- https://ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices: tokens, the weather flow
- https://ai.google.dev/gemma/docs/functiongemma/full-function-calling-sequence-with-functiongemma: the whole flow as
  one text, results as `{"name", "response"}`
- https://ai.google.dev/gemma/docs/functiongemma/finetuning-with-functiongemma: a training row, which ends with calls
  and <start_function_response>
"""

from __future__ import annotations

from typing import Any

import pytest
from conversations import Message
from forms_at_hand import chats_of, engine_text, tokenizer_of, words_of
from jinja2 import TemplateError

from gemma_tune.chat import FORMS, render_chat, render_prompt
from gemma_tune.chat.render import prepared
from gemma_tune.data.messages import checked_messages

FORM = FORMS["functiongemma"]
ESSENTIAL = "You are a model that can do function calling with the following functions"


def function(name: str, description: str, parameters: Any = None) -> dict[str, Any]:
    schema = {"name": name, "description": description}
    return {"type": "function", "function": schema | ({"parameters": parameters} if parameters else {})}


WEATHER = function(
    "get_current_weather",
    "Gets the current weather in a given location.",
    {
        "type": "object",
        "properties": {
            "location": {
                "type": "string",
                "description": 'The city and state, e.g. "San Francisco, CA" or "Tokyo, JP"',
            },
            "unit": {
                "type": "string",
                "enum": ["celsius", "fahrenheit"],
                "description": "The unit to return the temperature in.",
            },
        },
        "required": ["location"],
    },
)
DEVELOPER: Message = {"role": "developer", "content": ESSENTIAL}
ASKED: Message = {"role": "user", "content": "Hey, what's the weather in Tokyo right now?"}
CALLED: Message = {
    "role": "assistant",
    "tool_calls": [
        {"type": "function", "function": {"name": "get_current_weather", "arguments": {"location": "Tokyo, Japan"}}}
    ],
}
RESULT: Message = {
    "role": "tool",
    "content": [{"name": "get_current_weather", "response": {"temperature": 15, "weather": "sunny"}}],
}
ANSWER: Message = {
    "role": "assistant",
    "content": "The current weather in Tokyo is sunny with a temperature of 15 degrees Celsius.",
}

DECLARED = (
    "<bos><start_of_turn>developer\nYou are a model that can do function calling with the following functions"
    "<start_function_declaration>declaration:get_current_weather{description:<escape>Gets the current weather in a "
    "given location.<escape>,parameters:{properties:{location:{description:<escape>The city and state, e.g. "
    '"San Francisco, CA" or "Tokyo, JP"<escape>,type:<escape>STRING<escape>},unit:{description:<escape>The unit to '
    "return the temperature in.<escape>,enum:[<escape>celsius<escape>,<escape>fahrenheit<escape>],type:<escape>STRING"
    "<escape>}},required:[<escape>location<escape>],type:<escape>OBJECT<escape>}}<end_function_declaration>"
    "<end_of_turn>\n<start_of_turn>user\nHey, what's the weather in Tokyo right now?<end_of_turn>\n"
)
FLOW = (
    "<start_of_turn>model\n<start_function_call>call:get_current_weather{location:<escape>Tokyo, Japan<escape>}"
    "<end_function_call><start_function_response>response:get_current_weather{temperature:15,weather:<escape>sunny"
    "<escape>}<end_function_response>The current weather in Tokyo is sunny with a temperature of 15 degrees Celsius."
    "<end_of_turn>\n"
)


def text(messages: list[Message], tools: Any = None, prompt: bool = False) -> str:
    """As rows are read, checked and rendered."""
    checked = checked_messages(messages, "row:1", answered=False)
    tokenizer = tokenizer_of("functiongemma")
    render = render_prompt if prompt else lambda *args: render_chat(*args).input_ids
    return str(tokenizer.decode(render(tokenizer, checked, tools)))


def test_the_whole_flow() -> None:
    """The page's text; each message adds its part, and the prompts are its beginnings."""
    flow = [DEVELOPER, ASKED, CALLED, RESULT, ANSWER]
    assert text(flow, [WEATHER]) == DECLARED + FLOW
    assert text(flow[:2], [WEATHER]) == DECLARED
    assert text(flow[:2], [WEATHER], prompt=True) == DECLARED + "<start_of_turn>model\n"
    upto_call, upto_result = (
        DECLARED + FLOW[: FLOW.index(end) + len(end)]
        for end in ("<start_function_response>", "<end_function_response>")
    )
    assert text(flow[:3], [WEATHER]) == upto_call
    assert text(flow[:4], [WEATHER]) == text(flow[:4], [WEATHER], prompt=True) == upto_result


def test_a_training_row() -> None:
    """Of the page on fine-tuning, with two functions; the row ends where the engine takes over."""
    query = {"type": "object", "properties": {"query": {"type": "string", "description": "query string"}}}
    query["required"] = ["query"]
    tools = [
        function("search_knowledge_base", "Search internal company documents, policies and project data.", query),
        function("search_google", "Search public information.", query),
    ]
    arguments = {"query": "travel meal reimbursement limit policy"}
    row = [
        DEVELOPER,
        {"role": "user", "content": "What is the reimbursement limit for travel meals?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "search_knowledge_base", "arguments": arguments}}],
        },
    ]
    parameters = (
        "parameters:{properties:{query:{description:<escape>query string<escape>,type:<escape>STRING<escape>}},"
        "required:[<escape>query<escape>],type:<escape>OBJECT<escape>}}<end_function_declaration>"
    )
    assert text(row, tools) == (
        "<bos><start_of_turn>developer\nYou are a model that can do function calling with the following functions"
        "<start_function_declaration>declaration:search_knowledge_base{description:<escape>Search internal company "
        f"documents, policies and project data.<escape>,{parameters}"
        "<start_function_declaration>declaration:search_google{description:<escape>Search public information.<escape>,"
        f"{parameters}<end_of_turn>\n"
        "<start_of_turn>user\nWhat is the reimbursement limit for travel meals?<end_of_turn>\n"
        "<start_of_turn>model\n<start_function_call>call:search_knowledge_base{query:<escape>travel meal reimbursement "
        "limit policy<escape>}<end_function_call><start_function_response>"
    )


USER: Message = {"role": "user", "content": "Hi"}
HI = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"


def calling(*calls: tuple[str, dict[str, Any]], content: Any = None) -> Message:
    made = [
        {"id": f"c{n}", "type": "function", "function": {"name": f, "arguments": a}} for n, (f, a) in enumerate(calls)
    ]
    return {"role": "assistant", "content": content, "tool_calls": made}


@pytest.mark.parametrize(
    ("messages", "right"),
    [
        ([USER, {"role": "assistant", "content": " Hello \n"}], HI + "Hello<end_of_turn>\n"),
        (
            [{"role": "system", "content": " Be brief. "}, USER],
            "<bos><start_of_turn>developer\nBe brief.<end_of_turn>\n<start_of_turn>user\nHi<end_of_turn>\n",
        ),
        # Parallel calls, as the page on formatting supports them
        (
            [USER, calling(("get_weather", {"city": "Tokyo"}), ("get_stock_price", {"ticker": "GOOG"}))],
            HI + "<start_function_call>call:get_weather{city:<escape>Tokyo<escape>}<end_function_call>"
            "<start_function_call>call:get_stock_price{ticker:<escape>GOOG<escape>}<end_function_call>"
            "<start_function_response>",
        ),
        # "All string values": within lists and objects, too; keys in alphabetical order, without marks
        (
            [USER, calling(("f", {"b": [1, 2.5, "x"], "a": {"z": True, "y": "ü"}, "C": False}))],
            HI + "<start_function_call>call:f{a:{y:<escape>ü<escape>,z:true},b:[1,2.5,<escape>x<escape>],C:false}"
            "<end_function_call><start_function_response>",
        ),
        ([USER, calling(("f", {}))], HI + "<start_function_call>call:f{}<end_function_call><start_function_response>"),
        (
            [USER, calling(("f", {}), content="Wait.")],
            HI + "Wait.<start_function_call>call:f{}<end_function_call><start_function_response>",
        ),
        # A result that is a text, as the OpenAI API has them, and several in the order in which they came
        (
            [
                USER,
                calling(("f", {}), ("g", {})),
                {"role": "tool", "tool_call_id": "c1", "content": "two"},
                {"role": "tool", "tool_call_id": "c0", "content": '{"a": 1}'},
                {"role": "assistant", "content": "Done."},
            ],
            HI + "<start_function_call>call:f{}<end_function_call><start_function_call>call:g{}<end_function_call>"
            "<start_function_response>response:g{value:<escape>two<escape>}<end_function_response>"
            '<start_function_response>response:f{value:<escape>{"a": 1}<escape>}<end_function_response>Done.'
            "<end_of_turn>\n",
        ),
        (
            [USER, calling(("f", {})), {"role": "tool", "content": {"name": "f", "response": {"ok": True, "n": [1]}}}],
            HI + "<start_function_call>call:f{}<end_function_call>"
            "<start_function_response>response:f{n:[1],ok:true}<end_function_response>",
        ),
        # One call after another in one turn of the model's
        (
            [
                USER,
                calling(("f", {})),
                {"role": "tool", "content": "1"},
                calling(("g", {"x": 1})),
                {"role": "tool", "content": "2"},
                {"role": "assistant", "content": "Done."},
                {"role": "user", "content": "Thanks"},
            ],
            HI + "<start_function_call>call:f{}<end_function_call>"
            "<start_function_response>response:f{value:<escape>1<escape>}<end_function_response>"
            "<start_function_call>call:g{x:1}<end_function_call>"
            "<start_function_response>response:g{value:<escape>2<escape>}<end_function_response>Done.<end_of_turn>\n"
            "<start_of_turn>user\nThanks<end_of_turn>\n",
        ),
    ],
)
def test_written_out(messages: list[Message], right: str) -> None:
    assert text(messages) == right


def test_a_function_without_parameters_and_one_with_everything() -> None:
    everything = {
        "type": "object",
        "properties": {
            "when": {
                "type": "object",
                "description": "W",
                "properties": {"day": {"type": "string"}},
                "required": ["day"],
            },
            "tags": {"type": "array", "description": "T", "items": {"type": "string"}},
            "n": {"type": "integer", "description": "N"},
        },
    }
    developer = text([DEVELOPER, USER], [function("now", "Time"), function("f", "F", everything)])
    assert developer.startswith(
        f"<bos><start_of_turn>developer\n{ESSENTIAL}"
        "<start_function_declaration>declaration:now{description:<escape>Time<escape>}<end_function_declaration>"
        "<start_function_declaration>declaration:f{description:<escape>F<escape>,parameters:{properties:{"
        "n:{description:<escape>N<escape>,type:<escape>INTEGER<escape>},"
        "tags:{description:<escape>T<escape>,items:{type:<escape>STRING<escape>},type:<escape>ARRAY<escape>},"
        "when:{description:<escape>W<escape>,properties:{day:{description:<escape><escape>,type:<escape>STRING<escape>}},"
        "required:[<escape>day<escape>],type:<escape>OBJECT<escape>}},type:<escape>OBJECT<escape>}}"
        "<end_function_declaration><end_of_turn>\n"
    )


# A renderer that shares nothing with the template


def value(v: Any) -> str:
    if isinstance(v, str):
        return f"<escape>{v}<escape>"
    if isinstance(v, bool):
        return str(v).lower()
    if isinstance(v, dict):
        return "{" + pairs(v) + "}"
    return "[" + ",".join(map(value, v)) + "]" if isinstance(v, list) else str(v)


def pairs(v: dict[str, Any]) -> str:
    return ",".join(f"{k}:{value(v[k])}" for k in sorted(v, key=str.lower))


def turns(messages: list[Message], prompt: bool) -> str:
    written, open_turn = "", False
    for i, message in enumerate(messages):
        role = {"assistant": "model", "system": "developer"}.get(message["role"], message["role"])
        if role == "tool":
            written += f"<start_function_response>response:{message['name']}{{value:{value(message['content'])}}}"
            written, open_turn = written + "<end_function_response>", True
            continue
        written += "" if open_turn else f"<start_of_turn>{role}\n"
        written, open_turn = written + words_of(message, FORM), False
        if role == "developer":
            written += "TOOLS"
        for call in (c["function"] for c in message.get("tool_calls", [])):
            written += f"<start_function_call>call:{call['name']}{{{pairs(call['arguments'])}}}<end_function_call>"
            open_turn = True
        if not open_turn:
            written += "<end_of_turn>\n"
        elif i + 1 == len(messages):
            written += "<start_function_response>"
    return written + ("<start_of_turn>model\n" if prompt and not open_turn else "")


@pytest.mark.parametrize("prompt", [False, True])
def test_conversations(prompt: bool) -> None:
    """Two hundred, in everything but the declarations, which are cut out; those are written out above."""
    for chat in chats_of("functiongemma"):
        messages = prepared(FORM, chat.messages, chat.tools)
        ours = engine_text("functiongemma", messages, chat.tools, prompt)
        begin, found, rest = ours.partition("<start_function_declaration>")
        assert bool(found) == bool(chat.tools)
        if found:
            ours = (
                begin + "TOOLS" + rest[rest.rindex("<end_function_declaration>") + len("<end_function_declaration>") :]
            )
        if chat.tools and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": ""}, *messages]
        right = "<bos>" + turns(messages, prompt)
        assert ours == (right if chat.tools else right.replace("TOOLS", "")), chat.name


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([USER, {"role": "tool", "name": "f", "content": "x"}], "must follow its call"),
        ([USER, calling(("f", {})), {"role": "tool", "content": "x"}, USER], "before anyone else speaks"),
        ([USER, calling(("f", {})), *[{"role": "tool", "content": "x"}] * 2], "say which it answers"),
    ],
)
def test_what_is_refused(messages: list[Message], says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        render_chat(tokenizer_of("functiongemma"), messages)
