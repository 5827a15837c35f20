"""From YAML and `--set` to a frozen RunConfig, and back to dotted names, JSON and a hash.

A file may say `extends: tiny` and then holds only what differs. Unknown keys are refused with a suggestion.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from jobs.config.checks import validate
from jobs.config.schema import RunConfig as RunConfig
from jobs.config.schema import settings
from models.config import Bounds
from models.errors import ConfigError

PRESETS = Path(__file__).parents[1] / "configs"

_NOT_HASHED = frozenset({"name", "storage", "tracking", "cluster", "sweep", "serve"})


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without two traps: here `1e-3` is a number and `2024-11-20` a text."""


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader`, or any YAML 1.1, would read as something else."""


_FLOAT = "tag:yaml.org,2002:float"
_NUMBER = re.compile(
    r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf)|\.(?:nan|NaN))$"
)
_Loader.yaml_implicit_resolvers = {
    letter: [
        (tag, pattern) for tag, pattern in resolvers if tag not in (_FLOAT, "tag:yaml.org,2002:timestamp")
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_FLOAT, _NUMBER, list("-+0123456789."))


def presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load(
    source: str = "tiny", overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> RunConfig:
    """Read a preset or a YAML file, apply `a.b=value` overrides and values, validate.

    Args:
        source: name of a preset, or path of a YAML file.
        overrides: `dotted.name=value`; later ones win. The value of a setting that is a text is taken as it
            stands, unless quotes enclose it or it is the null of an optional one; others are read as YAML.
        values: by dotted name, over all overrides.

    Raises:
        ConfigError: no such file, an unknown key, a value of the wrong type or an impossible combination.
    """
    tree = _read(_locate(source, Path.cwd()))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name.strip():
            remedy = "Write it as --set loss.reverse_kl_weight=0.3"
            raise ConfigError(f"--set {override!r} is not name=value", remedy)
        _put(tree, name.strip(), _value_of(name.strip(), text))
    for name, value in (values or {}).items():
        _put(tree, name, value)
    return build(tree)


def override(name: str, value: Any) -> str:
    """The `name=value` by which `load` gives a setting this value; a shell needs its own quotes around it."""
    if isinstance(value, str):
        if _value_of(name, value) == value:
            return f"{name}={value}"
        quoted = yaml.dump(value, default_style='"', allow_unicode=True, width=float("inf"))
        return f"{name}={quoted.rstrip()}"
    text = json.dumps(value, ensure_ascii=False)
    return f"{name}={''.join(c if c.isprintable() else f'{chr(92)}U{ord(c):08x}' for c in text)}"


_IN_QUOTES = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def _value_of(name: str, text: str) -> Any:
    """What the text of an override gives a setting.

    Raises:
        ConfigError: it is not YAML, and the setting is not a text.
    """
    kind = settings().get(name, Any)
    leaves = _leaves(kind)
    if not text.strip() or (type(None) in leaves and text.strip() in ("null", "~")):
        return None
    of_texts = leaves <= {str, type(None)}
    if of_texts and typing.get_origin(kind) is not tuple and not _IN_QUOTES.fullmatch(text):
        return text
    try:
        # whatever a text looks like, it is one
        return yaml.load(text, Loader=yaml.BaseLoader if of_texts else _Loader)  # noqa: S506 - SafeLoaders
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {name}={text!r} has a value that YAML cannot read", "Quote it") from error


def _leaves(kind: Any) -> set[Any]:
    """The plain types that a setting's type is made of."""
    inner = [one for one in typing.get_args(kind) if one is not Ellipsis]
    if typing.get_origin(kind) is Literal:
        return set(map(type, inner))
    if typing.get_origin(kind) is Annotated:
        return _leaves(inner[0])
    return set().union(*map(_leaves, inner)) if inner else {kind}


@functools.cache
def _adapter() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def build(tree: Mapping[str, Any]) -> RunConfig:
    """The RunConfig of a nested mapping such as YAML gives.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or an impossible combination.
    """
    _require_known_tree(tree)
    try:
        config = _adapter().validate_python(dict(tree))
    except ValidationError as error:
        raise _explain(error) from error
    validate(config)
    return config


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A copy with other values under dotted names, validated.

    Raises:
        ConfigError: as `load`.
    """
    tree = to_dict(config)
    for name, value in values.items():
        _put(tree, name, value)
    return build(tree)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested plain values, tuples as lists."""
    plain: dict[str, Any] = json.loads(to_json(config))
    return plain


def to_json(config: RunConfig, indent: int | None = None) -> str:
    """The config as JSON; `from_json` gives back an equal one."""
    return json.dumps(dataclasses.asdict(config), indent=indent)


def from_json(text: str) -> RunConfig:
    return build(json.loads(text))


def to_yaml(config: RunConfig) -> str:
    return yaml_of(to_dict(config))


def yaml_of(tree: Mapping[str, Any]) -> str:
    """Plain values as YAML that `load` reads back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted name to value; `sweep.space` stays one value."""
    return {name: functools.reduce(getattr, name.split("."), config) for name in settings()}


def config_hash(config: RunConfig) -> str:
    """Sixteen hex digits over what decides the numbers: not name, storage, tracking, cluster, sweep
    or serve."""
    tree = {name: value for name, value in to_dict(config).items() if name not in _NOT_HASHED}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _locate(source: str, beside: Path) -> Path:
    """A preset's file, or a user's, whose relative path starts at `beside`."""
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
    """The tree of a file, laid over that of the file it extends."""
    if path in seen:
        raise ConfigError(f"{path} extends itself", "Remove one `extends:` of the circle")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML: {reason}", "Correct the file") from error
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
    _require_known(name)
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


def _require_known(name: str) -> None:
    """Refuse a dotted name that neither a setting nor a group has, with what the user may have meant."""
    if name in settings() or name.startswith("sweep.space.") or _below(name):
        return
    near = difflib.get_close_matches(name, settings(), n=2, cutoff=0.75)
    last = name.rsplit(".", 1)[-1]
    near = near or [known for known in settings() if known.rsplit(".", 1)[-1] == last][:3]
    listing = "See the names by `sostenuto train teacher --dry-run`"
    raise ConfigError(f"unknown setting {name!r}", f"Did you mean {' or '.join(near)}?" if near else listing)


@functools.cache
def _below(group: str) -> tuple[str, ...]:
    """The settings of a group, by their dotted names."""
    return tuple(name for name in settings() if name.startswith(f"{group}."))


def _require_known_tree(tree: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse unknown names anywhere in a nested mapping, and plain values in place of groups."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        _require_known(name)
        if below := _below(name):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{name} is a group, but {value!r} was given", f"Set a field, such as {below[0]}"
                )
            _require_known_tree(value, f"{name}.")


def _explain(error: ValidationError) -> ConfigError:
    """The first of pydantic's faults in one line."""
    fault = error.errors(include_url=False)[0]
    location = [str(part) for part in fault["loc"]]
    prefixes = (".".join(location[:n]) for n in range(len(location), 0, -1))
    name = next((prefix for prefix in prefixes if prefix in settings()), ".".join(location))
    kind = settings().get(name)
    bounds = bounds_of(kind)
    if bounds and fault["type"] in ("greater_than", "greater_than_equal", "less_than_equal"):
        remedy = f"Set it by --set {name}=VALUE, {bounds.description}"
        remedy += ", or null" if type(None) in typing.get_args(kind) else ""
        return ConfigError(f"{name} is {fault['input']}, but must be {bounds.description}", remedy)
    if fault["type"] == "string_type":
        problem = f"{name} is a text, but {fault['input']!r} was given"
        return ConfigError(problem, f"Put it in quotes, or set it by --set {name}=TEXT")
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return ConfigError(f"{name}: {message}, not {fault['input']!r}", f"Set it by --set {name}=VALUE")


def bounds_of(kind: Any) -> Bounds | None:
    """The bounds of a setting's type, `Annotated[...]` or `Annotated[...] | None`."""
    if typing.get_origin(kind) is tuple:  # those of its parts are theirs
        return None
    alternatives = (kind, *typing.get_args(kind))
    marks = (mark for one in alternatives for mark in getattr(one, "__metadata__", ()))
    return next((mark for mark in marks if isinstance(mark, Bounds)), None)
