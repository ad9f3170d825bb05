"""Uploads repositories to the Hugging Face Hub: one commit each, which holds everything or nothing."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # httpx's or httpx2's, by the library's version

from gemma_tune.config import PushConfig
from gemma_tune.errors import RunError, UserError, shortened
from gemma_tune.models.hub import endpoint, no_network
from gemma_tune.sharing.contents import Repository

# Weights of an earlier commit, which libraries would load beside or in place of those that are sent
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "adapter_model.bin")
_LOG_IN = (
    "log in with `hf auth login`, or set HF_TOKEN, with a token that may write (https://huggingface.co/settings/tokens)"
)


def connect() -> HfApi:
    """The Hub with the user's token.

    Raises:
        UserError: There is no network, or no token.
    """
    if why := no_network():
        raise UserError(f"push.repo_id: nothing was sent, because the Hub can't be asked ({why}).")
    token = get_token()
    if token is None:
        raise UserError(f"push.repo_id: nothing was sent, because there is no token for {endpoint()}: {_LOG_IN}.")
    return HfApi(endpoint=endpoint(), token=token)


def upload(hub: HfApi, repository: Repository, push: PushConfig) -> str:
    """Makes the repository where it isn't there, and commits all files.

    Returns:
        Its address.

    Raises:
        UserError: The token may not write there, or the repository is another one than was meant.
        RunError: The upload was interrupted.
    """
    name = repository.repo_id
    try:
        hub.create_repo(name, private=push.private, exist_ok=True)
        there = hub.model_info(name)
        if push.private and not there.private:
            raise UserError(
                f"push.repo_id={name}: this repository is public, and everyone would see what is uploaded; say "
                "push.private=false, or name another."
            )
        if push.revision is not None:
            hub.create_branch(name, branch=push.revision, exist_ok=True)
            there = hub.model_info(name, revision=push.revision)
        _commit(hub, repository, push, {file.rfilename for file in there.siblings or ()})
    except HfHubHTTPError as error:
        raise _answered(name, error) from error
    except (HTTPError, OSError) as error:
        raise _interrupted(name, f"{type(error).__name__}: {error}") from error
    return f"{endpoint()}/{name}"


def _commit(hub: HfApi, repository: Repository, push: PushConfig, there: Collection[str]) -> None:
    sent = {file.name for file in repository.files}
    if (now := _kind(sent)) and (before := _kind(there)) and now != before:
        raise UserError(
            f"push.repo_id={repository.repo_id}: this repository holds {before}, and each holds one artifact; "
            "name another."
        )
    operations: list[Any] = [
        CommitOperationAdd(file.name, str(file.content) if isinstance(file.content, Path) else file.content)
        for file in repository.files
    ]
    if now != _GGUF:  # of several GGUF files each is whole
        stale = sorted(name for name in there if name not in sent and any(fnmatch(name, w) for w in _WEIGHTS))
        operations += [CommitOperationDelete(name) for name in stale]
    names = ", ".join(artifact.name for artifact in repository.artifacts)
    message = push.commit_message or f"Upload {names} with gemma_tune"
    hub.create_commit(repository.repo_id, operations, commit_message=message, revision=push.revision)


_GGUF = "GGUF files"


def _kind(files: Collection[str]) -> str:
    """What a repository holds, by its files; empty where there is nothing yet."""
    if "adapter_config.json" in files:
        return "an adapter"
    if "config.json" in files:
        return "a model for Transformers"
    return _GGUF if any(name.endswith(".gguf") for name in files) else ""


def _answered(name: str, error: HfHubHTTPError) -> UserError | RunError:
    """What to say to an answer of the Hub that is an error."""
    status, said = error.response.status_code, shortened(str(error.server_message or ""))
    because = f" ({said})" if said else ""
    if status == 401:
        return UserError(f"push.repo_id={name}: the Hub does not know the token{because}; {_LOG_IN}.")
    if status in (403, 404):
        return UserError(
            f"push.repo_id={name}: the token may not write there{because}: the owner is another one, or the token can "
            "only read. Name a repository of yours, or take a token that may write."
        )
    if status in (400, 409, 422):
        return UserError(f"push.repo_id={name}: the Hub refused it{because or f', with status {status}'}.")
    return _interrupted(name, f"status {status}{because} of {urlsplit(str(error.response.url)).hostname}")


def _interrupted(name: str, why: str) -> RunError:
    words = " ".join(word.partition("?")[0] for word in why.split())  # an address may hold a signature
    return RunError(
        f"push.repo_id={name}: the upload was interrupted ({shortened(words)}). The repository has no part of it; the "
        "same command goes on, and doesn't send again what has arrived."
    )
