"""Nested mappings as flat ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(tree: Mapping[Any, Any], between: str = ".") -> Iterator[tuple[str, Any]]:
    """The values of a nested mapping with the names that lead to them; an empty mapping is a value, too.

    Args:
        tree: The mapping.
        between: What stands between two names.
    """
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{name}{between}{inner}", leaf) for inner, leaf in leaves(value, between))
        else:
            yield str(name), value
