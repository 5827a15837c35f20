"""What a stage was made from, what has changed since it began, and which changes may be gone on with.

A stage is the weights and windows that it starts from and every setting that decides its own. The code is
recorded and shown, but a change of the code alone refuses nothing.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import CheckpointError, TrainingDiverged
from pipelines.data.store.info import INFO_FILE, read_info
from pipelines.data.store.rows import RowChanges, changes_since, note_rows
from pipelines.data.types import CORPORA, CorpusName
from pipelines.storage import Storage, hash_of
from pipelines.training.config import DistillConfig, StageConfig, TrainingConfig
from pipelines.training.recipes import (
    BASELINES,
    CAPTIONS,
    LINEAGE_FILE,
    OUTCOME_FILE,
    PRETRAINED,
    Recipe,
    StageOutcome,
    checkpoint_sha256,
    finished_stage,
    stage_graph,
)
from pipelines.training.survival.listing import step_of, whole

ROWS_FILE = "rows.parquet"
"""In a stage's folder: the windows that it began with (store/rows.py)."""

DIVERGED_FILE = "diverged.json"
"""In a stage's folder: the step at which a number was not finite, and the windows of its batches."""

SHOWN_WINDOWS = 4
"""Windows of a batch that a message names."""

_FILES = {
    PRETRAINED: "model.pretrained holds other weights",
    CAPTIONS: "distill.captions holds other captions",
}
"""Inputs that are no stage's, and what is said when they change."""

_OLD_MARK = "recipe.json"
_UNKNOWN = "it began before stages recorded what they are made from"

_NOT_WEIGHTS = frozenset(
    """
    micro_batch checkpoint_every checkpoint_minutes keep_checkpoints preview_every log_every watch_every
    stop_on teacher_gate teacher_gate_ratio
    """.split()
)
"""Settings of a stage that decide no weights."""
_STUDENTS = frozenset(
    """
    learning_rate schedule warmup_steps skip_steps ema_decay t_distribution t_mean t_std ramp_steps
    windows_per_video encoder_gradient ramp_follows data_forcing_steps
    """.split()
)
"""Settings of `distill` that its warm-up, which leaves the student alone, does not read."""
_FIXED = frozenset({"captions", "caption_source", "window_frames"})
"""Settings of a stage that decide shapes or data."""
_UNREAD = {"teacher": frozenset({"model.heads"})}
"""Settings that a stage records and does not read."""
_FREE_TEXT = frozenset({"text.dropout", "text.withheld_words", "text.withhold_probability"})

_log = logging.getLogger("sostenuto.training")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a stage is made from, as lineage.json holds it."""

    inputs: dict[str, str]
    """As `Recipe.inputs`."""
    data_hash: str
    """Of the dataset that it began with."""
    windows: dict[str, int]
    """Windows of each corpus that it reads."""
    settings: dict[str, Any]
    """Every setting that decides its weights, by dotted name."""
    code: str
    """The commit that worked on it last."""
    changes: tuple[dict[str, Any], ...] = ()
    """Every resume with something changed: `step`, and under `changed` each name's old and new value."""

    @property
    def hash(self) -> str:
        """Sixteen hex digits over all but the code and the history."""
        return hash_of([self.inputs, self.data_hash, self.settings])[:16]


def lineage_of(recipe: Recipe) -> Lineage:
    """What a stage would be made from now.

    Raises:
        DataError: there is no finished dataset.
    """
    info = read_info(recipe.dataset)
    return Lineage(
        inputs=recipe.inputs,
        data_hash=info.data_hash,
        windows={corpus: info.corpus(corpus).windows for corpus in _reads(recipe.stage)},
        settings=deciding(recipe),
        code=recipe.code,
    )


