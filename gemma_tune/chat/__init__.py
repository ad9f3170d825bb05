"""Chat templates, and the one function from a conversation to token ids and loss mask."""

from gemma_tune.chat.examine import own_form, syntax_problems
from gemma_tune.chat.foreign import ForeignTemplate
from gemma_tune.chat.forms import FORMS, STOP_TOKEN, ChatForm, UnknownTemplate, Unrenderable
from gemma_tune.chat.media import media_in
from gemma_tune.chat.own import is_saved, saved, without_marks
from gemma_tune.chat.recognise import form_of, recognise_template
from gemma_tune.chat.render import Rendered, answers_apart, prompt_row, render_chat, render_prompt, render_text
from gemma_tune.chat.response import response_template, vllm_tool_parser
from gemma_tune.chat.template import served_template, training_template
from gemma_tune.chat.translation import translates
from gemma_tune.chat.vocabulary import vocabulary_in, vocabulary_of

__all__ = [
    "FORMS", "STOP_TOKEN", "ChatForm", "ForeignTemplate", "Rendered", "UnknownTemplate", "Unrenderable",
    "answers_apart", "form_of", "is_saved", "media_in", "own_form", "prompt_row", "recognise_template", "render_chat",
    "render_prompt", "render_text", "response_template", "saved", "served_template", "syntax_problems",
    "training_template", "translates", "vllm_tool_parser", "vocabulary_in", "vocabulary_of", "without_marks",
]  # fmt: skip
