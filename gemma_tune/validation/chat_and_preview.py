"""Checks of the recipes that train no checkpoint (chat, preview), and of their keys in other recipes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from gemma_tune.config import ChatConfig, Config, TrainConfig
from gemma_tune.config.methods import METHODS
from gemma_tune.config.preview import PAGE_MARK
from gemma_tune.run.paths import ALL_TYPES, file_type, resolve
from gemma_tune.validation.paths import missing_paths

# Groups that one recipe alone uses, with their defaults
_GROUPS = {method.group: getattr(Config(), method.group) for method in METHODS.values() if method.group}


def no_other(cfg: Config) -> Iterator[str]:
    """Keys that are set in a group that only another recipe uses."""
    for group, defaults in _GROUPS.items():
        for key, default in vars(defaults).items() if group != cfg.traits.group else ():
            if getattr(getattr(cfg, group), key) != default:
                yield f"{group}.{key} has no effect with recipe={cfg.recipe}; use recipe={group}, or leave it out."


def chat_problems(cfg: Config) -> Iterator[str]:
    """What `recipe=chat` can't do."""
    c = cfg.chat
    if c.prompt is not None and c.prompts_file is not None:
        yield "chat.prompt and chat.prompts_file are both set; choose one."
    if c.prompt is not None and not c.prompt.strip():
        yield "chat.prompt is empty; write a prompt, or leave it out to talk in the terminal."
    yield from missing_paths(cfg, "chat")
    file = resolve(c.prompts_file or "")
    if file.is_file() and not file_type(file):
        yield f"chat.prompts_file={c.prompts_file}: name it {ALL_TYPES}; a .txt file has a prompt a line."
    if c.temperature == 0:
        for key in ("top_k", "top_p"):
            if getattr(c, key) != getattr(ChatConfig(), key):
                yield f"chat.{key} has no effect with chat.temperature=0; add chat=sampled, or leave it out."
    if cfg.output_dir is not None:
        yield "output_dir has no effect with recipe=chat, which keeps no run folder; answers go to chat.output_file."
    if c.output_file is not None:
        yield from _output_file(c.output_file, c, cfg.overwrite)


def _output_file(name: str, chat: ChatConfig, overwrite: bool) -> Iterator[str]:
    if chat.prompts_file is None:
        yield f"chat.output_file={name} takes the answers to chat.prompts_file, which is not set; set it, too."
    yield from problems_of_output(
        "chat.output_file", name, [p for p in (chat.prompts_file, chat.tools_file) if p], overwrite
    )


def problems_of_output(key: str, name: str, read: Iterable[str], replace: bool) -> Iterator[str]:
    """Problems of a file to be written: it may not be one that is `read`, and may exist only with `replace`."""
    file, sources = resolve(name), [resolve(p) for p in read]
    if file.is_dir():
        yield f"{key}={name}: this is a folder; name a file."
    elif not file.parent.is_dir():
        yield f"{key}={name}: there is no folder {file.parent}; make it first."
    elif not os.access(file if file.exists() else file.parent, os.W_OK):
        yield f"{key}={name}: this can't be written; name another file."
    elif file.exists() and any(p.exists() and p.samefile(file) for p in sources):
        yield f"{key}={name} is a file that this run reads; name another one."
    elif file.exists() and not replace:
        yield f"{key}={name}: this file is there already; name another one, or replace it: overwrite=true."


# Keys of `train` that recipe=preview uses: the length of rows, and how they are batched.
_PREVIEWS_WITH = ("max_length", "per_device_train_batch_size", "packing", "train_sampling_strategy")


def preview_problems(cfg: Config) -> Iterator[str]:
    """What `recipe=preview` can't do."""
    if cfg.adapter.peft_type != "none":
        yield "adapter has no effect with recipe=preview, which trains nothing; leave it out."
    used = (*_PREVIEWS_WITH, "max_steps") if cfg.data.streaming else _PREVIEWS_WITH  # streams must have it
    for key, default in vars(TrainConfig()).items():
        if key not in used and getattr(cfg.train, key) != default:
            yield f"train.{key} has no effect with recipe=preview; leave it out."
    if cfg.model.load_in_4bit:
        yield "model.load_in_4bit has no effect with recipe=preview, which loads no weights; leave it out."
    if cfg.output_dir is not None:
        yield "output_dir has no effect with recipe=preview, which keeps no run folder; name preview.output_file."
    if (name := cfg.preview.output_file) is not None:
        if resolve(name).suffix.lower() not in (".html", ".htm"):
            yield f"preview.output_file={name}: the page is an HTML file; name it .html."
        yield from problems_of_output(
            "preview.output_file", name, cfg.data.named().values(), cfg.overwrite or _is_page(name)
        )


def _is_page(name: str) -> bool:
    """Whether a file is a page that an earlier preview has written."""
    try:
        with resolve(name).open(encoding="utf-8") as file:
            return PAGE_MARK in file.read(1000)
    except (OSError, UnicodeDecodeError):
        return False
