"""Captions with their times, as people write them: `0s: a bay at dusk; 20s: rain`, or a YAML file."""

import re
from itertools import pairwise
from pathlib import Path

import yaml

from models.errors import ConfigError
from pipelines.creation import Cue

HOW = 'Write --timeline "0s: first caption; 20s: second caption", or a YAML file of such lines'
TIME = re.compile(r"(?:(\d+):)?(\d+(?:\.\d+)?)\s*s?")
"""`20s`, `20`, `1.5s` or `1:20`."""


def read_timeline(given: str) -> list[Cue]:
    """Captions in order of time, the first at 0.

    Args:
        given: parts of `TIME: CAPTION` with semicolons between them, or a path of a YAML file with a mapping.

    Raises:
        ConfigError: it cannot be read, or says nothing for the beginning.
    """
    if Path(given).suffix.lower() in (".yaml", ".yml"):
        parts = _from_file(given)
    else:
        parts = []
        for part in filter(str.strip, given.split(";")):
            time, colon, caption = part.strip().partition(": ")
            if not colon:
                raise ConfigError(f"no time in the part {part.strip()!r} of --timeline", HOW)
            parts.append((time, caption))
    cues = sorted(
        (Cue(_seconds(time), caption.strip()) for time, caption in parts), key=lambda cue: cue.second
    )
    if not cues or cues[0].second != 0:
        raise ConfigError("--timeline says nothing for the beginning", HOW)
    if double := [cue.second for cue, after in pairwise(cues) if cue.second == after.second]:
        raise ConfigError(f"--timeline has two captions at {double[0]:g} s", HOW)
    return cues


def _from_file(path: str) -> list[tuple[str, str]]:
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the timeline {path} cannot be read: {error}", HOW) from error
    if not isinstance(found, dict) or not all(isinstance(caption, str) for caption in found.values()):
        raise ConfigError(f"the timeline {path} has no lines of a time and a caption", HOW)
    return [(str(time), caption) for time, caption in found.items()]


def _seconds(time: str) -> float:
    found = TIME.fullmatch(time.strip())
    if found is None:
        raise ConfigError(f"{time!r} in --timeline is no time", HOW)
    minutes, seconds = found.groups()
    return 60.0 * int(minutes or 0) + float(seconds)
