"""The comments after the fields of a dataclass, which state the meaning of each."""

from __future__ import annotations

import ast
import inspect
import tokenize
from dataclasses import is_dataclass
from functools import cache
from io import StringIO
from textwrap import dedent


def comments(schema: type) -> dict[str, str]:
    """Return the comment after each field of a dataclass, its base classes included."""
    found: dict[str, str] = {}
    for part in reversed(schema.__mro__):
        if is_dataclass(part):
            found |= {n: text for n, text in _comments(part).items() if text or n not in found}
    return found


@cache
def _comments(schema: type) -> dict[str, str]:
    source = dedent(inspect.getsource(schema))
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    texts = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for statement in tree.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            last = statement.end_lineno or statement.lineno
            found[statement.target.id] = texts.get(last, "")
    return found
