"""A file of settings: read, checked against a configuration class, overlaid, written.

The only module that reads or writes YAML. It holds no values and knows no component: the class is
handed in, `aga.params.Params` for a whole params file.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from aga.config import Config
from aga.errors import ParamsError

Overlay: TypeAlias = Mapping[str, object]
Checked = TypeVar("Checked", bound=Config)


def read_sections(path: Path, schema: type[Checked]) -> Checked:
    """Only those sections of a file that a configuration class has, checked.

    Raises:
        ParamsError: As `read_yaml` and `checked`.
    """
    values = read_yaml(path)
    return checked(
        {name: values[name] for name in schema.model_fields if name in values}, schema, path
    )


def checked(values: object, schema: type[Checked], where: object) -> Checked:
    """Parsed values as an instance of a configuration class; `where` names them in errors.

    Raises:
        ParamsError: Names every wrong key, its value and what is allowed.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"    {_describe(problem, schema)}" for problem in error.errors())
        raise ParamsError(
            f"{error.error_count()} wrong or missing setting(s):\n{problems}",
            where=where,
            fix="correct the keys above; params.yaml explains each of them beside its value",
        ) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; duplicate keys and anything but a mapping are errors."""
    if not path.is_file():
        raise ParamsError("There is no params file", where=path, fix="name it with --params")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParamsError("The file is not UTF-8", where=path, got=error) from error
    values = _parsed(text, path)
    if not isinstance(values, dict):
        raise ParamsError(
            "The file holds no settings",
            where=path,
            got=type(values).__name__,
            expected="a mapping",
        )
    return values


def read_preset(name: str, folder: Path) -> dict[str, Any]:
    """The overlay of a preset.

    Args:
        name: Of its file, without `.yaml`.
        folder: Holds the presets.

    Raises:
        ParamsError: There is none of that name, or it is no YAML.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = sorted(preset.stem for preset in folder.glob("*.yaml"))
        raise ParamsError(
            "There is no such preset", where=folder, got=name, expected=", ".join(names)
        )
    return read_yaml(path)


def parse_settings(settings: Iterable[str]) -> dict[str, object]:
    """Turn `["source.root=data/raw/mine"]` into an overlay; values are read as YAML."""
    overlay: dict[str, object] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        *sections, leaf = key.split(".")
        nested: object = overlay
        for section in sections:
            nested = nested.setdefault(section, {}) if isinstance(nested, dict) else None
        if not (equals and leaf) or not isinstance(nested, dict):
            raise ParamsError("Cannot read a setting", got=setting, expected="dotted.key=value")
        nested[leaf] = _parsed(value, setting)
    return overlay


def _parsed(text: str, where: object) -> Any:
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ParamsError("This is not valid YAML", where=where, got=error) from error


def merged(values: Mapping[str, Any], overlay: Overlay, schema: type[Config]) -> dict[str, Any]:
    """Plain values with an overlay merged in; nothing is checked or written."""
    copied: dict[str, Any] = json.loads(json.dumps(values))
    _merge(copied, overlay, schema)
    return copied


def rewrite(path: Path, overlay: Overlay, schema: type[Config], *, write: bool) -> str:
    """Merge an overlay into a file, keeping its comments, and return the unified diff.

    Sections merge key by key; lists, scalars and free mappings (`image_encoder.options`) are
    replaced whole. The result is validated before anything is written, and written in one step.

    Raises:
        ParamsError: The overlay names an unknown key or a wrong value; the file is unchanged.
    """
    read_yaml(path)  # says what is wrong with the file as it is
    before = path.read_text(encoding="utf-8")
    yaml = _round_trip()
    document = yaml.load(before)
    _merge(document, overlay, schema)
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    after = buffer.getvalue()
    checked(YAML(typ="safe").load(after), schema, path)
    if write and after != before:
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(after, encoding="utf-8")
        temporary.replace(path)
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), path.name, path.name
    )
    return "".join(lines)


def _round_trip() -> YAML:
    """Reads and writes a file so that what does not change stays as it stands."""

    class Representer(RoundTripRepresenter):
        """Writes null by its name; ruamel's own leaves the place empty."""

    def null(representer: RoundTripRepresenter, _: None) -> ScalarNode:
        return representer.represent_scalar("tag:yaml.org,2002:null", "null")

    Representer.add_representer(type(None), null)
    yaml = YAML()
    yaml.Representer = Representer
    yaml.preserve_quotes = True
    yaml.default_flow_style = None  # short lists and mappings on one line
    yaml.width = 100
    return yaml


def _merge(values: Any, overlay: Overlay, schema: type[Config]) -> None:
    for key, value in overlay.items():
        section = _section(schema, key)
        if section is not None and isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value, section)
        elif key not in values or _differ(values[key], value):  # what is equal keeps its notation
            values[key] = value


def _differ(old: object, new: object) -> bool:
    """Python takes True for 1; a params file does not."""
    return old != new or isinstance(old, bool) != isinstance(new, bool)


def _section(schema: type[Config], key: str) -> type[Config] | None:
    """The configuration class behind a key, or None for a plain value or a free mapping."""
    field = schema.model_fields.get(key)
    if field is None:
        return None
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Config)), None)


def _describe(problem: ErrorDetails, schema: type[Config]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggest(problem['loc'], schema)}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: got {problem['input']!r}; {problem['msg']}"


def _suggest(location: tuple[int | str, ...], schema: type[Config]) -> str:
    section: type[Config] | None = schema
    for part in location[:-1]:
        section = _section(section, str(part)) if section else None
    if section is None:
        return ""
    names = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; allowed here: {', '.join(names)}"
