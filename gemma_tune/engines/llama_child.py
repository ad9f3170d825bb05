"""llama.cpp's server in a process of its own, because it aborts its whole process on a file that it can't read.

Started by `llama_server` with `child.py`. Its first line of input is JSON with `file`,
`context` (tokens a slot), `slots`, `threads`, `exact`, `adapter` (a GGUF LoRA file, or null) and `key`; it answers with
one line of JSON, `{"address": …}`, and ends when its input ends, so it never outlives the process that started it. All
other output goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Loads the file and serves it until the input ends."""
    options = json.loads(sys.stdin.readline())
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import xllamacpp as llama  # type: ignore[import-untyped]

    asked = llama.CommonParams()
    asked.model.path = options["file"]
    if options["adapter"]:
        adapter = llama.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = options["adapter"], 1.0
        asked.lora_adapters = [adapter]
    asked.n_parallel, asked.n_ctx = options["slots"], options["slots"] * options["context"]
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = options["threads"]
    asked.hostnames, asked.api_keys = ["127.0.0.1"], [options["key"]]
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
    sys.stdin.read()
    os._exit(0)  # nothing to save; llama.cpp's own end waits for its threads


if __name__ == "__main__":
    main()
