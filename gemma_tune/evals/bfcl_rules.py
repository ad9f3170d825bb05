"""When calls are right by the rules of the Berkeley Function-Calling Leaderboard (BFCL), for its Python categories.

The rules are those of BFCL v4: `bfcl_eval/eval_checker/ast_eval/ast_checker.py` in github.com/ShishirPatil/gorilla,
described in gorilla.cs.berkeley.edu/blogs/8_berkeley_function_calling_leaderboard.html. In short:

- Names must be equal, dots and all. The leaderboard turns dots into underscores only for models whose interface can't
  write dots (`underscore_to_dot`), and no Gemma is one: its calls are text.
- No required argument is missing, and none is given that the function or the ground truth doesn't list.
- Types are exact, except that an integer is accepted for a `float` (not inside a list); `true` is not an integer.
  The elements of an `array` or `tuple` are checked one level deep, unless the argument may be left out.
- If the first allowed value has another type than the function says, it stands for a variable (`"my_data"` for an
  array): then that type is right, too, and values must be equal without normalization.
- Strings are compared ignoring case, spaces, `,./-_*^` and the kind of quotes: directly, in a list, and as values of
  a mapping; not deeper. Order matters in lists, not in mappings.
- An allowed value `""` means that the argument may be left out; an empty string or list is right, too.
- Parallel calls may come in any order. Each wanted call is matched with the first remaining call that is right.

Differences: if the leaderboard's checker would raise an exception (a list of strings instead of mappings, an integer
too large for a float), the call is wrong here. Calls are already parsed here, so its decoder's errors for text without
a call become `wrong_count`. Only the Python categories are supported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemma_tune.chat.calls import Call

# The leaderboard's error names, without the prefix of its checking function (`simple_function_checker:…`).
Kind = Literal[
    "", "wrong_count", "wrong_func_name", "missing_required", "missing_optional", "unexpected_param",
    "type_error:simple", "type_error:nested", "value_error:string", "value_error:list/tuple", "value_error:dict_key",
    "value_error:dict_value", "value_error:list_dict_count", "value_error:others", "unclear", "cannot_find_match",
]  # fmt: skip

# The leaderboard's parameter types, and the Python type of a JSON value of each.
TYPES: dict[str, type] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
}  # fmt: skip

Function = Mapping[str, Any]  # `name`, and `parameters` with `properties` and `required`, in the leaderboard's types
Allowed = Mapping[str, Sequence[Any]]  # the values that each argument may have

_LONGEST = 200  # characters of a value in a message
_SAME = str.maketrans({"'": '"', **dict.fromkeys(" ,./-_*^", "")})


@dataclass(frozen=True)
class Verdict:
    """The verdict on an answer.

    Attributes:
        right: Whether it is right.
        kind: The name of the first error; empty if it is right.
        message: The error for people.
    """

    right: bool
    kind: Kind = ""
    message: str = ""


RIGHT = Verdict(True)


def _wrong(kind: Kind, message: str) -> Verdict:
    return Verdict(False, kind, message)


def check_calls(
    made: Sequence[Call], functions: Sequence[Function], wanted: Sequence[tuple[str, Allowed]], parallel: bool
) -> Verdict:
    """Whether calls are right for a row.

    Args:
        made: The calls of an answer.
        functions: The functions of the row, including all wanted ones.
        wanted: The wanted calls: a name and the allowed values of each argument.
        parallel: Whether the row is of a parallel category; otherwise there is one wanted call.
    """
    if len(made) != len(wanted):
        return _wrong("wrong_count", f"calls made: {len(made)}, not {len(wanted)}")
    by_name = {f["name"]: f for f in reversed(functions)}
    if not parallel:
        ((name, allowed),) = wanted
        return check_call(made[0], by_name[name], allowed)
    left = list(made)
    for number, (name, allowed) in enumerate(wanted, start=1):
        verdicts = [check_call(call, by_name[name], allowed) for call in left]
        match = next((i for i, verdict in enumerate(verdicts) if verdict.right), None)
        if match is None:
            # The error of a call with this name is more helpful
            near = next((v for v, call in zip(verdicts, left, strict=True) if call.name == name), verdicts[0])
            return _wrong("cannot_find_match", f"no call is wanted call {number}, {name} ({near.message})")
        del left[match]
    return RIGHT


def check_call(made: Call, function: Function, allowed: Allowed) -> Verdict:
    """Whether a call is the wanted one.

    Args:
        made: The call.
        function: The wanted function.
        allowed: The allowed values of each argument.
    """
    if made.name != function["name"]:
        return _wrong("wrong_func_name", f"{made.name} was called, not {function['name']}")
    parameters = function["parameters"]
    for name in parameters.get("required", ()):
        if name not in made.arguments:
            return _wrong("missing_required", f"{name} is required and missing")
    for name, value in made.arguments.items():
        if name not in parameters["properties"] or name not in allowed:
            return _wrong("unexpected_param", f"{name} is not wanted")
        verdict = _argument(name, value, parameters["properties"][name], allowed[name])
        if not verdict.right:
            return verdict
    for name, options in allowed.items():
        if name not in made.arguments and "" not in options:
            return _wrong("missing_optional", f"{name} is missing, and must be given here")
    return RIGHT


def element_type(schema: Mapping[str, Any]) -> type | None:
    """The type of a list's elements by its schema; None if the schema isn't a list."""
    return TYPES[schema["items"]["type"]] if TYPES[schema["type"]] is list else None


def stands_for_variable(schema: Mapping[str, Any], options: Sequence[Any]) -> bool:
    """Whether the allowed values have another type than the parameter, so that they name a variable."""
    return _first_type(options) not in (None, TYPES[schema["type"]])


def _first_type(options: Sequence[Any]) -> type | None:
    return next((type(o) for o in options if o != ""), None)


def _argument(name: str, value: Any, schema: Mapping[str, Any], options: Sequence[Any]) -> Verdict:
    expected, element = TYPES[schema["type"]], element_type(schema)
    if expected is float and type(value) is int:
        value = _as_float(value)
    argument = f"{name}={_shown(value)}"
    as_said = type(value) is expected
    if not as_said and type(value) is not _first_type(options):
        return _wrong("type_error:simple", f"{argument} is {type(value).__name__}, not {schema['type']}")
    if as_said and element and not options:
        return _wrong("type_error:simple", f"{argument}: nothing is allowed")
    if as_said and element and not any(_elements_fit(value, element, o) for o in options):
        return _wrong("type_error:nested", f"an element of {argument} is not {schema['items']['type']}")
    wanted = f"not {_shown(*options)}"
    if stands_for_variable(schema, options):
        return RIGHT if value in options else _wrong("value_error:others", f"{argument}, {wanted}")
    if expected is dict:
        return _mapping(name, value, options)
    if element is dict:
        return _mappings(name, value, options)
    if expected is str:
        texts = [_normalized(o) for o in options if isinstance(o, str)]
        return RIGHT if _normalized(value) in texts else _wrong("value_error:string", f"{argument}, {wanted}")
    if expected is list:
        lists = [[_normalized(e) for e in o] for o in options]  # "" becomes the empty list
        right = [_normalized(e) for e in value] in lists
        return RIGHT if right else _wrong("value_error:list/tuple", f"{argument}, {wanted}")
    return RIGHT if value in options else _wrong("value_error:others", f"{argument}, {wanted}")


def _shown(*values: Any) -> str:
    """Values for people, cut where they are long."""
    text = " or ".join(map(repr, values))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _as_float(value: int) -> int | float:
    try:
        return float(value)
    except OverflowError:  # too large: it stays an int, which is the wrong type
        return value


def _elements_fit(value: list[Any], element: type, option: Any) -> bool:
    if not isinstance(option, list):
        return True
    first = _first_type(option)
    return all(type(v) is element or type(v) is first for v in value)


def _normalized(value: Any) -> Any:
    """A string without the characters that are ignored; anything else unchanged."""
    return value.translate(_SAME).lower() if isinstance(value, str) else value


def _mapping(name: str, value: Any, options: Sequence[Any]) -> Verdict:
    """Whether a mapping fits one of the options, each with the allowed values per key."""
    verdict = _wrong("unclear", f"{name}={_shown(value)}: no mapping is wanted")
    for option in options:
        if isinstance(option, dict):
            verdict = _entries(name, value, option)
            if verdict.right:
                return verdict
    return verdict


def _entries(name: str, value: Any, option: Allowed) -> Verdict:
    if not isinstance(value, dict):
        return _wrong("type_error:nested", f"{_shown(value)} in {name} is not a mapping")
    if missing := [key for key, values in option.items() if key not in value and "" not in values]:
        return _wrong("value_error:dict_key", f"{name} lacks {', '.join(missing)}")
    for key, entry in value.items():
        if key not in option:
            return _wrong("value_error:dict_key", f"{name} holds {key}, which is not wanted")
        if _normalized(entry) not in [_normalized(v) for v in option[key]]:
            message = f"{name}: {key} is {_shown(entry)}, not {_shown(*option[key])}"
            return _wrong("value_error:dict_value", message)
    return RIGHT


def _mappings(name: str, value: list[Any], options: Sequence[Any]) -> Verdict:
    """Whether a list of mappings fits one of the options, in order."""
    verdict = _wrong("unclear", f"{name}={_shown(value)}: no mappings are wanted")
    for option in options:
        if len(value) != len(option):
            verdict = _wrong("value_error:list_dict_count", f"{name} holds {len(value)} mappings, not {len(option)}")
            continue
        verdicts = (_mapping(name, entry, [wanted]) for entry, wanted in zip(value, option, strict=True))
        verdict = next((v for v in verdicts if not v.right), RIGHT)
        if verdict.right:
            return verdict
    return verdict
