"""llama.cpp's server in a process of its own, because it aborts its whole process on a file that it can't read.

Started by `child_server` with `child.py`. Its first line of input is JSON with `file`, `context` (tokens a slot),
`slots`, `threads`, `exact`, `adapter` (a GGUF LoRA file, or null), `template` (a chat template, or null), `mmproj` (the
file of the towers, or null), `image_tokens` (the fewest and the most of an image, or null), and of `Listening` `host`,
`port`, `key` and `name`; it answers with one line of JSON, `{"address": …}`, and ends when its input ends, so it never
outlives the process that started it. All other output goes to stderr.
"""

from __future__ import annotations

import json
import sys

from gemma_tune.engines.child_input import end_with_input, options_and_answer


def main() -> None:
    """Loads the file and serves it until the input ends."""
    options, answer = options_and_answer()
    import xllamacpp as llama  # type: ignore[import-untyped]

    asked = llama.CommonParams()
    asked.model.path = options["file"]
    if options["adapter"]:
        adapter = llama.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = options["adapter"], 1.0
        asked.lora_adapters = [adapter]
    if options["mmproj"]:
        asked.mmproj.path = options["mmproj"]
        asked.mmproj_use_gpu = not options["exact"]
        if options["image_tokens"]:
            asked.image_min_tokens, asked.image_max_tokens = options["image_tokens"]
        # A medium is computed at once, or its tokens would not see each other
        asked.n_ubatch = asked.n_batch = max(asked.n_batch, options["context"])
    if options["template"]:
        asked.chat_template = options["template"]
    asked.n_parallel, asked.n_ctx = options["slots"], options["slots"] * options["context"]
    asked.enable_reasoning = 0  # else llama.cpp asks a Gemma 4 to think that no request has asked
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = options["threads"]
    asked.hostnames, asked.port, asked.model_alias = [options["host"]], options["port"], {options["name"]}
    asked.api_keys = [options["key"]] if options["key"] else []
    asked.ui = asked.endpoint_slots = asked.warmup = asked.fit_params = False
    asked.verbosity = 2  # warnings
    # Whole caches can be cut back to any prefix. Prompts kept in RAM beside them came back with other keys and values:
    # 6 of 90 greedy answers of the embedded model were wrong.
    asked.swa_full, asked.cache_ram_mib, asked.n_ctx_checkpoints = True, 0, 0
    if options["exact"]:
        asked.cache_type_k = asked.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        asked.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16
        asked.n_gpu_layers = 0
    try:
        server = llama.Server(asked)
    except RuntimeError:  # what is wrong stands in llama.cpp's log
        sys.exit(1)
    print(json.dumps({"address": server.listening_address}), file=answer, flush=True)
    end_with_input()  # llama.cpp's own end would wait for its threads


if __name__ == "__main__":
    main()
