"""The score of a reward model: from a run of `recipe=reward_model`, or any classifier with one label.

It can be gamed by whatever else the chosen answers of its pairs had in common, above all length: read the completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import cached_file

from gemma_tune.chat import ForeignTemplate, UnknownTemplate, Unrenderable, form_of, render_chat, render_prompt
from gemma_tune.config.reward import ModelReward
from gemma_tune.errors import UserError, first_line, shortened
from gemma_tune.models.classifier import HEAD, float32_head, scores
from gemma_tune.models.foreign import check_bounds, checked_tokenizer, read_config
from gemma_tune.models.hub import no_network, not_here, only_local
from gemma_tune.rewards.base import Completion, Reward, Task
from gemma_tune.run.paths import reward_model_of

_KEY = "reward.model.model_name_or_path"

# Rendered once before training, so that a template that can't be used is found there
_TALK = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
_Render = Callable[[Task, Completion], list[int]]


def prepare(options: ModelReward, device: torch.device) -> Reward:
    """Loads the reward model.

    A completion is scored as the last answer of its prompt in the reward model's own chat template, up to and including
    its stop token, even if it was cut off. No completion makes it fail: text that the template can't render is scored
    as plain tokens.

    Args:
        options: The model's name, and completions per forward pass.
        device: The device to load it on.

    Raises:
        UserError: It can't be loaded, or isn't a classifier with one label.
    """
    model, tokenizer = _load(options, device)
    render = _renderer(tokenizer)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 20
    pad = int(model.config.get_text_config().pad_token_id)

    def score(completions: Sequence[Completion], records: Sequence[Task]) -> list[float | None]:
        rows = [render(task, answer)[-limit:] for answer, task in zip(completions, records, strict=True)]
        return list(scores(model, rows, pad, options.batch_size))

    return score


def _load(options: ModelReward, device: torch.device) -> tuple[Any, Any]:
    name = options.model_name_or_path
    if not name:
        raise UserError(f"{_KEY} is not set: name a run folder of recipe=reward_model, or a checkpoint with one label.")
    place = reward_model_of(name)
    if (place / "result.json").is_file():
        raise UserError(f"{_KEY}={name}: this run has no export/reward_model; name a run of recipe=reward_model.")
    source, away = str(place) if place.is_dir() else name, only_local(str(place))
    try:
        folder = place if place.is_dir() else Path(str(cached_file(name, "config.json", local_files_only=away))).parent
        if place.is_dir():
            check_bounds(f"{_KEY}={name}", place)
        stored = read_config(folder)
        if stored["model_type"] not in CONFIG_MAPPING:
            raise ValueError(f"its model_type is {shortened(stored['model_type'])}, which Transformers doesn't know")
        config = AutoConfig.for_model(**stored)
        classes = config.architectures or []
        if config.num_labels != 1 or not any("SequenceClassification" in c for c in classes):
            raise UserError(
                f"{_KEY}={name}: this is {', '.join(classes) or 'a model'} with {config.num_labels} labels, no "
                "classifier with one; make one with recipe=reward_model, and name its run folder."
            )
        tokenizer = checked_tokenizer(
            AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=away)
        )
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source,
            config=config,
            dtype="auto",
            device_map={"": str(device)},
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=away,
        )
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # foreign files fail the libraries in any way
        if away and isinstance(error, OSError):
            raise not_here(f"{_KEY}={name}", str(no_network()), f"hf download {name}", f"{_KEY}=RUN") from error
        raise UserError(f"{_KEY}={name}: it can't be loaded ({first_line(error)}).") from error
    if lost := sorted(info["missing_keys"]):
        raise UserError(f"{_KEY}={name}: {len(lost)} weights are missing in its files, for example {lost[0]}.")
    text = model.config.get_text_config()
    if text.pad_token_id is None:  # without it, the class reads each score at the row's last padding token
        text.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if getattr(model, HEAD, None) is not None:  # bfloat16 scores have only three digits
        float32_head(model)
    return model.eval().requires_grad_(False), tokenizer


def _renderer(tokenizer: Any) -> _Render:
    """A function from a prompt and a completion to the token ids that are scored."""
    try:
        stop = tokenizer.convert_tokens_to_ids(form_of(tokenizer).stop_tokens[0])
    except UnknownTemplate:
        if not tokenizer.chat_template:
            raise UserError(
                f"{_KEY}: its tokenizer has no chat template, so a prompt can't be written for it."
            ) from None
        theirs = ForeignTemplate(str(tokenizer.chat_template))
        try:
            theirs.render({**_given(tokenizer), "messages": _TALK})
        except TemplateError as error:
            raise UserError(f"{_KEY}: its chat template can't be used ({error}).") from None
        return lambda task, answer: _by_template(tokenizer, theirs, task, answer)

    def ours(task: Task, answer: Completion) -> list[int]:
        prompt, tools = list(task.prompt), list(task.tools) or None
        try:
            row = render_chat(tokenizer, [*prompt, _message(answer)], tools)
            return row.input_ids[: row.answer_end]
        except (Unrenderable, TemplateError, ValueError, TypeError):  # TypeError: a lone surrogate
            whole = answer.encode(errors="replace").decode()
            text = tokenizer(whole, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            return [*render_prompt(tokenizer, prompt, tools), *text, stop]

    return ours


def _message(answer: Completion) -> dict[str, Any]:
    """The completion as an assistant message."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.thinking:
        message["reasoning_content"] = answer.thinking
    if answer.calls:
        functions = [{"name": name, "arguments": arguments} for name, arguments in answer.calls]
        message["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return message


def _given(tokenizer: Any) -> dict[str, Any]:
    return {"tools": None, "documents": None, "add_generation_prompt": False, **tokenizer.special_tokens_map}


def _by_template(tokenizer: Any, theirs: ForeignTemplate, task: Task, answer: Completion) -> list[int]:
    """Renders with the template of a reward model that isn't a Gemma."""
    messages = [*task.prompt, {"role": "assistant", "content": answer.text or str(answer)}]
    text = theirs.render({**_given(tokenizer), "messages": messages, "tools": list(task.tools) or None})
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
