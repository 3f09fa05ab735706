"""From a YAML file and `--set` overrides to a `Recipe`, or to one error that lists every problem.

An unknown key names the nearest known one; each problem stands with its place in the recipe.
"""

from __future__ import annotations

import difflib
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError
from pipeline.recipe import Recipe


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice and reads 1e-4 as the number it is (YAML 1.1 takes it for text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                line = node.value[position][0].start_mark.line + 1
                raise yaml.constructor.ConstructorError(problem=f"key {key!r} stands twice, again in line {line}")
        return super().construct_mapping(node, deep)


def _construct_scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    text = loader.construct_scalar(node)
    try:
        return float(text) if node.style is None and "e" in text.lower() and text[:1] in "+-.0123456789" else text
    except ValueError:
        return text


_Loader.add_constructor("tag:yaml.org,2002:str", _construct_scalar)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the project, by name."""
    folder = Path(str(resources.files("pipeline"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(where: str, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Read the recipe `where` - a YAML file or the name of a shipped recipe - and apply `a.b=c` overrides.

    Raises `UserError` with every problem found.
    """
    path = Path(where)
    if not path.is_file():
        shipped = shipped_recipes()
        if where not in shipped:
            raise UserError(f"recipe {where}: no such file, and none of the shipped ones ({', '.join(shipped)})")
        path = shipped[where]
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"recipe {path} is not a mapping of sections: see `name`, `tokenize`, `model`, `train`")
    for override in overrides:
        _apply(content, override)
    return parse_recipe(content, str(path))


def parse_recipe(content: dict[str, Any], origin: str) -> Recipe:
    """Validate plain data; `UserError` with all problems, each with its place."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        # A union reports one problem for each of its members; the same place is told once.
        problems: dict[str, str] = {}
        for problem in error.errors(include_url=False):
            place, told = _describe(problem)
            if problem["type"].endswith("_type") and isinstance(problem.get("input"), dict | list):
                continue  # a mapping was given, so the member of the union that takes mappings has the real problem
            problems[place] = f"{problems[place]} or: {told}" if place in problems else told
        if not problems:
            problems = dict(_describe(problem) for problem in error.errors(include_url=False))
        listed = [f"{place}: {told}" if place else told for place, told in problems.items()]
        raise UserError(f"recipe {origin}: " + "; ".join(listed)) from error


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise UserError(f"--set {override}: write it as a.b=c, for example train.micro_batch=4")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}") from error
    place: Any = content
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                where = ".".join(parts[:depth])
                raise UserError(f"--set {override}: {where} is a list of {len(place)}; {part!r} is none of its numbers")
            if last:
                place[int(part)] = value
            place = place[int(part)]
        elif isinstance(place, dict):
            if last:
                place[part] = value
            # A scalar in the way (a hub id, say) gives way to the mapping that the user asks for.
            elif not isinstance(place.get(part), dict | list):
                place[part] = {}
            place = place[part]


def _describe(problem: Any) -> tuple[str, str]:
    names, model = _walk(problem["loc"])
    place = ".".join(names)
    if problem["type"] == "extra_forbidden":
        known = list(model.model_fields) if model else []
        near = difflib.get_close_matches(names[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return place, f"unknown key {names[-1]!r}; {hint}"
    if problem["type"] == "missing":
        return place, "is missing"
    if problem["type"] == "value_error":
        return place, str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    given = problem.get("input")
    shown = f", not {given!r}" if isinstance(given, str | int | float | None) else ""
    return place, message + shown


def _walk(loc: tuple[str | int, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """The place as the user wrote it, and the model that holds its last key.

    Pydantic puts the names of a union's members into the place ("str", "TrainedTokenizer", "jsonl"); they are dropped.
    """
    names: list[str] = []
    holder: type[BaseModel] | None = None
    here: list[Any] = [Recipe]
    for position, part in enumerate(loc):
        models = [kind for kind in here if isinstance(kind, type) and issubclass(kind, BaseModel)]
        fields = [model for model in models if part in model.model_fields]
        if isinstance(part, int):
            names.append(str(part))
            here = [inner for kind in here for inner in _members(kind, inside_list=True)]
        elif fields:
            names.append(part)
            holder = fields[0]
            here = _members(fields[0].model_fields[part].annotation)
        elif narrowed := [model for model in models if _is_tag(model, part)]:
            here = list(narrowed)
            holder = narrowed[0]
        elif position == len(loc) - 1 and models and part not in ("str", "int", "float", "bool"):
            if "[" not in part:
                names.append(part)
            holder = models[0]
    return names, holder


def _is_tag(model: type[BaseModel], part: str) -> bool:
    kind = model.model_fields.get("kind")
    return model.__name__ == part or (kind is not None and typing.get_args(kind.annotation) == (part,))


def _members(annotation: Any, inside_list: bool = False) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0], inside_list)
    if origin in (typing.Union, types.UnionType):
        return [inner for member in typing.get_args(annotation) for inner in _members(member, inside_list)]
    if origin is list:
        return _members(typing.get_args(annotation)[0]) if inside_list else [annotation]
    return [annotation]
