"""From YAML and `--set` to a frozen RunConfig, and back to dotted names, JSON and a hash.

A file may say `extends: tiny` and then holds only what differs. Unknown keys are refused with a suggestion.
"""

import dataclasses
import difflib
import hashlib
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from jobs.config.checks import validate
from jobs.config.schema import RunConfig as RunConfig
from models.errors import ConfigError

PRESETS = Path(__file__).parents[1] / "configs"
"""Folder of the presets that `--config NAME` finds."""

_NOT_HASHED = frozenset({"name", "storage", "tracking", "cluster", "sweep"})


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its trap: `1e-3` is a number here, not a text."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf)|\.(?:nan|NaN))$"
    ),
    list("-+0123456789."),
)


def presets() -> list[str]:
    """Names that `--config` knows."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load(source: str = "tiny", overrides: Sequence[str] = ()) -> RunConfig:
    """Read a preset or a YAML file, apply `a.b=value` overrides, validate.

    Args:
        source: name of a preset, or path of a YAML file.
        overrides: `dotted.name=value`, the value in YAML; later ones win.

    Raises:
        ConfigError: no such file, an unknown key, a value of the wrong type or an impossible combination.
    """
    tree = _read(_locate(source, Path.cwd()))
    for override in overrides:
        name, value = parse_override(override)
        _put(tree, name, value)
    return build(tree)


def build(tree: Mapping[str, Any]) -> RunConfig:
    """The RunConfig of a nested mapping such as YAML gives.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or an impossible combination.
    """
    _refuse_unknown(tree, RunConfig, "")
    try:
        config = TypeAdapter(RunConfig).validate_python(dict(tree))
    except ValidationError as error:
        raise _explain(error) from error
    validate(config)
    return config


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A copy with other values under dotted names, validated. Ray Tune's trials are made so.

    Raises:
        ConfigError: as `load`.
    """
    tree = to_dict(config)
    for name, value in values.items():
        _put(tree, name, value)
    return build(tree)


def parse_override(text: str) -> tuple[str, Any]:
    """Split `a.b=value` into the dotted name and the value that YAML reads.

    Raises:
        ConfigError: no `=`, no name, or a value that YAML cannot read.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r} is not name=value", "Write it as --set loss.reverse_kl_weight=0.3")
    try:
        return name.strip(), yaml.load(value, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r} has a value that YAML cannot read", "Quote it") from error


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested plain values, tuples as lists: what YAML or JSON would hold."""
    plain: dict[str, Any] = json.loads(to_json(config))
    return plain


def to_json(config: RunConfig, indent: int | None = None) -> str:
    """The config as JSON; `from_json` gives back an equal one."""
    return json.dumps(dataclasses.asdict(config), indent=indent)


def from_json(text: str) -> RunConfig:
    """The config that `to_json` wrote.

    Raises:
        ConfigError: as `load`.
    """
    return build(json.loads(text))


def to_yaml(config: RunConfig) -> str:
    """The config as YAML that `load` reads."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted name to value, for MLflow and for `--dry-run`; `sweep.space` stays one value."""
    return dict(_leaves(config, ""))


def config_hash(config: RunConfig) -> str:
    """Sixteen hex digits of what decides the numbers: not name, storage, tracking, cluster or sweep."""
    tree = {name: value for name, value in to_dict(config).items() if name not in _NOT_HASHED}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _locate(source: str, beside: Path) -> Path:
    """Path of a preset's or a user's file; a relative path starts at `beside`."""
    preset = PRESETS / f"{source}.yaml"
    if preset.is_file():
        return preset
    path = beside / source
    if path.is_file():
        return path
    near = difflib.get_close_matches(source, presets(), n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"there is no preset and no file {source!r}", f"{hint}Presets: {', '.join(presets())}; or give a path"
    )


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tree of a file laid over the tree that it extends."""
    if path in seen:
        raise ConfigError(f"{path} extends itself", "Remove one `extends:` of the circle")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML: {reason}", "Mend the file") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no mapping", "Write settings as `group:` and indented `name: value`")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    return _overlay(_read(_locate(str(base), path.parent), (*seen, path)), tree)


def _overlay(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, group by group; a group of free names such as `sweep.space` is replaced whole."""
    for name, value in top.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict) and name != "space":
            base[name] = _overlay(base[name], value)
        else:
            base[name] = value
    return base


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in a nested mapping; what follows `sweep.space.` is one key, dots and all."""
    require_known(name)
    parts = name.split(".")
    if parts[:2] == ["sweep", "space"] and len(parts) > 2:
        parts = ["sweep", "space", ".".join(parts[2:])]
    for part in parts[:-1]:
        group = tree.setdefault(part, {})
        if not isinstance(group, dict):
            raise ConfigError(
                f"{part} in {name} is a value, not a group", "Set the group's fields by their names"
            )
        tree = group
    tree[parts[-1]] = value


def _group_of(annotation: Any) -> type | None:
    """The dataclass that an annotation stands for, or None for a plain value."""
    return annotation if dataclasses.is_dataclass(annotation) and isinstance(annotation, type) else None


def field_types(group: type) -> dict[str, Any]:
    """Field name to type of a settings dataclass."""
    hints = typing.get_type_hints(group)
    return {field.name: hints[field.name] for field in dataclasses.fields(group)}


def names(group: type = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted name below a settings dataclass."""
    found: list[str] = []
    for name, annotation in field_types(group).items():
        inner = _group_of(annotation)
        found += names(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return found


def require_known(name: str) -> None:
    """Refuse a dotted name that no setting has.

    Raises:
        ConfigError: with the nearest names as a suggestion.
    """
    known = names()
    if name in known or name.startswith("sweep.space."):
        return
    if any(full.startswith(name + ".") for full in known):
        return
    raise ConfigError(f"unknown setting {name!r}", _suggestion(name, known))


def _suggestion(name: str, known: Iterable[str]) -> str:
    """What the user may have meant."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=2, cutoff=0.75)
    if not near:
        last = name.rsplit(".", 1)[-1]
        near = [full for full in choices if full.rsplit(".", 1)[-1] == last][:3]
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return "See the names by `sostenuto train teacher --dry-run`"


def _refuse_unknown(tree: Mapping[str, Any], group: type, prefix: str) -> None:
    """Walk a nested mapping beside the dataclass it should fill."""
    types = field_types(group)
    for name, value in tree.items():
        if name not in types:
            raise ConfigError(
                f"unknown setting {prefix + str(name)!r}", _suggestion(prefix + str(name), names())
            )
        inner = _group_of(types[name])
        if inner is None:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{prefix}{name} is a group, but {value!r} was given",
                f"Set a field, such as {names(inner, prefix + name + '.')[0]}",
            )
        _refuse_unknown(value, inner, f"{prefix}{name}.")


def _explain(error: ValidationError) -> ConfigError:
    """The first fault of pydantic's list in one line."""
    fault = error.errors(include_url=False)[0]
    location = [str(part) for part in fault["loc"]]
    name = next(
        (".".join(location[:n]) for n in range(len(location), 0, -1) if ".".join(location[:n]) in names()), ""
    )
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return ConfigError(
        f"{name or '.'.join(location)}: {message}, not {fault['input']!r}", f"Set it by --set {name}=VALUE"
    )


def _leaves(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and values below a settings dataclass instance."""
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value
