"""The JSON Schema of plan files, for editors and for the reference of settings in the documentation."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic.fields import FieldInfo

from fl_node.plan.schema import Plan
from fl_node.runtime.settings import Choice, Settings, choice_of, section_of

Schema = dict[str, Any]
DIALECT = "http://json-schema.org/draft-07/schema#"


def plan_schema() -> Schema:
    """Return the JSON Schema of a plan file; only ``fl-node plan check`` checks combinations of settings."""
    return {"$schema": DIALECT, "title": "Plan of a run of fl-node", **section_schema(Plan)}


def section_schema(section: type[Settings]) -> Schema:
    """Return the schema of a section, including the keys of its flat choices."""
    properties: Schema = {}
    required: list[str] = []
    conditions: list[Schema] = []
    for name, field in section.model_fields.items():
        choice = choice_of(field)
        if choice is not None and choice.flat:
            properties |= choice_properties(choice)
            conditions += _conditions(choice)
        else:
            properties[name] = _property(section, name, field, choice)
            if field.is_required() and not filled_in(field):
                required.append(name)
    schema: Schema = {
        "type": "object",
        "description": " ".join((inspect.getdoc(section) or "").split()),
        "properties": properties,
        "additionalProperties": False,
    }
    return schema | ({"required": required} if required else {}) | ({"allOf": conditions} if conditions else {})


def filled_in(field: FieldInfo) -> bool:
    """Return whether deployment fills in a setting from the data."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("filled_in"))


def choice_properties(choice: Choice) -> Schema:
    """Return the schemas of the keys of all variants of a choice, reduced to what all variants have in common."""
    properties: Schema = {choice.key: _key(choice)}
    for section in choice.classes:
        for key, schema in section_schema(section)["properties"].items():
            if key != choice.key:
                common = properties.setdefault(key, schema)
                properties[key] = {name: value for name, value in common.items() if schema.get(name) == value}
    return properties


def _key(choice: Choice) -> Schema:
    schema: Schema = {"enum": list(choice.variants)}
    values: dict[str, list[str]] = {}
    for value, variant in choice.variants.items():
        values.setdefault((inspect.getdoc(variant) or "").partition("\n")[0], []).append(f"`{value}`")
    schema["description"] = " ".join(f"{', '.join(names)}: {line}" for line, names in values.items())
    return schema if choice.default is None else schema | {"default": choice.default}


def _conditions(choice: Choice) -> list[Schema]:
    """Return a condition for each variant of a choice, which excludes the keys of other variants."""
    conditions = []
    common = choice_properties(choice)
    for value, variant in choice.variants.items():
        schema = section_schema(variant)
        properties = {key: schema["properties"].get(key, False) for key in common if key != choice.key}
        properties = {key: property_ for key, property_ in properties.items() if property_ != common[key]}
        constraints = {name: schema[name] for name in ("required", "allOf") if name in schema}
        if properties or constraints:
            required = [] if value == choice.default and not choice.implied else [choice.key]
            condition = {"properties": {choice.key: {"const": value}}, "required": required}
            consequence = ({"properties": properties} if properties else {}) | constraints
            conditions.append({"if": condition, "then": consequence})
    if choice.default is None:
        excluded = {key: False for key in common if key != choice.key}
        if excluded:
            conditions.append({"if": {"required": [choice.key]}, "else": {"properties": excluded}})
    return conditions


def _property(section: type[Settings], name: str, field: FieldInfo, choice: Choice | None) -> Schema:
    if choice is not None:
        return {
            "type": "object",
            "description": field.description,
            "properties": choice_properties(choice),
            "additionalProperties": False,
            "allOf": _conditions(choice),
        }
    if (inner := section_of(field, {})) is not None:
        schema = section_schema(inner)
        if isinstance(extra := field.json_schema_extra, dict) and "word" in extra:
            # A word may stand for the default instead of a section.
            return {"description": schema.pop("description"), "anyOf": [{"const": extra["word"]}, schema]}
        return schema | ({"description": field.description} if field.description else {})
    return _leaf(section.model_json_schema()["properties"][name])


def _leaf(schema: Schema) -> Schema:
    """Return pydantic's schema of a setting without its title and without null, which TOML does not have."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    merged = {key: value for key, value in schema.items() if key not in {"title", "anyOf", "filled_in"}}
    if merged.get("default", 0) is None:
        del merged["default"]
    return merged | (kinds[0] if len(kinds) == 1 else {})