def deciding(recipe: Recipe) -> dict[str, Any]:
    """Every setting that decides the weights of a stage, by dotted name, as JSON gives it back."""
    group, stage = group_of(recipe.name), dataclasses.asdict(recipe.stage)
    groups: dict[str, dict[str, Any]] = {"model": dataclasses.asdict(recipe.model)}
    values: dict[str, Any] = {}
    if not recipe.adopts:
        groups["text"], groups["flow"] = dataclasses.asdict(recipe.text), dataclasses.asdict(recipe.flow)
        groups["lora"] = dataclasses.asdict(recipe.lora) if recipe.lora.rank else {"rank": 0}
        unread = _NOT_WEIGHTS | {"steps"} | (_STUDENTS if recipe.critic_only else frozenset())
        if stage.get("ramp_follows") == "critic" and not recipe.critic_only:
            unread -= {"watch_every"}
        groups[group] = {name: value for name, value in stage.items() if name not in unread}
        values = {"seed": recipe.seed, f"{recipe.name}.steps": recipe.stage.steps}
    if isinstance(recipe.stage, DistillConfig):
        loss = dataclasses.asdict(recipe.loss)
        groups["loss"] = {k: v for k, v in loss.items() if k.startswith("score_") or not recipe.critic_only}
        groups["sampling"] = {"steps": recipe.sampling.steps}
    for name, inner in groups.items():
        values |= {f"{name}.{key}": value for key, value in inner.items() if key != "pretrained"}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def made_alike(stage: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether settings of two runs' stage, as `deciding` gives them, lead to the same weights."""
    unread = _UNREAD.get(stage, frozenset())
    return all(one.get(name) == other.get(name) for name in {**one, **other} if name not in unread)


def take_over(recipe: Recipe, other: str) -> bool:
    """Records a finished stage of another seed folder as this one's, if it was made from the same; its
    checkpoints stay where they are. Returns whether it did."""
    theirs, now = read_lineage(other, recipe.name), lineage_of(recipe)
    if theirs is None or finished_stage(other, recipe.name) is None:
        return False
    same = (theirs.inputs, theirs.data_hash) == (now.inputs, now.data_hash)
    if not same or not made_alike(recipe.name, theirs.settings, now.settings):
        return False
    source, target = Storage(other), Storage(recipe.root)
    for file in (ROWS_FILE, LINEAGE_FILE, OUTCOME_FILE):
        target.write_bytes(f"{recipe.name}/{file}", source.read_bytes(f"{recipe.name}/{file}"))
    return True


def group_of(stage: str) -> str:
    """The group of settings that a stage obeys; a baseline's steps follow from distillation's time."""
    return "distill" if stage == "warmup" else BASELINES.get(stage, stage)


def _reads(stage: StageConfig) -> list[CorpusName]:
    """The corpora whose windows or captions decide a stage's weights."""
    source = stage.caption_source if isinstance(stage, DistillConfig) else None
    return [name for name in CORPORA if getattr(stage, f"{name}_batch") or source in (name, "both")]


def read_lineage(root: str, stage: str) -> Lineage | None:
    """What a stage that has begun is made from; None where nothing says so."""
    storage, path = Storage(root), f"{stage}/{LINEAGE_FILE}"
    if not storage.exists(path):
        return None
    plain = storage.read_json(path)
    return Lineage(**plain | {"changes": tuple(plain["changes"])})


def latest_step(root: str, stage: str) -> int:
    """The step of the checkpoint that a stage would go on from; 0 where there is none."""
    return max(map(step_of, whole(Storage(root).child(stage))), default=0)


def begin_stage(
    recipe: Recipe, *, resume_changed: bool = False, allow_stale: bool = False
) -> StageOutcome | Lineage:
    """Records what a stage is made from before it begins or goes on; what it had finished, if it has.

    Args:
        recipe: of the stage.
        resume_changed: go on with other settings, where those may change.
        allow_stale: go on, or take what has finished, although the stage's inputs have changed.

    Raises:
        CheckpointError: what it is made from has changed, and may not, or nobody said that it may.
    """
    storage, name = Storage(recipe.root), recipe.name
    done, then, now = finished_stage(recipe.root, name), read_lineage(recipe.root, name), lineage_of(recipe)
    if then is None:
        if (done or storage.exists(f"{name}/{_OLD_MARK}")) and not allow_stale:
            raise stale_error({name: [_UNKNOWN]}, recipe.root)
        return done or _record(recipe, now, rows=True)
    rows = _changed_rows(recipe.root, name, then, recipe.dataset)
    why = _why_stale(then, recipe.inputs, rows, done)
    if why and not allow_stale:
        raise stale_error({name: why}, recipe.root)
    changed = changed_settings(then, now)
    if changed:
        _require_changeable(recipe, changed, done, resume_changed)
    if done and not changed:
        return done
    if rows and not rows.lost:
        _log.warning(f"{name} goes on with the windows that it began with: {rows}")
    old, new = (side.inputs | {"code": side.code} for side in (then, now))
    if rows.lost:
        old, new = old | {"data_hash": then.data_hash}, new | {"data_hash": now.data_hash}
    else:
        now = dataclasses.replace(now, data_hash=then.data_hash, windows=then.windows)
    keys = [key for key in old | new if old.get(key) != new.get(key)]
    changed |= {key: [old.get(key), new.get(key)] for key in keys}
    if not changed:
        return then
    entry = {"step": latest_step(recipe.root, name), "changed": changed}
    return _record(recipe, dataclasses.replace(now, changes=(*then.changes, entry)), rows=rows.lost)


def _record(recipe: Recipe, lineage: Lineage, rows: bool) -> Lineage:
    """Stores what a stage that begins or goes on is made from, and, where asked, which windows."""
    storage = Storage(recipe.root)
    storage.delete(f"{recipe.name}/{OUTCOME_FILE}")
    if rows:
        note_rows(recipe.dataset, storage, f"{recipe.name}/{ROWS_FILE}")
    storage.write_json(f"{recipe.name}/{LINEAGE_FILE}", dataclasses.asdict(lineage))
    return lineage


def _changed_rows(root: str, stage: str, then: Lineage, dataset: str) -> RowChanges:
    """How the corpora that a stage reads differ from what it began with; a dataset that is gone does not."""
    if not Storage(dataset).exists(INFO_FILE) or read_info(dataset).data_hash == then.data_hash:
        return RowChanges()
    corpora = [name for name in CORPORA if name in then.windows]
    return changes_since(Storage(root), f"{stage}/{ROWS_FILE}", dataset, corpora)


def _why_stale(
    then: Lineage, inputs: Mapping[str, str], rows: RowChanges, done: StageOutcome | None
) -> list[str]:
    """What has changed since a stage began. One that has not finished goes on with its own windows, so that
    others are no reason while those are there."""
    why = changed_inputs(then.inputs, inputs)
    return [*why, str(rows)] if rows.lost or (rows and done) else why


def changed_inputs(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A sentence for each stage that one began with and that is another now."""
    told = {}
    for name in {**then, **now}:
        stage = name.split("/")[0]
        if name in _FILES:
            if now.get(name, then.get(name)) != then.get(name):
                told[stage] = _FILES[name]
        elif name not in then:
            told[stage] = f"it did not start from {stage}"
        elif name not in now:
            told[stage] = f"it started from {stage}, which is left out now"
        elif now[name] != then[name]:
            told[stage] = f"{stage} was trained again since" if now[name] else f"{stage} has begun again"
    return list(told.values())


def changed_settings(then: Lineage, now: Lineage) -> dict[str, list[Any]]:
    """Old and new value of each setting that differs; one that was not there before had its default."""
    defaults = _defaults()
    old = {name: then.settings.get(name, defaults.get(name)) for name in now.settings}
    return {name: [old[name], new] for name, new in now.settings.items() if old[name] != new}


def _defaults() -> dict[str, Any]:
    """Every setting's default by dotted name, as JSON gives it back."""
    tree = json.loads(json.dumps(dataclasses.asdict(TrainingConfig())))
    groups = {name: inner for name, inner in tree.items() if isinstance(inner, dict)}
    return {f"{group}.{key}": value for group, inner in groups.items() for key, value in inner.items()}


def is_fixed(name: str, old: Any, new: Any) -> bool:
    """Whether a setting decides shapes, networks or data, which stay what they were when a stage began."""
    group, _, key = name.partition(".")
    if group in ("seed", "model", "lora", "text") or key in _FIXED:
        return name not in _FREE_TEXT
    return key in ("short_batch", "long_batch", "adversarial_weight") and not (old and new)


def told(changed: Mapping[str, Iterable[Any]]) -> str:
    """Changed settings, for people."""
    return ", ".join(f"{name} was {old}, now {new}" for name, (old, new) in changed.items())


def _require_changeable(
    recipe: Recipe, changed: Mapping[str, list[Any]], done: StageOutcome | None, resume_changed: bool
) -> None:
    """Refuses changed settings that may not change, or that nobody said may."""
    place = f"{recipe.root}/{recipe.name} was {'trained' if done else 'begun'}"
    fixed = {name: values for name, values in changed.items() if is_fixed(name, *values)}
    if fixed:
        raise CheckpointError(
            f"{place} with other networks or data: {told(fixed)}",
            "These cannot change on the way: give what it was begun with, or --fresh to start over",
        )
    at = int(done.summary["steps"]) if done else latest_step(recipe.root, recipe.name)
    if recipe.stage.steps < at or (done and recipe.stage.steps == at):
        raise CheckpointError(
            f"{place} with other settings, and has taken {at} steps: {told(changed)}",
            "Give its settings to keep it, more steps and --resume-changed to go on, or --fresh",
        )
    if not resume_changed:
        raise CheckpointError(
            f"{place} with other settings: {told(changed)}",
            f"Give --resume-changed to go on with them from step {at}, the old ones to go on as before, or "
            "--fresh to start over",
        )


def stale_stages(config: TrainingConfig, root: str, dataset: str) -> dict[str, list[str]]:
    """Every stage of a seed whose inputs are not those that it began with, in order, and what has changed."""
    stale: dict[str, list[str]] = {}
    for stage, before in stage_graph(config).items():
        then, done = read_lineage(root, stage), finished_stage(root, stage)
        if then is None:
            why = [_UNKNOWN] if done else []
        else:
            rows = _changed_rows(root, stage, then, dataset)
            why = _why_stale(then, _inputs_now(root, then), rows, done)
            why = why or [f"{other} is stale" for other in stale if other in before]
        if why:
            stale[stage] = why
    return stale


def _inputs_now(root: str, then: Lineage) -> dict[str, str]:
    """The present weights of the stages that one began with: none of one that has begun again; those of then
    where it is not there any more, and of what is no stage."""
    now = dict(then.inputs)
    for name in then.inputs:
        stage, _, file = name.partition("/")
        if outcome := finished_stage(root, stage):
            now[name] = checkpoint_sha256(outcome.checkpoint, file)
        elif file and Storage(root).exists(stage):
            now[name] = ""
    return now


def require_current(config: TrainingConfig, root: str, dataset: str, stages: Iterable[str]) -> None:
    """Refuses stages of a seed whose inputs have changed since.

    Raises:
        CheckpointError: names every stale stage of the seed, in order, and what has changed.
    """
    stale = stale_stages(config, root, dataset)
    if not stale.keys().isdisjoint(stages):
        raise stale_error(stale, root)


def stale_error(stale: Mapping[str, Sequence[str]], root: str) -> CheckpointError:
    """The error that names stale stages and what has changed."""
    told = ", ".join(f"{stage} ({'; '.join(why)})" for stage, why in stale.items())
    return CheckpointError(
        f"stale in {root}: {told}",
        "Train again, in this order, by `sostenuto train STAGE --fresh`; or give --allow-stale to go on with "
        "them as they are",
    )


def explain_divergence(
    error: TrainingDiverged, recipe: Recipe, step: int, windows: Mapping[str, Sequence[str]]
) -> TrainingDiverged:
    """The error with the windows of the step's batches, and the settings by which the run can go on."""
    some = (f"{corpus} {', '.join(ids[:SHOWN_WINDOWS])}" for corpus, ids in windows.items())
    problem = f"{error.problem} (windows: {'; '.join(some)}; all in {recipe.name}/{DIVERGED_FILE})"
    told, group = TrainingDiverged(problem, error.remedy), group_of(recipe.name)
    rate = float(f"{getattr(recipe.stage, error.rate) / 10:.3g}")
    lower: dict[str, object] = {f"{group}.{error.rate}": rate}
    leave_out: dict[str, object] = {f"{group}.skip_steps": [*recipe.stage.skip_steps, step]}
    told.changes = {} if recipe.name in BASELINES else lower if recipe.critic_only else lower | leave_out
    return told
