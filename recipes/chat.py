"""Talking to a model: `chat`. It answers one prompt, a file of prompts, or a person at the terminal."""

from __future__ import annotations

from transformers import set_seed

from gemma_tune.chat_cli.batches import answer_file
from gemma_tune.chat_cli.conversation import Conversation
from gemma_tune.chat_cli.responder import Responder, ids_within, note
from gemma_tune.config import Config
from gemma_tune.data.prompts import opening, prompt_remarks, read_chat_prompts, read_tools
from gemma_tune.media.kinds import WORDS
from gemma_tune.models.adapter import check_source
from gemma_tune.models.hardware import check_model_hardware
from gemma_tune.models.load import check_vocabulary, load_config, load_model, load_tokenizer
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
    config = load_config(source)
    check_source(cfg.model, cfg.adapter, source, config, trains=False)
    limit = config.get_text_config().max_position_embeddings
    records = read_chat_prompts(chat)
    prompts = [ids_within(tokenizer, r.messages or [], r.tools, limit, r.where) for r in records]
    for line in prompt_remarks(chat, records):
        note(line)
    if cfg.dry_run:
        print(as_yaml(cfg))
        tokens = [len(p) for p in prompts]
        print(f"Prompts: {len(tokens)}, tokens: {sum(tokens):,}. No weight was loaded: dry_run=true.")
        return RunResult(cfg.recipe, status="dry_run", metrics={"prompts": len(tokens), "tokens": sum(tokens)})

    # The base, 4-bit where asked for, with its adapter where there is one
    set_seed(cfg.seed)
    on_it = f", with the adapter {source.adapter}" if source.adapter else ""
    note(f"Loading {source.base}{on_it} …")
    model = load_model(cfg.model, source, tokenizer, packed=True)
    if prompts:
        check_vocabulary(model, [max(p) for p in prompts])

    # One of the three ways
    if chat.prompts_file is not None:
        answers = answer_file(model, tokenizer, records, prompts, chat, limit)
    elif chat.prompt is not None:
        asked = records[0].messages or []
        answers = [Responder(model, tokenizer, chat, limit).answer(asked, records[0].tools, "chat.prompt").row(asked)]
    else:
        responder = Responder(model, tokenizer, chat, limit)
        attached = "".join(
            f"/{kind} FILE puts {WORDS[kind]} before your next message, " for kind in responder.kinds[:1]
        )
        note(f"{attached}/new begins another conversation, /quit ends, /help shows more.")
        answers = Conversation(responder, opening(chat), read_tools(chat)).run()
    return RunResult(cfg.recipe, status="finished", metrics={"answers": answers})
