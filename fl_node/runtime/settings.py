"""Settings with choices among them: what a section of a plan is built from.

A :class:`Choice` is a discriminated union: the value of one key decides which class the settings have. The settings
of a *flat* choice stand beside those of the section that it belongs to, not in a section of their own, so that a file
says ``staleness = "hinge"`` and ``grace = 4`` on one level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


List = BeforeValidator(_as_tuple)
"""Marks a tuple that a file has as a list."""
FILLED_IN = Field(json_schema_extra={"filled_in": True})
"""Marks a setting that is filled in where the file or the data that it is about are at hand."""
Positive = Annotated[float, Field(gt=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NodeIds = Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...], List]


class NotValidError(AttributeError):
    """A setting was asked for that is not valid; see :meth:`Settings.valid_part`."""


class Settings(BaseModel):
    """Settings that belong together; unknown keys and other types than those of the fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    number: ClassVar[str | None] = None
    """The setting that a sweep writes after the name of the choice, as in ``krum:2``; None: it writes no number."""
    if_given: ClassVar[frozenset[str]] = frozenset()
    """Settings whose defaults are not written, so that plans from before these settings keep their CIDs."""

    @classmethod
    def completed(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Return the content with the settings that others imply; called before anything is validated."""
        return content

    @model_validator(mode="before")
    @classmethod
    def _before(cls, content: object) -> object:
        return cls._nested(content)

    @classmethod
    def _nested(cls, content: object) -> object:
        """Move the keys of flat choices into the settings that they belong to."""
        if not isinstance(content, dict):
            return content
        nested = cls.completed(dict(content))
        for name, choice in cls.choices():
            is_chosen = choice.default is not None or choice.key in nested
            if choice.flat and is_chosen and not isinstance(nested.get(name), Settings):
                variant = choice.chosen_by(nested)
                # A file has no key with the field's name; if it does, it is unknown to the class.
                keys = {*(variant.keys() if variant else choice.keys()), name}
                nested[name] = {key: nested.pop(key) for key in [*nested] if key in keys}
        return nested

    @model_serializer(mode="wrap")
    def _flatten(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write flat choices on one level, and leave out what is not set."""
        values = {
            key: value
            for key, value in serialise(self).items()
            if key in self.model_fields_set or key not in self.if_given
        }
        for name, choice in type(self).choices():
            if choice.flat:
                values |= values.pop(name) or {}
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def choices(cls) -> Iterator[tuple[str, Choice]]:
        """Yield the fields that are choices."""
        for name, field in cls.model_fields.items():
            if (choice := choice_of(field)) is not None:
                yield name, choice

    @classmethod
    def keys(cls) -> list[str]:
        """Return the keys that a file may have for these settings, whatever is chosen."""
        flat = {name: choice for name, choice in cls.choices() if choice.flat}
        return [key for name in cls.model_fields for key in (flat[name].keys() if name in flat else [name])]

    @classmethod
    def valid_part(cls, content: object) -> Self:
        """Return settings of content that is not valid as a whole, with what is valid of it.

        Asking for a setting that is not valid raises :class:`NotValidError`.
        """
        nested = cls._nested(content)
        nested = nested if isinstance(nested, Mapping) else {}
        valid = {}
        for name, field in cls.model_fields.items():
            if name not in nested:
                if not field.is_required():
                    valid[name] = field.get_default(call_default_factory=True)
                continue
            section = section_of(field, nested[name])
            if section is not None and isinstance(nested[name], Mapping):
                valid[name] = section.valid_part(nested[name])
            else:
                try:
                    valid[name] = _validated(field, nested[name])
                except ValidationError:
                    continue
        part = cls.model_construct(**valid)
        for name in cls.model_fields.keys() - valid.keys():
            part.__dict__.pop(name, None)
        return part

    if not TYPE_CHECKING:  # else every attribute would be there for a type checker

        def __getattr__(self, name: str) -> Any:
            """Reject a setting that :meth:`valid_part` left out.

            Raises
            ------
            NotValidError
                The setting has no valid value.
            """
            if name in type(self).model_fields:
                raise NotValidError(name)
            return super().__getattr__(name)


def _validated(field: FieldInfo, value: object) -> object:
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    if section_of(field, {}) is not None or isinstance(value, BaseModel):
        return TypeAdapter(kind).validate_python(value)
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)


@dataclass(frozen=True)
class Choice:
    """One of several classes of settings, by the value of a key; in the annotation of a field.

    Parameters
    ----------
    key
        The key that decides. Each class has a field of this name, whose type lists the values that choose it.
    classes
        Those that may be chosen.
    default
        The value that counts if the key is not given; None: then nothing is chosen.
    implied
        Whether settings elsewhere may imply another value than the default.
    flat
        Whether the settings stand beside those of the section that the choice belongs to.
    """

    key: str
    classes: tuple[type[Settings], ...]
    default: str | None = None
    implied: bool = False
    flat: bool = False

    @cached_property
    def variants(self) -> Mapping[str, type[Settings]]:
        """The classes by the values that choose them."""
        return {
            value: variant
            for variant in self.classes
            for value in get_args(variant.model_fields[self.key].annotation)
        }

    def keys(self) -> list[str]:
        """Return the keys of all classes, each once."""
        return list(dict.fromkeys([self.key, *(key for variant in self.classes for key in variant.keys())]))  # noqa: SIM118

    def users(self, key: str) -> list[str]:
        """Return the values with whose settings a key may stand."""
        return [value for value, variant in self.variants.items() if key in variant.keys()]  # noqa: SIM118

    def tag(self, content: object) -> Any:
        """Return the value of the key, or the default."""
        if isinstance(content, Mapping):
            return content.get(self.key, self.default)
        return getattr(content, self.key) if isinstance(content, Settings) else self.default

    def chosen_by(self, content: object) -> type[Settings] | None:
        """Return the class that content has; None if no class has this value."""
        tag = self.tag(content)
        return self.variants.get(tag) if isinstance(tag, str) else None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Build pydantic's tagged union of the classes."""
        union = core_schema.tagged_union_schema(
            {value: handler.generate_schema(variant) for value, variant in self.variants.items()},
            discriminator=lambda content: tag if isinstance(tag := self.tag(content), str) else None,
        )
        return union if self.default is not None else core_schema.nullable_schema(union)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say no more than that it is a section; :mod:`fl_node.plan.json_schema` says what is in it."""
        return {"type": "object"}


def variants_of(kind: type[Settings], names: Mapping[str, object]) -> tuple[type[Settings], ...]:
    """Return the classes among the names of a module that derive from ``kind``, in the order of their import."""
    return tuple(
        member
        for member in names.values()
        if isinstance(member, type) and issubclass(member, kind) and member is not kind
    )


def choice_of(field: FieldInfo) -> Choice | None:
    """Return the choice that a field is, if it is one."""
    marks = [*field.metadata, *(mark for part in get_args(field.annotation) for mark in _marks(part))]
    return next((mark for mark in marks if isinstance(mark, Choice)), None)


def _marks(part: Any) -> tuple[Any, ...]:
    return getattr(part, "__metadata__", ())


def section_of(field: FieldInfo, content: object) -> type[Settings] | None:
    """Return the class of settings that a field holds for some content, if it holds settings."""
    if (choice := choice_of(field)) is not None:
        return choice.chosen_by(content)
    parts = (field.annotation, *get_args(field.annotation))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Settings)), None)
