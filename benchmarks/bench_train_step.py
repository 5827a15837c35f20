"""A distillation step against a straightforward one on the same networks, in one run.

    python benchmarks/bench_train_step.py [--config tiny] [--frames 32 64 128] [--updates 5] [--json FILE]

The straightforward step scores a window at a time, asks the teacher twice for guidance, and rolls out anew
for every critic update, as published code does (Self-Forcing, arXiv 2506.08009: five updates, each on all of
its own rollout). For long videos that reads in two ways, each a side of its own: the critic learns `all`
windows of the rollout, or as `few` as ours takes from its pool; a place in the videos at a time. Networks and
corpora are random, of the preset's shapes. Seconds are CPU time of one thread, the sides in turn, means over
the steps; only ratios of one run mean something.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timing import write
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jobs.config.load import load  # noqa: E402
from jobs.config.shapes import shapes  # noqa: E402
from models.ddt import Student  # noqa: E402
from models.dit import DiT  # noqa: E402
from models.flow import interpolate, x0_prediction  # noqa: E402
from models.losses import flow_matching_loss  # noqa: E402
from models.rng import Key, normal  # noqa: E402
from pipelines.training.config import TrainingConfig  # noqa: E402
from pipelines.training.distill import DistillStage  # noqa: E402
from pipelines.training.distillation.scoring import score_times  # noqa: E402
from pipelines.training.monitors.phases import Phases  # noqa: E402
from pipelines.training.recipes import Recipe  # noqa: E402
from pipelines.training.stage import Batch, Batches, StepResult, apply_update  # noqa: E402
from pipelines.training.state import TrainState, save_state  # noqa: E402
from pipelines.training.supervised import SupervisedStage, supervised_squares  # noqa: E402

GUIDANCE = 5.0
CAPTIONS = {"long": ["a bay at dusk, slow waves"], "short": ["a red sun"]}


class Straightforward(DistillStage):
    """The same losses and updates, written down as the equations read.

    The critic learns all windows of its rollouts, or `critic_batch` of them.
    """

    few = False

    def step(self, state: TrainState, batches: Batches, key: Key) -> StepResult:
        config, student, critic = self.config, state.modules["student"], state.modules["critic"]
        assert isinstance(student, Student)
        assert isinstance(critic, DiT)
        assert batches.long is not None
        shape = tuple(batches.long.latents.shape[1:])
        loss = supervised_squares(student.flow_matching, batches.long, self.recipe, self.captions, key).mean()
        rollout = self._rolled(student, shape, key)
        tiling = self.config.tiling(shape[0])
        for place, window in enumerate(tiling):
            w = rollout.video[:, window.start : window.stop]
            at = key.at(purpose=f"window-{place}")
            noise = normal(w.shape[1:], at, rollout.samples, w.device)
            t = score_times(self.recipe, at, rollout.samples, state.step)
            with torch.no_grad():
                x_t, text = interpolate(w, noise, t), rollout.conditioning
                cond, without = (x0_prediction(self.teacher, x_t, t, given) for given in (text, text.null()))
                real = without + GUIDANCE * (cond - without)
                fake = x0_prediction(critic, x_t, t, text)
                scale = (w - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
                target = w - (fake - real) / scale
            loss = loss + 0.5 * F.mse_loss(w, target) / len(tiling)
        loss.backward()
        apply_update(state, "student", config, config.learning_rate, self.workers)
        state.averages["student"].update(student)
        for update in range(config.critic_updates):
            at = key.at(purpose=f"critic-{update}")
            with torch.no_grad():
                fresh = self._rolled(student, shape, at)
            count = config.critic_batch // config.rollout_batch if self.few else len(tiling)
            order = at.numpy().permutation(len(tiling))
            places = [tiling[int(place)] for place in order[:count]]
            for place, window in enumerate(places):
                w = fresh.video[:, window.start : window.stop]
                own = at.at(purpose=f"window-{place}")
                noise = normal(w.shape[1:], own, fresh.samples, w.device)
                t = score_times(self.recipe, own, fresh.samples, state.step)
                loss = flow_matching_loss(critic, w, noise, t, fresh.conditioning) / len(places)
                loss.backward()
            apply_update(state, "critic", config, config.critic_learning_rate, self.workers)
        state.step += 1
        return StepResult({})

    def _rolled(self, student: Student, shape: tuple[int, ...], key: Key) -> Any:
        stop = key.at(purpose="exit").integer(len(self.exit_shares))
        samples = range(self.config.rollout_batch)
        return self.rollouts.make(student, shape, key, samples, self.rollouts.captions_at(key), stop)


class Few(Straightforward):
    few = True


def recipe_of(config: TrainingConfig, frames: int, start: dict[str, str], stage: str) -> Recipe:
    size = shapes(config)  # type: ignore[arg-type]
    inner = (size.channels, size.height, size.width)
    return Recipe(
        name=stage, root="", dataset="", cluster=config.cluster, settings={}, seed=0, model=config.model,
        text=config.text, flow=config.flow, loss=config.loss, sampling=config.sampling,
        stage=getattr(config, stage), lora=config.lora, critic_only=False, start=start, inputs={}, code="",
        lineage={},
        short_shape=(size.short_frames, *inner), long_shape=(frames, *inner), crop_safe=True,
    )  # fmt: skip


def starts(config: TrainingConfig, frames: int, folder: Path) -> dict[str, str]:
    """Checkpoints of an untrained teacher and student."""
    found: dict[str, str] = {}
    for role, stage in (("teacher", "teacher"), ("student", "sft")):
        made = SupervisedStage(recipe_of(config, frames, dict(found), stage))
        (folder / role).mkdir()
        save_state(made.init("cpu"), made.spec, folder / role)
        found[role] = str(folder / role)
    return found


def rows(config: TrainingConfig, lengths: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """Mean CPU seconds of `steps` steps of each side by length, in turn."""
    made = []
    for frames in lengths:
        with tempfile.TemporaryDirectory() as folder:
            start = starts(config, frames, Path(folder))
            recipe = recipe_of(config, frames, start, "distill")
            kinds = {"ours": DistillStage, "few": Few, "all": Straightforward}
            sides = {name: kind(recipe, CAPTIONS) for name, kind in kinds.items()}
            states = {name: side.init("cpu") for name, side in sides.items()}
        count = config.distill.long_batch
        latents = normal(recipe.long_shape, Key(0, purpose="corpus"), range(count))
        batches = Batches(long=Batch(latents, CAPTIONS["long"] * count, range(count), count))
        spent = dict.fromkeys(sides, 0.0)
        for name, side in sides.items():
            side.step(states[name], batches, Key(1, purpose="warm"))
        phases = sides["ours"].phases = Phases()
        phases.lap()
        shares: dict[str, float] = {}
        for number in range(steps):
            for name, side in sides.items():
                if name == "ours":
                    phases.lap()
                began = time.thread_time()
                side.step(states[name], batches, Key(0, number, purpose="step"))
                spent[name] += time.thread_time() - began
                if name == "ours":
                    for phase, own in phases.lap().items():
                        shares[phase] = shares.get(phase, 0.0) + own
        row: dict[str, Any] = {
            "frames": frames,
            **{f"{name}_s": value / steps for name, value in spent.items()},
        }
        row |= {f"{name}_ratio": spent[name] / spent["ours"] for name in ("few", "all")}
        row["shares"] = {phase: round(own / sum(shares.values()), 3) for phase, own in shares.items()}
        told = [f"{name} {row[f'{name}_s']:.3f} s, {row[f'{name}_ratio']:.2f}x" for name in ("few", "all")]
        print(f"T={frames:<4} ours {row['ours_s']:.3f} s  {'  '.join(told)}  {row['shares']}", flush=True)
        made.append(row)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument(
        "--updates", type=int, default=5, help="critic updates per step, as published runs take"
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load(given.config)
    config = dataclasses.replace(
        config,
        distill=dataclasses.replace(config.distill, critic_updates=given.updates),
        loss=dataclasses.replace(config.loss, guidance_scale=GUIDANCE, anchor_weight=0.0),
    )
    made = rows(config, sorted(given.frames), given.steps)
    first, last = made[0], made[-1]
    linear = (last["ours_s"] / first["ours_s"]) / (last["frames"] / first["frames"])
    print(f"from T={first['frames']} to {last['frames']} the cost grows {linear:.2f} times as fast as T")
    if given.json:
        write(given.json, "cpu", made, config=given.config, critic_updates=given.updates, growth=linear)


if __name__ == "__main__":
    main()
