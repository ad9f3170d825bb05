"""The field names whose meaning is known, of rows and of messages: one table for every format.

What a name means is what the data sets and tools mean that use it: OpenAI, ShareGPT, TRL, Axolotl, LLaMA-Factory,
ms-swift, Gemini. A field that stands in no list here and that a format doesn't read is listed as not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# Names of a conversation's field, in the order in which they are looked for where `data.messages_column` isn't set.
CONVERSATIONS = (
    "messages",
    "conversations",
    "conversation",
    "contents",
    "dialog",
    "dialogue",
    "turns",
    "chat",
    "texts",
)
SYSTEM = ("system", "system_prompt", "system_message", "systemInstruction", "system_instruction")
TOOLS = ("tools", "functions")
HISTORY = "history"
# Of a message; or of a row, for its last answer
THINKING = ("reasoning_content", "reasoning", "thinking")
_NO_THINKING = frozenset({"on", "off", "true", "false", "yes", "no", "0", "1", "none", "low", "medium", "high", "auto"})

# The role of a message, by the names that tools use; `call` is the text of a call.
CALL = "call"
ROLES = MappingProxyType({
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "bot": "assistant", "chatbot": "assistant", "ai": "assistant",
    "system": "system", "developer": "system",
    "function_call": CALL, "tool_call": CALL,
    "tool": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool", "function": "tool",
    "ipython": "tool",
})  # fmt: skip

# The names of a message's role: OpenAI's, ShareGPT's, Vertex AI's, transcripts'
ROLE_NAMES = ("role", "from", "author", "speaker")

# Whether an answer is trained: 1 and true say yes, 0 and false no.
SWITCHES = ("weight", "loss", "train", "trainable", "training", "train_on_turn")
# The same of a row, for all its answers or as a list of one for each; `mask` and its like are refused.
ROW_SWITCHES = (*SWITCHES, "loss_mask")

# Whether a row's answer is a good one, for KTO: TRL's name, LLaMA-Factory's, and the one of records here
LABELS = ("label", "kto_tag", "desirable")

# Fields of media, of a row or of a message, by their kind
MEDIA = MappingProxyType({
    "images": "image", "image": "image", "image_urls": "image", "image_url": "image",
    "audios": "audio", "audio": "audio", "videos": "video", "video": "video",
})  # fmt: skip
_UNREAD = (*MEDIA, "pixel_values")  # where none is read: running text, chat logs, fields beside the rows
_MASKS = (
    "mask", "masked", "masks", "loss_mask", "train_mask", "loss_weight", "loss_scale", "weights", "train_detail",
    "training_detail", "assistant_masks", "assistant_mask", "labels", "completion_mask",
)  # fmt: skip

_SAMPLE_WEIGHTS = ("sample_weight", "sample_weights", "example_weight")
# Of a row, what says only how it is trained: no matter where nothing is
TRAINING = frozenset({*LABELS, *ROW_SWITCHES, *_MASKS, *_SAMPLE_WEIGHTS})


def _media(value: Any) -> str | None:
    return "holds what isn't read here: images, sound and video stand in the user's messages of conversations." + IGNORE


def _switch(value: Any) -> str | None:
    """A switch that no reader has honoured: only where it switches nothing off may it be left out."""
    try:
        off = [switch_of(v) == 0 for v in (value if isinstance(value, list) else [value])]
    except (ValueError, TypeError):
        off = [True]
    return (
        "says that answers aren't to be trained, which this format can't do: leave such rows out." + IGNORE
        if any(off)
        else None
    )


def _mask(value: Any) -> str | None:
    return (
        "switches training on or off, and tools differ in what its values mean: write `weight: 0` into each answer "
        "that isn't to be trained." + IGNORE
    )


def _sample_weight(value: Any) -> str | None:
    """A weight of the whole row: 1 says nothing, and no other can be honoured."""
    return (
        None
        if value in (1, "1", "1.0")
        else "weighs the row, and every answer counts alike here; `weight: 0` in an answer leaves it out." + IGNORE
    )


IGNORE = " data.ignore_fields reads the rows without it."


def _label(value: Any) -> str | None:
    """KTO's label; the name of a class is no switch."""
    try:
        bad = switch_of(value) == 0
    except (ValueError, TypeError):
        bad = False
    if bad:
        return (
            "says that this answer is a bad one, which must not be trained as a good one: recipe=kto "
            "data=unpaired_preference learns from both; data.on_bad_row=skip leaves such rows out." + IGNORE
        )
    return None


_ROW: Mapping[str, Any] = MappingProxyType(
    {
        **dict.fromkeys(_UNREAD, _media),
        **dict.fromkeys(_MASKS, _mask),
        **dict.fromkeys(_SAMPLE_WEIGHTS, _sample_weight),
        **dict.fromkeys(SWITCHES, _switch),
        **dict.fromkeys(LABELS, _label),
    }
)
_TEXT: Mapping[str, Any] = MappingProxyType(
    {**dict.fromkeys(_UNREAD, _media), **dict.fromkeys((*SWITCHES, "loss_mask"), _switch)}
)


def refusal_of(name: str, value: Any, conversation: bool = True) -> str | None:
    """Why a field that nobody reads can't be left out, or None.

    Args:
        name: A row's field, or a message's with the field of the conversation before it: `messages.images`.
        value: Its value.
        conversation: Whether the row is a conversation; a label of running text is a class.
    """
    judge = (_ROW if conversation else _TEXT).get(name.rpartition(".")[2])
    return judge(value) if judge else None


def is_thinking(value: Any) -> bool:
    """Whether the value under a name of `THINKING` may be thinking: a number or a mode (`reasoning: "on"`) is none."""
    mode = isinstance(value, str) and value.strip().lower() in _NO_THINKING
    return not mode and not isinstance(value, int | float)


def switch_of(value: Any) -> int | None:
    """What a switch says: 1 train, 0 don't; None where it says neither.

    Raises:
        ValueError: It is another value.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    said = value.strip().lower() if isinstance(value, str) else value
    if said in ("", "nan", "none", "null"):
        return None
    if said in (True, 1, "true", "1", "1.0", "yes"):
        return 1
    if said in (False, 0, "false", "0", "0.0", "no"):
        return 0
    raise ValueError(value)
