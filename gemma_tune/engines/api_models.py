"""Which models a server with an OpenAI-compatible API has, asked before anything else. Imports no torch."""

from __future__ import annotations

import os
from functools import cache

from gemma_tune.config import ModelConfig
from gemma_tune.engines.json_client import JsonClient, Refused, Unreachable
from gemma_tune.errors import RunError, UserError, listed
from gemma_tune.run.paths import resolve
from gemma_tune.validation.serving import address_problem

KEY = "OPENAI_API_KEY"  # where every client of such a server looks for its key
_SECONDS = 30.0


def client_of(base_url: str, timeout: float) -> JsonClient:
    """A client with the key of the environment, if there is one.

    Args:
        base_url: `model.base_url`.
        timeout: Seconds for one request.
    """
    return JsonClient(base_url, timeout, os.environ.get(KEY) or None, base_url)


def explained(base_url: str, error: Unreachable | RunError) -> UserError:
    """What to say to a request that failed."""
    said = f"model.base_url={base_url}"
    if isinstance(error, Unreachable):
        return UserError(
            f"{said}: nobody answers there ({error}); start a server (python -m gemma_tune recipe=serve …), or fix the "
            "address."
        )
    status = error.status if isinstance(error, Refused) else 0
    if status in (401, 403):
        wrong = "the key in OPENAI_API_KEY isn't its key" if os.environ.get(KEY) else "it wants a key"
        return UserError(f"{said}: {wrong}; export {KEY}=… with the one that it was started with.")
    if status == 404:
        return UserError(f"{said}: there is no such API ({error}); it usually ends with /v1.")
    return UserError(f"{said}: {error}")


@cache
def models_at(base_url: str) -> tuple[str, ...]:
    """The ids of the models that a server has; asked once in a process.

    Raises:
        UserError: This is no address, nobody answers, it wants a key, or it isn't such a server.
    """
    if problem := address_problem(base_url):
        raise UserError(problem)
    try:
        found = client_of(base_url, _SECONDS).get("/models")
        return tuple(str(one["id"]) for one in found["data"])
    except (Unreachable, RunError) as error:
        raise explained(base_url, error) from None
    except (LookupError, TypeError):
        raise UserError(
            f"model.base_url={base_url}: it doesn't say which models it has; is it an API of OpenAI's "
            "form? Its address usually ends with /v1."
        ) from None


def served_model(model: ModelConfig) -> str:
    """The id of the model that is asked: `model.served_name`, or the only one that there is.

    Raises:
        UserError: As `models_at`, or there are several, none, or none of the name.
    """
    assert model.base_url
    ids = models_at(model.base_url)
    if model.served_name is not None:
        if model.served_name not in ids:
            raise UserError(f"model.served_name={model.served_name}: {model.base_url} has {listed(ids) or 'no model'}.")
        return model.served_name
    if len(ids) != 1:
        has = f"{len(ids)} models: {listed(ids)}" if ids else "no model"
        raise UserError(f"model.base_url={model.base_url}: it has {has}; name one: model.served_name=…")
    return ids[0]


def local_model(base_url: str, name: str | None) -> str | None:
    """The folder or file that a server's model is by its id, as vLLM names it; None where the id is another one."""
    ids = [name] if name else models_at(base_url)
    found = [one for one in ids if one.startswith("/") and resolve(one).exists()]
    return found[0] if len(found) == 1 else None
