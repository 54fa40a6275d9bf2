"""From plain JSON values back to the dataclasses that they were written from."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any


def build(kind: Any, data: Any) -> Any:
    """Rebuilds `data`, as JSON gives it, into the annotated type `kind`.

    A field that has a default may be absent: documents of before the field existed stay readable.

    Raises:
        KeyError: a field without a default is absent.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        return build(next(a for a in args if a is not type(None)), data)
    if origin is tuple:
        return tuple(build(args[0], item) for item in data)
    if origin is dict:
        return {key: build(args[1], item) for key, item in data.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        given = [f.name for f in dataclasses.fields(kind) if f.name in data or not _optional(f)]
        return kind(**{name: build(hints[name], data[name]) for name in given})
    if kind is float:
        return float(data)
    return data


def _optional(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
