"""What makes a clip of the page again: a YAML file with its captions, and the command that takes it."""

import hashlib
import shlex
from decimal import Decimal
from pathlib import Path

import yaml

from jobs.config.load import to_yaml
from jobs.config.schema import RunConfig
from jobs.serve.wanted import Clip, Wanted


def keep_config(config: RunConfig, folder: Path) -> Path:
    """The settings of this server in a file beside its clips, for `--config`."""
    text = to_yaml(config)
    path = folder / f"config-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def remake(wanted: Wanted, clip: Clip, config: Path, checkpoint: str, start: Path | None) -> str:
    """A timeline file of `sostenuto sample`, whose first line is the command that takes it.

    Args:
        wanted, clip: what was asked for.
        config: the settings it was made with.
        checkpoint: the network that made it.
        start: the file it goes on from.
    """
    words = ["sostenuto", "sample", "--config", str(config), "--checkpoint", checkpoint]
    words += ["--head", clip.head, "--seed", str(clip.seed), "--count", "1"]
    words += ["--seconds", repr(wanted.seconds), "--timeline", f"{clip.name}.yaml", "--out", clip.name]
    words += [] if clip.steps is None else ["--steps", str(clip.steps)]
    words += [] if clip.times is None else ["--times", ",".join(map(repr, clip.times))]
    words += ["--loop"] if wanted.loop else []
    words += [] if start is None else ["--image" if start.suffix != ".mp4" else "--extend", str(start)]
    captions = {format(Decimal(repr(line.second)), "f"): line.caption for line in wanted.timeline}
    lines = yaml.safe_dump(captions, allow_unicode=True, sort_keys=False, default_style='"', width=1 << 20)
    return f"# {shlex.join(words)}\n{lines}"
