"""Tools and their calls, in the forms in which people have them, as OpenAI writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemma_tune.data.records import BadRow
from gemma_tune.data.row_fields import is_empty, structure_in, structure_of

Tools = list[dict[str, Any]]
_ARGUMENTS = ("arguments", "args", "parameters", "input")
Note = Any  # (name of a field that isn't used) -> None


def parsed(value: Any, where: str, what: str) -> Any:
    """Parses a value that is a JSON text, as in the cell of a table; any other value is returned as it is.

    Raises:
        BadRow: The text isn't JSON, and the message calls it `what`; or it has two values under one name.
    """
    found = structure_of(value, where)
    if isinstance(found, str):
        raise BadRow(f"{where}: {what}: this text is not JSON; write it as json.dumps does.")
    return found


def checked_tools(tools: Any, where: str) -> Tools | None:
    """Checks the tools: a list of function schemas, or None without tools.

    Also taken: JSON texts, of the list, of each tool, or of its parameters; bare functions, `{"name", "parameters"}`;
    and Gemini's `functionDeclarations`. Nulls in a schema that isn't a text are left out: Arrow writes them.

    Raises:
        BadRow: Not in one of these forms.
    """
    tools = None if is_empty(tools) else parsed(tools, where, "tools")
    if is_empty(tools):
        return None
    if not isinstance(tools, list):
        raise BadRow(f"{where}: the tools aren't a list (data.tools_column names their field).")
    return [_tool(tool, where) for given in tools for tool in _declared(parsed(given, where, "a tool"))] or None


def _declared(tool: Any) -> Iterator[Any]:
    for key in ("functionDeclarations", "function_declarations"):
        if isinstance(tool, dict) and isinstance(tool.get(key), list):
            yield from tool[key]
            return
    yield tool


def _tool(tool: Any, where: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if function is None and isinstance(tool, dict) and isinstance(tool.get("name"), str):
        function = {k: v for k, v in tool.items() if k != "type"}
        tool = {}
    function = structure_of(function, where)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where}: a tool isn't {{'type': 'function', 'function': {{'name', …}}}}.")
    function = without_nulls(function)
    for key in ("input_schema", "inputSchema"):  # Anthropic's and MCP's
        if key in function and "parameters" not in function:
            function["parameters"] = function.pop(key)
    if isinstance(function.get("parameters"), str):
        function["parameters"] = parsed(function["parameters"], where, f"the parameters of {function['name']}")
    if not isinstance(function.get("parameters", {}), dict):
        raise BadRow(f"{where}: the parameters of {function['name']} aren't a JSON schema.")
    return {
        "type": "function",
        **without_nulls({k: v for k, v in tool.items() if k != "function"}),
        "function": function,
    }


def without_nulls(value: Any) -> Any:
    """The value without null fields of its mappings; Arrow gives each struct the fields of all rows."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def without_nulls_inside(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the nulls of its structs; a field of the row itself stays, so that all rows have the same."""
    return {name: without_nulls(value) for name, value in row.items()}


def calls_of_message(message: Mapping[str, Any], where: str, number: int) -> list[Any]:
    """The calls of a message as they were written: `tool_calls`, or `function_call`, OpenAI's older form."""
    calls, older = message.get("tool_calls"), message.get("function_call")
    if calls is None and older is None:
        return []
    calls = structure_of(calls, where)
    if not is_empty(calls) and not isinstance(calls, list):
        raise BadRow(f"{where}: message {number}: tool_calls must be a list, in an assistant's message.")
    if not is_empty(older):
        older = parsed(older, where, f"message {number}: function_call")
        written = [c.get("function", c) for c in map(structure_in, calls or []) if isinstance(c, dict)]
        more = [c for c in (older if isinstance(older, list) else [older]) if c not in written]
        return [*(calls or []), *more]
    return [] if is_empty(calls) else list(calls)


def checked_call(call: Any, where: str, tools: Tools | None, note: Note) -> dict[str, Any]:
    """A call in the OpenAI form, its arguments a mapping.

    Args:
        call: As it was written: `{"type", "function": {"name", "arguments"}}`, the bare function, or a JSON text.
        where: File and line.
        tools: The row's tools, which say where a null is a value; None: they are not known.
        note: Is told each field that isn't used.

    Raises:
        BadRow: Not a call.
    """
    call = structure_of(call, where)
    function = structure_of(call.get("function"), where) if isinstance(call, dict) else None
    if function is None and isinstance(call, dict) and "name" in call:
        function = {k: v for k, v in call.items() if k not in ("id", "type")}
        call = {k: call.get(k) for k in ("id", "type")}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(
            f"{where}: a tool call isn't {{'type': 'function', 'function': {{'name', 'arguments'}}}}, as in "
            "tool_calls, nor {'name', 'arguments'}, as in function_call."
        )
    name = function["name"]
    beside = call if function is not call else {}
    found = [(k, d[k]) for d in (function, beside) for k in _ARGUMENTS if k in d]
    others = {f"function.{k}": v for k, v in function.items() if k not in ("name", *_ARGUMENTS)}
    others |= {k: v for k, v in call.items() if k not in ("id", "type", "function", "name", *_ARGUMENTS)}
    others = {k: v for k, v in others.items() if not is_empty(v)}
    if len(found) > 1 or (not found and others):
        keys = ", ".join([*(k for k, _ in found), *others])
        raise BadRow(f"{where}: the call of {name} has {keys}, and must have its arguments under `arguments` alone.")
    for key in others:
        note(f"tool_calls.{key}")
    given: Any = found[0][1] if found else {}
    if given == "":  # how some servers write a call without arguments
        given = {}
    # The OpenAI API gives the arguments as a text that holds JSON; a null in it is its author's
    arguments = parsed(given, where, f"the arguments of {name}")
    if not isinstance(arguments, dict):
        raise BadRow(f"{where}: the arguments of {name} aren't a mapping.")
    if not isinstance(given, str):
        clean = _given_arguments(arguments, _parameters(name, tools))
        if clean != arguments:
            note("tool_calls.function.arguments (nulls)")
        arguments = clean
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _parameters(name: str, tools: Sequence[Mapping[str, Any]] | None) -> Any:
    """The schema of a tool's parameters; None where there is no such tool."""
    return next((t["function"].get("parameters") or {} for t in tools or () if t["function"]["name"] == name), None)


def _given_arguments(value: Any, schema: Any) -> Any:
    """The arguments without the nulls that no call has given: those that the schema has no place for.

    Without a schema, a null can't be told from one that Arrow wrote, and all of them stay away, as in Parquet.
    """
    if isinstance(value, list):
        items = schema.get("items") if isinstance(schema, dict) else None
        return [_given_arguments(v, items) for v in value]
    if not isinstance(value, dict):
        return value
    places = schema.get("properties") if isinstance(schema, dict) else None
    places = places if isinstance(places, dict) else {}
    return {
        key: _given_arguments(inner, places.get(key))
        for key, inner in value.items()
        if inner is not None or _nullable(places.get(key))
    }


def _nullable(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    kind = schema.get("type")
    return (
        kind == "null"
        or (isinstance(kind, list) and "null" in kind)
        or schema.get("nullable") is True
        or (isinstance(schema.get("enum"), list) and None in schema["enum"])
        or any(
            map(_nullable, [o for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list) for o in schema[key]])
        )
    )
