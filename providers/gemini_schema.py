"""A caller's JSON schema in the keywords that Gemini's parametersJsonSchema and responseJsonSchema take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from providers.base import Json
from providers.errors import Unsupported

_KEPT = frozenset(
    [
        "$id",
        "$anchor",
        "$ref",
        "type",
        "format",
        "title",
        "description",
        "enum",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "required",
        "propertyOrdering",
    ]
)
_SCHEMA_MAPS = frozenset({"properties", "$defs", "definitions"})
_SCHEMA_LISTS = frozenset({"anyOf", "oneOf", "prefixItems"})
_ANNOTATIONS = frozenset(
    [
        "$schema",
        "$comment",
        "$vocabulary",
        "default",
        "example",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentEncoding",
        "contentMediaType",
        "strict",
        "discriminator",
        "xml",
        "externalDocs",
    ]
)
_NOTED = frozenset(
    [
        "pattern",
        "minLength",
        "maxLength",
        "multipleOf",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "uniqueItems",
        "minProperties",
        "maxProperties",
        "minContains",
        "maxContains",
    ]
)


def gemini_schema(schema: Mapping[str, Json]) -> dict[str, Json]:
    """Translate `schema` into Gemini's subset of JSON schema (source: GenerationConfig in the Gemini API reference).

    Annotations without effect are dropped. A limit on a single value that Gemini has no keyword for (`pattern`,
    `maxLength`, …) is written into the description, where the model still reads it. `const` becomes an `enum`, an
    `allOf` of one is merged, `definitions` is renamed `$defs`.

    Raises:
        Unsupported: a keyword that changes the shape of the value and has no equivalent (`not`, `if`, `allOf` of
            several, `patternProperties`, …), or more levels than can be followed.
    """
    try:
        return _node(_merged(schema))
    except RecursionError as error:
        raise Unsupported("Gemini cannot take a JSON schema of so many levels") from error


def _node(schema: Mapping[str, Json]) -> dict[str, Json]:
    if "$ref" in schema:
        return _reference(schema)
    out: dict[str, Json] = {}
    notes: list[str] = []
    for key, value in schema.items():
        if key in _KEPT:
            out.setdefault(key, value)
        elif key in _SCHEMA_MAPS:
            name = "$defs" if key == "definitions" else key
            out[name] = {**out.get(name, {}), **{k: _sub(v, key) for k, v in _mapping(value, key).items()}}
        elif key in _SCHEMA_LISTS:
            if not isinstance(value, list):
                raise _inexpressible(key, value)
            out[key] = [_sub(item, key) for item in value]
        elif key in ("items", "additionalProperties"):
            out[key] = value if isinstance(value, bool) else _sub(value, key)
        elif key == "const":
            out["enum"] = [value]
        elif key == "nullable":
            if value and isinstance(schema.get("type"), str):
                out["type"] = [schema["type"], "null"]
        elif key in _NOTED:
            notes.append(f"{key}: {value}")
        elif key not in _ANNOTATIONS and not key.startswith("x-"):
            raise Unsupported(f"Gemini cannot express the JSON schema keyword {key!r}")
    if notes:
        out["description"] = f"{out.get('description') or ''} ({', '.join(notes)})".lstrip()
    return out


def _reference(schema: Mapping[str, Json]) -> dict[str, Json]:
    """Gemini allows only keywords that begin with `$` beside a `$ref`."""
    for key in schema:
        if not key.startswith("$") and key not in _ANNOTATIONS | {"title", "description", "definitions"}:
            raise Unsupported(f"Gemini cannot express the JSON schema keyword {key!r} beside $ref")
    out: dict[str, Json] = {"$ref": str(schema["$ref"]).replace("#/definitions/", "#/$defs/")}
    for key in ("$defs", "definitions"):
        if key in schema:
            out["$defs"] = {k: _sub(v, key) for k, v in _mapping(schema[key], key).items()}
    return out


def _sub(value: Any, key: str) -> Json:
    # A bare `true` admits anything, which Gemini writes as an empty schema.
    return {} if value is True else _node(_merged(_mapping(value, key)))


def _merged(schema: Mapping[str, Json]) -> Mapping[str, Json]:
    """Take an `allOf` of one into its parent: the form that pydantic gives a field with a description."""
    parts = schema.get("allOf")
    if not isinstance(parts, list) or len(parts) != 1 or not isinstance(parts[0], Mapping):
        return schema
    parent = {key: value for key, value in schema.items() if key != "allOf"}
    inner = _merged(parts[0])
    if (inner.keys() & parent.keys()) - {"title", "description"}:
        return schema
    return {**inner, **parent}


def _mapping(value: Any, key: str) -> Mapping[str, Json]:
    if not isinstance(value, Mapping):
        raise _inexpressible(key, value)
    return value


def _inexpressible(key: str, value: Any) -> Unsupported:
    return Unsupported(f"Gemini cannot express the JSON schema keyword {key!r} with the value {value!r:.40}")
