"""`push.…`: what `recipe=push` uploads to the Hugging Face Hub, and where to."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class PushConfig:
    """Names are those of `huggingface_hub`. The token is that of HF_TOKEN or of `hf auth login`."""

    repo_id: str = option("", "Repository on the Hub, `owner/name`; it is made where it isn't there.", longest=200)
    artifacts: list[str] = option(
        [],
        "What to upload of the run: adapter, merged, w4a16, mlx, phone, reward_model, or a GGUF format (gguf, "
        "gguf_f16, …). One repository holds one of them, or several GGUF files; of several, each but the first gets a "
        "name of its own (`owner/name-GGUF`). Empty: the reward model, else the merged weights, else w4a16, GGUF, or "
        "the adapter.",
    )
    private: bool = option(True, "Whether only its owner sees it. A public repository that is there is refused.")
    revision: str | None = option(None, "Branch to upload to; it is made where it isn't there. null: main.")
    commit_message: str | None = option(None, "Message of the commit; null: what was uploaded.", longest=500)
    base_model: str | None = option(
        None,
        "Where on the Hub the base is, `owner/name`, for the card and the adapter; null: known from the run, where its "
        "model has a name there.",
        longest=200,
    )
