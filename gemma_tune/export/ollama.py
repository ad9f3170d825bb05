"""Ollama's `Modelfile` beside a GGUF file.

Ollama doesn't run the Jinja template that the file has: it takes a Go template of its own where that one is within 100
edits of one it knows, and else sends the bare text. So the Modelfile says how a conversation is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gemma_tune.chat import FORMS, form_of
from gemma_tune.chat.own import OwnForm
from gemma_tune.export.go_template import go_template

# `gemma.jinja` and `gemma3.jinja` in Go. It differs in three places: JSON of tools and calls has no space behind commas
# and colons, texts are not trimmed, and an answer at the end is gone on with. `<bos>` is put before it by Ollama. The
# text of a call stands in it as such, for Ollama looks for it to tell calls from answers.
_TURNS = r"""{{- $intro := "" }}{{ $open := false }}{{ $last := "" }}
{{- if .System }}{{ $intro = printf "%s\n\n" .System }}{{ end }}
{{- if .Tools }}{{ $intro = printf TOOLS $intro (json .Tools) }}{{ end }}
{{- range $i, $message := .Messages }}
{{- if ne .Role "system" }}
{{- $last = .Role }}
{{- if and $open (ne .Role "tool") }}{{ "<end_of_turn>\n" }}{{ $open = false }}{{ end }}
{{- if eq .Role "assistant" }}{{ "<start_of_turn>model\n" }}{{ .Content }}
{{- if .ToolCalls }}
{{- if .Content }}{{ "\n" }}{{ end }}
{{- if gt (len .ToolCalls) 1 }}{{ "[" }}{{ end }}
{{- range $j, $call := .ToolCalls }}{{ if $j }}{{ ", " }}{{ end -}}
{"name": {{ json .Function.Name }}, "parameters": {{ json .Function.Arguments }}}
{{- end }}
{{- if gt (len .ToolCalls) 1 }}{{ "]" }}{{ end }}
{{- end }}
{{- if gt (len (slice $.Messages $i)) 1 }}{{ "<end_of_turn>\n" }}{{ end }}
{{- else }}
{{- if $open }}{{ "\n" }}{{ else }}{{ "<start_of_turn>user\n" }}{{ $intro }}{{ $intro = "" }}{{ end }}
{{- if eq .Role "tool" }}{{ "<tool_response>\n" }}{{ .Content }}{{ "\n</tool_response>" }}{{ $open = true }}
{{- else }}{{ .Content }}{{ "<end_of_turn>\n" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if $open }}{{ "<end_of_turn>\n" }}{{ end }}
{{- if ne $last "assistant" }}{{ "<start_of_turn>model\n" }}{{ end }}"""

_TOOLS = (
    "%sYou have access to functions. If you decide to invoke any of the function(s), you MUST put it in the format of\n"
    '{"name": function name, "parameters": dictionary of argument name and its value}\n'
    "You SHOULD NOT include any other text in the response if you call a function\n%s\n\n"
)

# Tokens of a conversation at most, whose keys and values Ollama reserves memory for: of Gemma 4 31B, which can hold
# 262,144, these are 3 GiB here and 21 GiB there.
_MOST_CONTEXT = 32_768

# Ollama's own code for writing conversations and reading answers (model/renderers, model/parsers), by the file of our
# template. No Go template could write Gemma 4's calls. Results of tools are texts there, never mappings. Of its two
# renderers for Gemma 4, that of 12B and larger closes the thinking of a prompt that doesn't ask for it
# (https://github.com/ollama/ollama/pull/15612).
_BUILT_IN = {"functiongemma": "functiongemma", "gemma4": "gemma4"}
_OLDER = "Ollama writes tools, calls and thinking as Google's newest template does; this model was trained with {}."


def modelfile(gguf: str, tokenizer: Any, generation_config: Any, context: int, mmproj: str | None = None) -> str:
    """The text of a Modelfile; `ollama create NAME -f Modelfile` makes a model of it.

    Args:
        gguf: The GGUF file's name; it stands in the same folder.
        tokenizer: The tokenizer, with the chat template that the model is served with, or none.
        generation_config: Stop tokens, and how answers are sampled.
        context: Tokens of a conversation that the model can hold.
        mmproj: The name of the file of its towers, which stands in the same folder; None: it has none.

    Raises:
        Unrenderable: Ollama has no way to write a template of the user's own.
        UnknownTemplate: The template is no form that we know.
    """
    stops = generation_config.eos_token_id
    files = [f"FROM ./{name}" for name in (gguf, mmproj) if name]
    lines = [*files, *_template(tokenizer), f"PARAMETER num_ctx {min(context, _MOST_CONTEXT)}"]
    for stop in tokenizer.convert_ids_to_tokens(stops if isinstance(stops, Sequence) else [stops]):
        lines.append(f"PARAMETER stop {json.dumps(stop)}")
    sampling = (
        {"temperature": generation_config.temperature or 1.0} if generation_config.do_sample else {"temperature": 0}
    )
    if generation_config.do_sample:
        sampling |= {"top_k": generation_config.top_k, "top_p": generation_config.top_p}
    # Ollama's own defaults reward new words, and cut other tails than Gemma's do
    sampling |= {"min_p": 0, "repeat_penalty": 1}
    lines += [f"PARAMETER {key} {value}" for key, value in sampling.items() if value is not None]
    return "\n".join(lines) + "\n"


def _template(tokenizer: Any) -> list[str]:
    if not tokenizer.chat_template:
        return ["TEMPLATE {{ .Prompt }}"]
    form = form_of(tokenizer)
    if isinstance(form, OwnForm):
        return [f'TEMPLATE """{go_template(form)}"""']
    if form.file not in _BUILT_IN:
        return [f'TEMPLATE """{_TURNS.replace("TOOLS", json.dumps(_TOOLS))}"""']
    renderer = _BUILT_IN[form.file]
    if form.file == "gemma4":
        renderer += "-large" if form.closes_thinking else "-small"
    newest = FORMS[form.file].revision
    older = [f"# {_OLDER.format(form.name)}"] if form.revision != newest else []
    return [*older, "TEMPLATE {{ .Prompt }}", f"RENDERER {renderer}", f"PARSER {_BUILT_IN[form.file]}"]
