"""A chat template with TranslateGemma's documented interface; its words are ours, for three languages.

Of the published one no copy is at hand. Its model card says: roles user and assistant alone; a user's content is a list
of one entry with `type` (text or image), `source_lang_code`, `target_lang_code`, and `text` for a text.
"""

from __future__ import annotations

TEMPLATE = r"""{%- set names = {"de": "German", "de-AT": "German", "en": "English", "fr": "French"} -%}
{{ bos_token }}
{%- for m in messages -%}
    {%- if (m.role == 'user') != (loop.index0 is divisibleby 2) or m.role not in ('user', 'assistant') -%}
        {{ raise_exception("Roles are user and assistant, in turn.") }}
    {%- endif -%}
    {%- if m.role == 'assistant' -%}
        {{ '<start_of_turn>model\n' + (m.content | trim) }}
    {%- else -%}
        {%- if m.content is string or m.content | length != 1 -%}
            {{ raise_exception("A user's content is a list of one entry.") }}
        {%- endif -%}
        {%- set part = m.content[0] -%}
        {%- set source = part.source_lang_code | replace("_", "-") -%}
        {%- set target = part.target_lang_code | replace("_", "-") -%}
        {%- if source not in names or target not in names -%}
            {{ raise_exception("Unknown language: " + source + " or " + target) }}
        {%- endif -%}
        {{ '<start_of_turn>user\nFrom ' + names[source] + ' (' + source + ') into ' + names[target] + ':\n\n\n' }}
        {{- '<start_of_image>' if part.type == 'image' else part.text | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""
