"""JSON values of others, checked against dataclasses: the only module that uses pydantic.

Strict: no missing or extra keys, no number for a text, no bool for a number, no NaN or infinity.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, TypeAlias, TypeVar, cast

from pydantic import AllowInfNan, ConfigDict, ValidationError, create_model

from latentplan.errors import LatentplanError

T = TypeVar("T")
AnyFloat: TypeAlias = Annotated[float, AllowInfNan()]  # may be NaN or infinite
SHOWN = 60  # characters of a wrong value in an error


def from_values(kind: type[T], values: Any, *, where: str, error: type[LatentplanError]) -> T:
    """Return the dataclass `kind` that `values` (plain JSON) describe.

    Types, lists of a fixed length and nested dataclasses are those of the fields' annotations.
    Raises `error`, which names the first field that does not fit, what was found and what is
    needed.
    """
    try:
        text = json.dumps({"value": values})
    except (RecursionError, TypeError, ValueError) as e:
        raise error(f"{where}: not plain JSON values ({type(e).__name__})") from None
    try:
        model = _model(cast(Any, kind)).model_validate_json(text)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        field = "".join(f".{part}" for part in first["loc"][1:])
        raise error(f"{where}{field}: {_fault(first)}") from None
    return cast(T, model.value)


def _fault(found: Any) -> str:
    if found["type"] == "missing":
        return "is missing"
    if found["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return "is no key that is known here"
    value = found["input"]
    shown = repr(value) if isinstance(value, int | float | str) else f"a {type(value).__name__}"
    needed = found["msg"].removeprefix("Input should be ")
    return f"found {shown[:SHOWN]}, need {needed}"


@cache
def _model(kind: Any) -> Any:
    settings = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return create_model("Strict", __config__=settings, value=(kind, ...))
