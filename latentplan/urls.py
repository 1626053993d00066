"""URLs: what is one, which is a path of this machine, and what of one may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from latentplan.errors import ConfigError

HIDDEN = "***"  # stands for a user with a password, and for a query

# User and password end at the last @ before the path. After a colon they may go on beyond a /,
# which some forget to escape: to hide a part of a path is better than to show a password.
_USER = r"(?<=://)(?:[^/{end}]*@|[^/@:{end}]*:[^@{end}]*@)"
_QUERY = r"(?<=://)([^?#{end}]*)([?#])[^{end}]*"  # a token, a signature, or a fragment


def is_url(path: str | Path) -> bool:
    """Return whether this is a URL and not a path."""
    return "://" in str(path)


def public(path: str | Path) -> str:
    """Return a path as it is, a URL without user, password, query and fragment.

    This is the text of a location for people, files and errors.
    """
    return _hidden(str(path), end=r"\n") if is_url(path) else str(path)


def place(path: str | Path) -> str:
    """Return a path as it is, a URL as `public` shows it, but without its query and fragment."""
    return re.split("[?#]", public(path))[0] if is_url(path) else str(path)


def public_text(text: str) -> str:
    """Return a text, such as an error of another library, with its URLs as `public` shows them."""
    return _hidden(text, end=r"\s'\"")


def public_values(values: Any) -> Any:
    """Return JSON values, such as settings, with their URLs as `public` shows them."""
    if isinstance(values, Mapping):
        return {key: public_values(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [public_values(value) for value in values]
    return public(values) if isinstance(values, str) else values


def local(path: str | Path, *, where: str) -> Path:
    """Return the path of a file or folder of this machine, which may be given as file:///PATH.

    Raises ConfigError for any other URL; `where` names the field.
    """
    if not is_url(path):
        return Path(path)
    scheme, _, rest = str(path).partition("://")
    host, slash, below = rest.partition("/")
    if scheme.lower() != "file":
        raise ConfigError(
            f"{where}: {public(path)} is a URL, need a path of this machine; give one"
        )
    if host.lower() not in ("", "localhost") or not slash:
        raise ConfigError(
            f"{where}: {public(path)} names the machine {host!r}, need this one; write file:///PATH"
        )
    return Path("/" + unquote(below))


def _hidden(text: str, *, end: str) -> str:
    text = re.sub(_USER.format(end=end), f"{HIDDEN}@", text)
    return re.sub(_QUERY.format(end=end), rf"\1\2{HIDDEN}", text)
