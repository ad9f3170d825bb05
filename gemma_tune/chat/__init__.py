"""Chat templates, and the one function from a conversation to token ids and loss mask."""

from gemma_tune.chat.render import Rendered, render_chat, render_prompt, render_text
from gemma_tune.chat.template import STOP_TOKEN, served_template, training_template

__all__ = [
    "STOP_TOKEN", "Rendered", "render_chat", "render_prompt", "render_text", "served_template", "training_template",
]  # fmt: skip
