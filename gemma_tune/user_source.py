"""What a user's Python file defines, read as text: it is not run before the configuration has passed."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gemma_tune.errors import UserError, shortened
from gemma_tune.untrusted import MIB, read_bytes


@dataclass(frozen=True)
class Definition:
    """A name that a file binds.

    Attributes:
        line: Where.
        signature: Its parameters; None where they are known only once the file was run: a decorated function, a class,
            what is imported or computed.
        awaited: Whether it is an `async def`.
        value: What stands there in place of a function, in words (`the number 5`); None where it may be a function.
    """

    line: int
    signature: inspect.Signature | None
    awaited: bool = False
    value: str | None = None


@dataclass
class UserSource:
    """The names at the top of a file.

    Attributes:
        file: The file.
        names: Their definitions, in the order of the file.
        opaque: Whether it may bind names that can't be seen (`from x import *`, `globals()[…]`).
        relative: Line and names of the first relative import outside of functions, which no file alone can have.
        imports: Of each import that is reached wherever the file is loaded, its line, the module, and the names that
            are taken from it.
        changes_path: Whether it may change where Python looks for modules.
    """

    file: Path
    names: dict[str, list[Definition]] = field(default_factory=dict)
    opaque: bool = False
    relative: tuple[int, str] | None = None
    imports: list[tuple[int, str, list[str]]] = field(default_factory=list)
    changes_path: bool = False

    @property
    def functions(self) -> list[str]:
        """The functions that a user may have meant."""
        return [name for name, found in self.names.items() if any(one.signature for one in found)]


def read_source(file: Path) -> UserSource:
    """The names that a Python file binds; nothing of it is run.

    Raises:
        UserError: It can't be read, or is no Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a string's escapes: Python says so when it is run
            tree = ast.parse(read_bytes(file, MIB), filename=str(file))
    except SyntaxError as error:
        raise UserError(f"{file}:{error.lineno or 1}: {error.msg}{_line(error)}") from error
    except OSError as error:
        raise UserError(f"{file}: the file can't be read ({error.strerror}).") from error
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; what is nested too deeply
        raise UserError(f"{file}: this can't be read as Python ({error or type(error).__name__}).") from error
    found = UserSource(file)
    for node in tree.body:  # in a `try`, it may be meant for a package
        if isinstance(node, ast.ImportFrom) and node.level:
            names = ", ".join(alias.name for alias in node.names)
            absolute = f"from {node.module} import {names}" if node.module else f"import {names}"
            found.relative = found.relative or (node.lineno, absolute)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names_of = [alias.name for alias in node.names if alias.name != "*"]
            found.imports.append((node.lineno, node.module, names_of))
        elif isinstance(node, ast.Import):
            found.imports += [(node.lineno, alias.name, []) for alias in node.names]
    found.changes_path = any(_changes_path(node) for node in ast.walk(tree))
    for node in _statements(tree.body):
        _note(node, found)
    return found


_PATHS = ("path", "meta_path", "path_hooks", "modules")


def _changes_path(node: ast.AST) -> bool:
    """Whether this names `sys.path`, or what else decides where Python looks for modules."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "sys" and any(alias.name in _PATHS for alias in node.names)
    if not isinstance(node, ast.Attribute):
        return False
    of_sys = isinstance(node.value, ast.Name) and node.value.id == "sys" and node.attr in _PATHS
    return of_sys or node.attr == "addsitedir"


def _line(error: SyntaxError) -> str:
    """The line that can't be read, as the message shows it."""
    return f": {shortened(error.text.strip())}" if error.text and error.text.strip() else "."


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when the file is loaded: those within `if`, `try`, `with` and loops, too."""
    for node in body:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for part in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(node, part, []))
        for part in ("handlers", "cases"):
            for inner in getattr(node, part, []):
                yield from _statements(inner.body)


def _note(node: ast.stmt, found: UserSource) -> None:
    def bind(name: str, signature: inspect.Signature | None = None, value: str | None = None) -> None:
        awaited = isinstance(node, ast.AsyncFunctionDef)
        found.names.setdefault(name, []).append(Definition(node.lineno, signature, awaited, value))

    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        bind(node.name, None if node.decorator_list else _signature(node.args))
        found.opaque |= node.name == "__getattr__"
    elif isinstance(node, ast.ClassDef):
        bind(node.name)
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            found.opaque |= alias.name == "*"
            bind((alias.asname or alias.name).partition(".")[0])
    else:
        given = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        signature = _signature(given.args) if isinstance(given, ast.Lambda) else None
        value = _plain_value(given)
        for part in ast.walk(node) if not isinstance(node, _BLOCKS) else _heads(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                bind(part.id, signature, value)
            elif isinstance(part, ast.Name) and part.id in ("globals", "vars", "locals", "exec", "setattr"):
                found.opaque = True


def _plain_value(node: ast.expr | None) -> str | None:
    """What a value is in words, where the text shows that it is no function."""
    if isinstance(node, ast.Constant):
        return f"the value {node.value!r}" if node.value is not None else "None"
    kinds = {ast.List: "a list", ast.Dict: "a dict", ast.Set: "a set", ast.Tuple: "a tuple", ast.JoinedStr: "a text"}
    return kinds.get(type(node)) if node is not None else None


_BLOCKS = (ast.If, ast.Try, ast.With, ast.For, ast.While, ast.Match)


def _heads(node: ast.stmt) -> Iterator[ast.AST]:
    """What stands in the first line of a block: targets of a loop, names of a `with`."""
    for part in ("test", "target", "iter", "subject", "items"):
        value = getattr(node, part, None)
        for one in value if isinstance(value, list) else [value] if value is not None else []:
            yield from ast.walk(one)


def _signature(args: ast.arguments) -> inspect.Signature:
    """The signature that `inspect` would give."""
    kinds = inspect.Parameter
    positional = [*args.posonlyargs, *args.args]
    first_default = len(positional) - len(args.defaults)
    made = [
        inspect.Parameter(
            arg.arg,
            kinds.POSITIONAL_ONLY if place < len(args.posonlyargs) else kinds.POSITIONAL_OR_KEYWORD,
            default=_Default() if place >= first_default else kinds.empty,
        )
        for place, arg in enumerate(positional)
    ]
    if args.vararg:
        made.append(inspect.Parameter(args.vararg.arg, kinds.VAR_POSITIONAL))
    made += [
        inspect.Parameter(arg.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else _Default())
        for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    if args.kwarg:
        made.append(inspect.Parameter(args.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(made)


class _Default:
    """A default that is not computed."""

    def __repr__(self) -> str:
        return "…"
