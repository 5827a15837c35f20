"""What docs/wan.md stands on, made small: a pretrained folder of the real classes, two corpora, settings."""

import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from tests.models.builders import randomize
from tests.pipelines.data.videos import low_rank, write_video

BASE = "pretrained/wan-2.1-1.3b"
CLIPS = os.environ.get("SOSTENUTO_TEST_CLIPS", "")
REAL = ("short/cat.mp4", "short/bbb_2s.mp4", "short/coffee.mp4", "long/flies_60s.mp4")
"""Real clips that are used where CLIPS names their folder."""

SMALL = """
data: {fps: 8.0, height: 32, width: 48, short_frames: 9, short_stride: 9, long_frames: 21, long_stride: 21,
       holdout: 0.0}
text: {dim: 16}
model: {num_layers: 3, head_layers: 1, num_heads: 2, head_dim: 12, ffn_dim: 32,
        attention_pattern: WGW, window: 2}
flow: {timestep_shift_frames: 3}
sampling: {ode_steps: 2, rollout_steps: 2}
sft: {steps: 2, lengths: [], long_batch: 2, learning_rate: 1e-3, warmup_steps: 0, log_every: 1,
      preview_every: 1}
mixed: {lengths: []}
warmup: {steps: 1}
distill: {steps: 2, lengths: [], long_batch: 2, learning_rate: 1e-3, critic_updates: 1, critic_batch: 2,
          rollout_batch: 2, windows_per_video: 2, window_frames: 3, window_stride: 2, ramp_steps: 1,
          log_every: 1, preview_every: 1}
evaluation: {videos: 4, reference_videos: 4, windows_per_video: 2, batch_size: 4, max_actors: 1, showcase: 1,
             temporal_videos: 2}
cluster: {num_workers: 1, use_gpu: false, max_failures: 0}
"""
"""Sizes and steps of the preset for two CPU cores; everything else is the preset's."""


def write_base(folder: Path, vae: Path, umt5: Path) -> None:
    """A Wan pipeline as diffusers writes it, whose transformer has the shape of SMALL and random weights."""
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        ffn_dim=32,
        num_layers=3,
    )
    with torch.random.fork_rng():
        randomize(transformer)
    WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(umt5 / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(umt5 / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(vae),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        transformer=transformer,
    ).save_pretrained(folder / BASE)


def write_corpora(folder: Path) -> None:
    """corpora/short and corpora/long: synthesised clips, and a few real ones where they are at hand."""
    for number in range(4):
        video = low_rank(20, 6, 64, 7, 1.0 + number)
        write_video(folder / "corpora" / "short" / f"a bay at dusk, number {number}.mp4", video, crf="4")
    for number in range(3):
        video = low_rank(44, 6, 64, 7, 50.0 + number)
        write_video(folder / "corpora" / "long" / f"slow waves, long clip {number}.mp4", video, crf="4")
    for name in REAL if CLIPS else ():
        shutil.copyfile(Path(CLIPS) / name, folder / "corpora" / name)
