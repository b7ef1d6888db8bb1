"""The JSON schema of sweep files and groups, for editors: `sweeps/schema.json` is what
`json_schema` gives. A scale file's is `schema.json#/$defs/ScaleFile`."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from dashboards.layout import ReportItem
from orchestrator.scalefile import ScaleFile
from orchestrator.settings import ALIASES, FIELDS, Setting, Settings
from orchestrator.sweepfile import GridFile, GroupFile, SweepFile

__all__ = ["json_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a sweep file or group, generated from the models that validate it."""
    schema = SweepFile.model_json_schema()
    definitions = schema.pop("$defs")
    for model in (Settings, GridFile, ScaleFile):
        _adopt(definitions, model.__name__, model.model_json_schema(ref_template="#/$defs/{model}"))
    report = TypeAdapter(list[ReportItem]).json_schema(ref_template="#/$defs/{model}")
    definitions |= report.pop("$defs")
    _allow_short_backbone(definitions)
    definitions |= {f"field.{name}": _described(setting) for name, setting in FIELDS.items()}
    fields = {name: _reference(ALIASES.get(name, name)) for name in (*FIELDS, *ALIASES)}
    for name, field in fields.items():  # `set:` takes `training.steps: 300` and `steps: 300` too
        definitions["Settings"]["properties"].setdefault(name, field)
    grid = definitions["GridFile"]["properties"]
    grid["set"] = {"$ref": "#/$defs/Settings"}
    grid["axes"] = _mapping({name: _axis(field) for name, field in fields.items()})
    grid["exclude"] = {
        "type": "array",
        "items": _mapping({name: _one_or_more(field) for name, field in fields.items()}),
    }
    properties = schema["properties"]
    properties["set"] = {"$ref": "#/$defs/Settings"}
    properties["grids"] = {"type": "array", "items": {"$ref": "#/$defs/GridFile"}}
    properties["report"] = report
    _allow_groups(schema)
    _allow_scales(properties, definitions)
    return {"$schema": _DIALECT, **schema, "$defs": definitions}


def _allow_groups(schema: dict[str, Any]) -> None:
    """`include` stands where a sweep has settings, data and grids."""
    group = GroupFile.model_json_schema()
    schema["properties"]["include"] = group["properties"]["include"]
    own = sorted(schema["properties"].keys() - group["properties"].keys())
    excluded = {"not": {"anyOf": [{"required": [name]} for name in own]}}
    schema["dependentSchemas"] = {"include": excluded}


def _bare(field: dict[str, Any]) -> dict[str, Any]:
    """A field without the sweep's default, which is not the scale's."""
    return {key: value for key, value in field.items() if key not in ("default", "title")}


def _allow_scales(properties: dict[str, Any], definitions: dict[str, Any]) -> None:
    scale = definitions["ScaleFile"]["properties"]
    scale["set"] = {"$ref": "#/$defs/Settings", "description": scale["set"]["description"]}
    scale["teacher"] = {
        "$ref": "#/$defs/TeacherSettings",
        "description": scale["teacher"]["description"],
    }
    name, width = (definitions["BackboneSettings"]["properties"][key] for key in ("name", "width"))
    scale["backbones"] |= {
        "propertyNames": {"enum": name["enum"]},
        "additionalProperties": _mapping({"name": {"enum": name["enum"]}, "width": _bare(width)}),
    }
    properties["scale"] = {
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/ScaleFile"}],
        "description": properties["scale"]["description"],
    }


def _adopt(definitions: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    definitions |= schema.pop("$defs", {})
    definitions[name] = schema


def _allow_short_backbone(definitions: dict[str, Any]) -> None:
    name = definitions["BackboneSettings"]["properties"]["name"]
    definitions["Settings"]["properties"]["backbone"] = {
        "anyOf": [{"$ref": "#/$defs/BackboneSettings"}, {"enum": name["enum"]}]
    }


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/field.{name}"}


def _described(setting: Setting) -> dict[str, Any]:
    schema = setting.adapter.json_schema()
    return {**schema, "description": setting.description} if setting.description else schema


def _mapping(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _axis(field: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": field}


def _one_or_more(field: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [field, {"type": "array", "items": field}]}
