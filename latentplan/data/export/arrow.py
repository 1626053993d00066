"""Columns and tables of a LeRobot data set, as Arrow and pandas read them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from latentplan.types import Array


def numbers(values: Array) -> Any:
    """Return rows (n, ...) as an arrow array: numbers, lists of a size, lists of lists."""
    import pyarrow

    array = pyarrow.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pyarrow.FixedSizeListArray.from_arrays(array, size)
    if values.ndim == 2 and values.shape[1] == 1:
        return array.flatten()  # LeRobot keeps rows of one number as numbers
    return array


def pngs(images: Array) -> Any:
    """Return images (n, h, w, 3) as an arrow array of PNG files."""
    import pyarrow
    from PIL import Image

    stored = []
    for place, image in enumerate(images):
        content = io.BytesIO()
        Image.fromarray(image).save(content, format="PNG")
        stored.append({"bytes": content.getvalue(), "path": f"frame-{place:06d}.png"})
    kinds = [("bytes", pyarrow.binary()), ("path", pyarrow.string())]
    return pyarrow.array(stored, type=pyarrow.struct(kinds))


def tasks_table(tasks: Mapping[str, int]) -> Any:
    """Return the table of tasks with its sentences as the index (of pandas)."""
    import pyarrow

    index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"}
    column = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [column | {"numpy_type": "int64", "metadata": None}, index | {"metadata": None}],
        "pandas_version": "2.0.0",
    }
    table = pyarrow.table({"task_index": list(tasks.values()), "task": list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
