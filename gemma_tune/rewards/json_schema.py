"""Whether a completion is JSON that satisfies a schema.

Gamed by the smallest values that the schema allows (empty lists, any string); make the schema strict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NoReturn

from gemma_tune.config.reward import JsonSchemaReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion, require_package
from gemma_tune.run.paths import resolve
from gemma_tune.same_json import one_value_a_name

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
# Keywords whose values are data, in which `$ref` has no meaning.
_DATA = ("enum", "const", "default", "examples")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            elif key not in _DATA:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def validator(schema: Any) -> Any:
    """A validator of a schema; it never accesses the network.

    Raises:
        ValueError: The schema is invalid; the message says why.
    """
    from jsonschema import Draft202012Validator, SchemaError  # type: ignore[import-untyped]
    from jsonschema.validators import validator_for  # type: ignore[import-untyped]
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    if isinstance(schema, str):
        try:
            schema = json.loads(schema, object_pairs_hook=one_value_a_name)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not JSON that can be read ({error})") from error
    if not isinstance(schema, dict):
        raise ValueError(f"it is not a mapping but {type(schema).__name__}")
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
        root = DRAFT202012.create_resource(schema)
        resolver = Registry().with_resource("", root).resolver_with_root(root)
        if "$id" not in json.dumps(schema):  # with $id, references are relative to it; a bad one fails when it is used
            for reference in _references(schema):
                resolver.lookup(reference)
    except SchemaError as error:
        raise ValueError(f"{'/'.join(map(str, error.absolute_path)) or 'the schema'}: {error.message}") from error
    except Unresolvable as error:
        raise ValueError(f"$ref {error.ref!r} points to nothing in the schema") from error
    except (RecursionError, TypeError) as error:
        raise ValueError(str(error)) from error
    return kind(schema, registry=Registry())


def prepare(options: JsonSchemaReward) -> Reward:
    """1 if the text is JSON that satisfies the schema, 0.2 if it is other JSON, else 0.

    A code fence around the whole text is ignored. A completion that was cut off scores 0, and so does JSON with NaN or
    nested too deeply to be parsed.

    Raises:
        UserError: jsonschema is not installed, or the file is missing or holds no schema.
        ValueError: From the reward: a row without a valid `schema` (a mapping, or its JSON).
    """
    require_package("json_schema", "jsonschema")
    from referencing.exceptions import Unresolvable

    fixed: Any = None
    if options.schema_file is not None:
        key = f"reward.json_schema.schema_file={options.schema_file}"
        try:
            fixed = validator(resolve(options.schema_file).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{key}: it can't be read ({error.strerror}); name a JSON file.") from error
        except ValueError as error:
            raise UserError(f"{key}: {error}; fix it.") from error
    of_text = lru_cache(maxsize=512)(validator)

    def wanted(record: Task) -> Any:
        if fixed is not None:
            return fixed
        schema = record.row.get("schema")
        if schema is None:
            raise ValueError(
                f"{record.where}: the row has no schema; add the field, or set reward.json_schema.schema_file."
            )
        try:
            return of_text(schema if isinstance(schema, str) else json.dumps(schema))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{record.where}: schema: {error}; fix it.") from error

    def score(completion: Completion, record: Task) -> float:
        schema, text = wanted(record), completion.text.strip()
        fence = _FENCE.fullmatch(text)
        if not completion.stopped:
            return 0.0
        try:
            value = json.loads(fence[1] if fence else text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return 0.0
        try:
            return 1.0 if schema.is_valid(value) else 0.2
        except Unresolvable as error:
            raise ValueError(f"{record.where}: the schema's $ref {error.ref!r} points to nothing in it.") from error
        except Exception:  # a rule that fails on the model's value, such as multipleOf on 1e999
            return 0.2

    return per_completion(score)
