"""JSON values of others, checked against dataclasses: the only module that uses pydantic.

Strict: no missing or extra keys, no number for a text, no bool for a number, no NaN or infinity.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeVar, cast

from latentplan.errors import LatentplanError

T = TypeVar("T")
SHOWN = 60  # characters of a wrong value in an error


def from_values(kind: type[T], values: Any, *, where: str, error: type[LatentplanError]) -> T:
    """Return the dataclass `kind` that `values` (plain JSON) describe.

    Types, lists of a fixed length and nested dataclasses are those of the fields' annotations.
    Raises `error`, which names the first field that does not fit, what was found and what is
    needed.
    """
    from pydantic import ValidationError

    try:
        model = _model(cast(Any, kind)).model_validate_json(json.dumps({"value": values}))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        field = "".join(f".{part}" for part in first["loc"][1:])
        found = repr(first.get("input"))
        shown = found if len(found) <= SHOWN else f"{found[:SHOWN]}..."
        needed = first["msg"].removeprefix("Input should be ")
        raise error(f"{where}{field}: found {shown}, need {needed}") from None
    return cast(T, model.value)


@cache
def _model(kind: Any) -> Any:
    from pydantic import ConfigDict, create_model

    settings = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return create_model("Strict", __config__=settings, value=(kind, ...))
