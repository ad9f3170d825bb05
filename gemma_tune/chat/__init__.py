"""Chat templates, and the one function from a conversation to token ids and loss mask."""

from gemma_tune.chat.foreign import ForeignTemplate
from gemma_tune.chat.forms import FORMS, STOP_TOKEN, ChatForm, UnknownTemplate, Unrenderable
from gemma_tune.chat.recognise import form_of, recognise_template
from gemma_tune.chat.render import Rendered, answers_apart, render_chat, render_prompt, render_text
from gemma_tune.chat.template import served_template, training_template

__all__ = [
    "FORMS", "STOP_TOKEN", "ChatForm", "ForeignTemplate", "Rendered", "UnknownTemplate", "Unrenderable",
    "answers_apart", "form_of", "recognise_template", "render_chat", "render_prompt", "render_text", "served_template",
    "training_template",
]  # fmt: skip
