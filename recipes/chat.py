"""Talking to a model: `chat`. It answers one prompt, a file of prompts, or a person at the terminal."""

from __future__ import annotations

from accelerate.utils import set_seed

from gemma_tune.chat_cli.batches import answer_file
from gemma_tune.chat_cli.conversation import Conversation
from gemma_tune.chat_cli.responder import ids_within, note
from gemma_tune.chat_cli.weights import check_media, check_talk, opened, positions_of
from gemma_tune.config import Config
from gemma_tune.data.prompts import opening, prompt_remarks, read_chat_prompts, read_tools
from gemma_tune.media.kinds import WORDS
from gemma_tune.models.hardware import check_model_hardware
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import find_source
from gemma_tune.run.only_printed import as_yaml
from gemma_tune.run.result import RunResult


def run(cfg: Config) -> RunResult:
    """Answers. There is no run folder; `metrics["answers"]` of the result holds every answer."""
    chat = cfg.chat
    check_model_hardware(cfg.model)

    # What is asked, as token ids; nothing of it waits for the weights
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source, cfg.model.chat_template)
    check_talk(chat, tokenizer)
    limit = positions_of(cfg, source)
    records = read_chat_prompts(chat)
    check_media(source, tokenizer, records)
    prompts = [ids_within(tokenizer, r.messages or [], r.tools, limit, r.where) for r in records]
    for line in prompt_remarks(chat, records):
        note(line)
    if cfg.dry_run:
        print(as_yaml(cfg))
        tokens = [len(p) for p in prompts]
        print(f"Prompts: {len(tokens)}, tokens: {sum(tokens):,}. No weight was loaded: dry_run=true.")
        return RunResult(cfg.recipe, status="dry_run", metrics={"prompts": len(tokens), "tokens": sum(tokens)})

    # The weights (the base, 4-bit where asked for, with its adapter; or a GGUF file), and one of the three ways
    set_seed(cfg.seed)
    with opened(cfg, source, tokenizer, prompts, limit) as responder:
        if chat.prompts_file is not None:
            answers = answer_file(responder, records, prompts)
        elif chat.prompt is not None:
            asked = records[0].messages or []
            answers = [responder.answer(asked, records[0].tools, "chat.prompt").row(asked)]
        else:
            attached = "".join(
                f"/{kind} FILE puts {WORDS[kind]} before your next message, " for kind in responder.kinds[:1]
            )
            note(f"{attached}/new begins another conversation, /quit ends, /help shows more.")
            answers = Conversation(responder, opening(chat), read_tools(chat)).run()
    return RunResult(cfg.recipe, status="finished", metrics={"answers": answers})
