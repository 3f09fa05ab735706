"""docs/recipe.md, made from the recipe's own types: `python -m pipeline.recipe_doc > docs/recipe.md`."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.recipe import Recipe

_HEAD = """\
# The recipe

<!-- Made by `make docs` from pipeline/recipe.py, recipe_tokenize.py, recipe_train.py, recipe_guards.py,
recipe_evaluate.py, recipe_cluster.py and recipe_preflight.py. -->

One YAML file holds a whole run; it is checked before anything starts, and all its problems are told at once. `--set
a.b=c` overrides any field, list items by their number: `--set train.phases.0.steps=100`. The resolved recipe, every
default filled in, is written into the run's folder and logged to MLflow; its hash stands in everything the run makes.
"""


def recipe_markdown() -> str:
    """Every section with its fields, defaults and meaning."""
    parts = [_HEAD]
    for model in _sections(Recipe, []):
        meaning = " ".join((model.__doc__ or "").split())
        parts += [f"## {_heading(model)}", "", *([meaning, ""] if meaning else [])]
        parts += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
        for field_name, field in model.model_fields.items():
            meaning = " ".join((field.description or "").split())
            parts.append(f"| `{field_name}` | {_type(field.annotation)} | {_default(field)} | {meaning} |")
        parts.append("")
    return "\n".join(parts)


def _sections(model: type[BaseModel], found: list[type[BaseModel]]) -> list[type[BaseModel]]:
    """Depth first, each once, in the order of the fields."""
    if model not in found:
        found.append(model)
        for field in model.model_fields.values():
            for inner in _models_in(field.annotation):
                _sections(inner, found)
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def _type(annotation: Any) -> str:
    """A type as the reader of a YAML file would say it."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in parts)
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(_type(part) for part in parts)
    if origin is list:
        return f"list of {_type(parts[0])}"
    if annotation is type(None):
        return "none"
    name = annotation.__name__
    return f"[{_heading(annotation)}](#{_heading(annotation).lower()})" if issubclass(annotation, BaseModel) else name


def _heading(model: type[BaseModel]) -> str:
    return model.__name__.removesuffix("Section")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    default = field.default
    return "its own defaults" if isinstance(default, BaseModel) else f"`{default}`"


if __name__ == "__main__":
    print(recipe_markdown(), end="")
