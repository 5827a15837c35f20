"""The systems that `sostenuto compare` sets beside each other: each a set of settings over the preset's."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.config.load import flatten, with_values
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.config.systems import planned_systems
from models.autoencoders.kinds import autoencoder_kind
from models.errors import ConfigError
from pipelines.evaluation.settings import System

HERO = "mmm_4"
"""The system that all others are compared with."""

FOLDER = "compare"
"""Below the run's."""

_DATA = ("world", "data", "autoencoder")
"""Groups of settings that decide the dataset."""


def _long_batch(config: RunConfig) -> int:
    return config.distill.long_batch


def _first_latent(config: RunConfig) -> str:
    """How an adversary must be shown the first latents of windows: one that is masked would tell them."""
    return "masked" if autoencoder_kind(config.autoencoder).crop_safe else "reencoded"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    """Of the system; a system of `evaluate` is called as there."""
    stands_for: str
    """What it is, in words."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted name, or functions from the preset to them, that it has in place of the preset's."""
    like: str = HERO
    """The system of `evaluate` that it is sampled like, and whose stage it is made by."""

    @property
    def has_own_data(self) -> bool:
        """Whether its dataset is another than the run's."""
        return any(name.split(".")[0] in _DATA for name in self.overrides)

    def settings(self, config: RunConfig) -> dict[str, Any]:
        """What it has in place of the run's own settings."""
        run = flatten(config)
        own = {name: value(config) if callable(value) else value for name, value in self.overrides.items()}
        return {name: value for name, value in own.items() if value != run[name]}

    def config(self, config: RunConfig) -> RunConfig:
        """The run's settings with its own."""
        return with_values(config, self.settings(config)) if self.overrides else config

    def paths(self, config: RunConfig) -> RunPaths:
        """Where its stages lie: those of a system without overrides are the run's."""
        run = RunPaths.of(config)
        if not self.overrides:
            return run
        root = f"{run.root}/{FOLDER}/{self.name}"
        if not self.has_own_data:
            return dataclasses.replace(run, root=root)
        version = RunPaths.of(self.config(config)).dataset.rsplit("/", 1)[-1]
        return dataclasses.replace(run, root=root, world=f"{root}/world", dataset=f"{root}/dataset/{version}")

    def planned(self, config: RunConfig) -> tuple[str, System]:
        """The stage that makes it, and how it is sampled, without a checkpoint."""
        stage, system = next(one for one in planned_systems(self.config(config)) if one[1].name == self.like)
        return stage, dataclasses.replace(system, name=self.name)


def _plain(name: str, stands_for: str) -> Row:
    return Row(name, stands_for, like=name)


ROWS = (
    _plain("mmm_4", "MMM: mode seeking on every window, mean seeking on LONG; DM head, few steps"),
    _plain("mmm_fm_50", "MMM's FM head, which inference drops; many steps"),
    _plain("sft_50", "long-SFT: the teacher trained on LONG; many steps"),
    _plain("sft_4", "long-SFT in as few steps as MMM"),
    _plain("sft_50_longer", "long-SFT trained on for the CPU time of distillation"),
    _plain("mixed_50", "mixed-length SFT on SHORT and LONG"),
    _plain("mixed_50_longer", "mixed-length SFT trained on for the CPU time of distillation"),
    _plain(
        "teacher_rollout", "the teacher window by window, each continuing the last (as CausVid rolls out)"
    ),
    Row(
        "dm_only",
        "no mean seeking: the mode-seeking loss alone, from long-SFT",
        {"loss.flow_matching_weight": 0.0},
    ),
    Row(
        "last_window",
        "the last window alone is scored, as self-forcing recipes do",
        {"distill.scored_windows": "last", "distill.windows_per_video": None},
    ),
    Row(
        "no_sliding",
        "one window that stands still is scored",
        {"distill.scored_windows": "first", "distill.windows_per_video": None},
    ),
    Row("shared_head", "one head for both losses", {"model.heads": "shared"}),
    Row(
        "stopped_encoder",
        "mode seeking stops before the encoder",
        {"distill.encoder_gradient": "flow_matching"},
    ),
    Row(
        "noised_real",
        "the DM head is given noised LONG clips, not its own videos",
        {"distill.rollout": "noised_real", "distill.rollout_batch": _long_batch},
    ),
    Row("no_anchor", "no anchor at t = 1, as in the paper", {"loss.anchor_weight": 0.0}),
    Row("long_captions", "rollouts have captions of LONG only", {"distill.caption_source": "long"}),
    Row(
        "forward_kl",
        "plus a forward KL on the first step, as HiAR",
        {"loss.forward_kl_weight": 0.1},
    ),
    Row(
        "adversarial",
        "plus an adversarial term against windows of SHORT",
        {
            "loss.adversarial_weight": 0.01,
            "distill.short_batch": lambda config: config.distill.critic_batch,
            "distill.first_latent": _first_latent,
        },
    ),
    Row(
        "data_forcing",
        "the teacher judges LONG clips in every other step of the last half",
        {
            "distill.data_forcing_steps": lambda config: config.distill.steps // 2,
            "distill.rollout_batch": _long_batch,
        },
    ),
    Row("falling_times", "scored times fall: layout first, detail last", {"loss.score_time": "falling"}),
    Row(
        "clean_long",
        "LONG is clean, not low-grade: what mean seeking would do with perfect data",
        {"world.long_texture": 1.0, "world.long_harmonic": 1.0, "world.long_noise": 0.0},
    ),
)
"""The table: the paper's systems first, then MMM with one part changed, then with one beyond the paper's."""


def chosen_rows(config: RunConfig, names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names, or all that the config can have, in the table's order.

    Raises:
        ConfigError: there is no such row, or it needs the built-in world.
    """
    known = {row.name: row for row in ROWS}
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no system {name!r}", f"Choose from {', '.join(known)}")
        if known[name].has_own_data and not config.uses_world:
            raise ConfigError(
                f"{name} changes the built-in world, which this run does not use", f"Leave out {name}"
            )
    wanted = set(names) or {row.name for row in ROWS if config.uses_world or not row.has_own_data}
    return tuple(row for row in ROWS if row.name in wanted)
