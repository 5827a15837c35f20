"""One step of distillation as wide as Wan 2.1's 1.3B and four blocks deep, on clips of 30 s, in bfloat16.

    python benchmarks/bench_wide_step.py [--device cuda] [--frames 21 121] [--json FILE]

The real step (`DistillStage`) with random networks and latents of 480 x 832 video, one clip and one rollout:
121 latent frames are 188,760 tokens. Blocks recompute their activations, as in the preset. One step of the
shortest length compiles and does not count; then each length has one: its seconds by phase, memory, losses.
It needs torch, triton, einops, safetensors and numpy alone.
"""

import argparse
import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from timing import hardware, write

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models.blocks import checkpoint_blocks  # noqa: E402
from models.config import (  # noqa: E402
    FlowConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    SamplingConfig,
    TextConfig,
)
from models.device import half_precision  # noqa: E402
from models.rng import Key, normal  # noqa: E402
from pipelines.training.config import ClusterConfig, DistillConfig, StageConfig  # noqa: E402
from pipelines.training.distill import DistillStage  # noqa: E402
from pipelines.training.monitors.phases import Phases  # noqa: E402
from pipelines.training.recipes import Recipe  # noqa: E402
from pipelines.training.stage import Batch, Batches  # noqa: E402
from pipelines.training.state import TrainState, save_state  # noqa: E402
from pipelines.training.supervised import SupervisedStage  # noqa: E402

WIDE = ModelConfig(
    num_layers=4,
    head_layers=2,
    num_heads=12,
    head_dim=128,
    ffn_dim=8960,
    freq_dim=256,
    patch_size=(1, 2, 2),
    attention_pattern="WWGW",
    window=20,
    rope_theta_windowed=10000.0,
    rope_theta_global=10000.0,
    clip_position=False,
    precondition=False,
    init="wan",
)
"""Of the preset wan-1.3b, four of its thirty blocks."""
LATENT = (16, 60, 104)
"""Channels, rows and columns of a latent frame."""
DISTILL = DistillConfig(
    long_batch=1,
    rollout_batch=1,
    critic_batch=2,
    window_frames=21,
    window_stride=10,
    windows_per_video=4,
    learning_rate=2e-6,
    critic_learning_rate=4e-7,
)
CAPTIONS = {"long": ["a red sun sets over a bay, slow waves"], "short": ["a red sun"]}


@dataclasses.dataclass(frozen=True)
class Size:
    """What is run; a test runs less."""

    model: ModelConfig = WIDE
    latent: tuple[int, int, int] = LATENT
    distill: DistillConfig = DISTILL
    text: TextConfig = TextConfig(dim=4096, max_tokens=512)


def recipe_of(size: Size, frames: int, name: str, stage: StageConfig, start: dict[str, str]) -> Recipe:
    """A stage's recipe without a run around it."""
    return Recipe(
        name=name, root="", dataset="", cluster=ClusterConfig(), settings={}, seed=0, model=size.model,
        text=size.text, flow=FlowConfig(timestep_shift=5.0, timestep_shift_frames=None),
        loss=LossConfig(guidance_scale=5.0, anchor_weight=0.0),
        sampling=SamplingConfig(steps=(1.0, 0.75, 0.5, 0.25)), stage=stage, lora=LoraConfig(),
        critic_only=False, start=start, inputs={}, code="", lineage={},
        short_shape=(size.distill.window_frames, *size.latent), long_shape=(frames, *size.latent),
        crop_safe=True,
    )  # fmt: skip


def prepared(size: Size, frames: int, device: str) -> tuple[DistillStage, TrainState]:
    """The stage, and its state with blocks that recompute, from an untrained teacher and student."""
    starts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for role, name, stage in (
            ("teacher", "teacher", StageConfig(short_batch=1)),
            ("student", "sft", StageConfig(long_batch=1)),
        ):
            made = SupervisedStage(recipe_of(size, frames, name, stage, dict(starts)))
            starts[role] = f"{folder}/{role}"
            Path(starts[role]).mkdir()
            save_state(made.init(device), made.spec, Path(starts[role]))
        stage = DistillStage(recipe_of(size, frames, "distill", size.distill, starts), CAPTIONS)
        state = stage.init(device)
    for module in state.modules.values():
        checkpoint_blocks(module)
    return stage, state


def step(stage: DistillStage, state: TrainState, frames: int, size: Size, device: str) -> dict[str, float]:
    """One step on a random clip of so many latent frames; its metrics."""
    latents = normal((frames, *size.latent), Key(0, purpose="clip"), range(1)).to(device)
    with half_precision(torch.device(device)):
        batches = Batches(long=Batch(latents, CAPTIONS["long"], range(1), 1))
        return dict(stage.step(state, batches, Key(0, state.step, purpose="step")).metrics)


def rows(size: Size, lengths: Sequence[int], device: str) -> Iterator[dict[str, Any]]:
    """A row a length, the shortest first: seconds of a step, by phase, and its losses."""
    stage, state = prepared(size, max(lengths), device)
    step(stage, state, min(lengths), size, device)
    for frames in sorted(lengths):
        stage.phases = Phases(device)
        wait(device)
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        metrics = step(stage, state, frames, size, device)
        wait(device)
        seconds = time.perf_counter() - began
        _, height, width = size.latent
        tokens = frames * (height // size.model.patch_size[1]) * (width // size.model.patch_size[2])
        row: dict[str, Any] = {"case": f"step T={frames}", "tokens": tokens, "seconds": seconds}
        row["phases"] = {name: round(spent, 3) for name, spent in stage.phases.lap().items()}
        row["metrics"] = metrics
        if device != "cpu":
            row["peak_bytes"] = torch.cuda.max_memory_allocated()
        wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
        yield row | ({"error": f"not finite: {', '.join(wrong)}"} if wrong else {})


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> int:
    """Measure, print and write; 1 if a number was not finite."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--frames", type=int, nargs="+", default=[21, 121])
    parser.add_argument("--json", type=Path, help="write the rows here too")
    given = parser.parse_args()
    print(f"{hardware(given.device)}, torch {torch.__version__}", flush=True)
    found: list[dict[str, Any]] = []
    for row in rows(Size(), given.frames, given.device):
        found.append(row)
        memory = f", {row['peak_bytes'] / 2**30:.1f} GiB" if "peak_bytes" in row else ""
        print(f"{row['case']}, {row['tokens']:,} tokens: {row['seconds']:.2f} s{memory}  {row['phases']}")
        print(f"  {row.get('error', row['metrics'])}", flush=True)
        if given.json:
            write(given.json, given.device, found)
    return int(any("error" in row for row in found))


if __name__ == "__main__":
    sys.exit(main())
