"""A caller's JSON schema with one type in each of its schemas, as the SDK's transform of schemas asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from providers.base import Json

_SCHEMA_MAPS: Final = frozenset({"properties", "$defs"})
_SCHEMA_LISTS: Final = frozenset({"anyOf", "oneOf", "allOf"})
_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_KEYWORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "minItems", "maxItems", "uniqueItems"),
    "string": ("format", "minLength", "maxLength", "pattern"),
    "number": _NUMBERS,
    "integer": _NUMBERS,
}
"""What speaks of values of one type alone."""


def with_one_type_each(schema: Mapping[str, Json]) -> dict[str, Json]:
    """Write each list of types as an `anyOf` with a branch for each: Anthropic takes both, its SDK one type only.

    What speaks of one type goes into that type's branch; what speaks of all stays outside. A schema that has a list
    of types and branches of its own stays as it is, and so does what is no schema at all.
    """
    out = {key: _within(key, value) for key, value in schema.items()}
    types = out.get("type")
    # The values of an `enum` or a `const` have their types, and the SDK lets them stand alone.
    if not isinstance(types, list) or out.keys() & (_SCHEMA_LISTS | {"enum", "const"}):
        return out
    names = [name for name in types if isinstance(name, str)]
    if len(names) != len(types) or not names:
        return out
    if len(names) == 1:
        return out | {"type": names[0]}
    branches = [{"type": name} | {key: out[key] for key in _KEYWORDS.get(name, ()) if key in out} for name in names]
    moved = {"type"}.union(*branches)
    return {key: value for key, value in out.items() if key not in moved} | {"anyOf": branches}


def _within(key: str, value: Any) -> Json:
    if key in _SCHEMA_MAPS and isinstance(value, Mapping):
        return {name: _sub(schema) for name, schema in value.items()}
    if key in _SCHEMA_LISTS and isinstance(value, list):
        return [_sub(schema) for schema in value]
    return _sub(value) if key == "items" else value


def _sub(value: Any) -> Json:
    return with_one_type_each(value) if isinstance(value, Mapping) else value
