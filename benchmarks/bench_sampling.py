"""Frames per second of a clip: text encoder, few-step sampler and decoder, by one worker and by several.

    python benchmarks/bench_sampling.py [--config tiny] [--workers 1 2] [--set NAME=VALUE] [--json FILE]

Networks have the preset's shapes and random weights (`wan-1.3b`: also UMT5-XXL and Wan's autoencoder, 40 GiB
on a GPU); the clip is as long as LONG's. One clip warms up and is not counted; of those after it the fastest
is taken, with its parts. Reading weights and writing files are not in it. Seconds are those of the first
worker, which encodes, samples and decodes, and has most frames: CPU time on a CPU, where clocks tell of other
work, and what a worker waits for without computing is not seen; the clock on GPUs, one per worker (`--gpu`).
Only ratios of one run mean something.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from timing import write
from torch import distributed, multiprocessing

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jobs.config.load import load  # noqa: E402
from jobs.config.schema import RunConfig  # noqa: E402
from jobs.config.shapes import shapes  # noqa: E402
from models.autoencoders.kinds import Autoencoder, autoencoder_kind  # noqa: E402
from models.config import TextConfig  # noqa: E402
from models.rng import Key  # noqa: E402
from models.text.conditioning import Conditioning, NgramEncoder, batched  # noqa: E402
from pipelines.checkpoints import Network, NetworkSpec  # noqa: E402
from pipelines.context import FrameGroup  # noqa: E402
from pipelines.generation import Method, generate_latents  # noqa: E402
from pipelines.sharing import following, leading  # noqa: E402

CAPTION = "a bay at dusk, streaked sky, amber sun, slow waves rolling in"
UMT5_XXL = {"d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 256384}
"""Sizes of Wan's text encoder, as its config.json has them; its width is `text.dim`."""


def network(config: RunConfig, device: torch.device) -> Network:
    """A distilled student of random weights."""
    size = shapes(config)
    spec = NetworkSpec(
        "student",
        config.model,
        config.text,
        size.channels,
        (size.long_frames, size.channels, size.height, size.width),
        distilled=True,
        flow=config.flow,
        sampling=config.sampling,
    )
    torch.manual_seed(0)
    return Network(spec.build(device).eval().requires_grad_(False), spec)


def autoencoder(config: RunConfig, device: torch.device) -> Autoencoder:
    """Of random weights, or fitted on noise."""
    if config.autoencoder.kind == "wan":
        from diffusers import AutoencoderKLWan

        from models.autoencoders.wan import WanAutoencoder

        return WanAutoencoder(AutoencoderKLWan(), device)
    data, channels = config.data, shapes(config).channels
    kind = autoencoder_kind(dataclasses.replace(config.autoencoder, components=channels))
    noise = np.random.default_rng(0).integers(0, 256, (64, data.height, data.width, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        for _ in kind.fit(noise, data.height, data.width, Path(folder)):
            pass
        return kind.load(Path(folder), device)


def text_encoder(config: TextConfig, device: torch.device) -> Callable[[str], Conditioning]:
    """Of random weights; its tokens are random where the tokenizer would need files."""
    if config.kind == "ngram":
        return lambda caption: NgramEncoder(config).encode([caption])
    from transformers import UMT5Config, UMT5EncoderModel

    from models.text.umt5 import Umt5Encoder

    def tokens(captions: list[str], **_: Any) -> SimpleNamespace:
        ids = torch.randint(UMT5_XXL["vocab_size"], (len(captions), config.max_tokens))
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))

    with device:
        model = UMT5EncoderModel(UMT5Config(d_model=config.dim, feed_forward_proj="gated-gelu", **UMT5_XXL))
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    encoder = Umt5Encoder(model.to(dtype), tokens, config.max_tokens, device)
    return lambda caption: batched(encoder.embed([caption]), config)


def clips(config: RunConfig, group: FrameGroup, device: torch.device, count: int) -> list[dict[str, float]]:
    """Seconds of each part of each clip, in the first process."""
    student, code = network(config, device), autoencoder(config, device)
    encode = text_encoder(config.text, device)
    method = Method("dm", "few_step", len(config.sampling.steps))

    def now() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    found = []
    with leading(student, group) if group.size > 1 else nullcontext():
        for sample in range(count):
            laps = [now()]
            caption = encode(CAPTION)
            laps.append(now())
            latents = generate_latents(
                student, method, student.spec.shape, caption, Key(0, purpose="bench"), [sample],
                sampling=config.sampling, flow=config.flow,
            )  # fmt: skip
            laps.append(now())
            code.decode(latents).cpu()
            laps.append(now())
            found.append(dict(zip(("text", "sampler", "decode"), np.diff(laps).tolist(), strict=True)))
    return found


def _work(rank: int, size: int, config: RunConfig, gpu: bool, count: int, out: str) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{out}/meeting", rank=rank, world_size=size)
    group = FrameGroup(rank, size)
    if rank:
        following(network(config, device), "dm", group)
    else:
        Path(out, "clips.json").write_text(json.dumps(clips(config, group, device, count)))
    distributed.barrier()
    distributed.destroy_process_group()


def measured(config: RunConfig, size: int, *, gpu: bool, repeats: int) -> dict[str, float]:
    """Seconds by part of the fastest clip of `repeats`, after one that is not counted."""
    with tempfile.TemporaryDirectory() as out:
        multiprocessing.spawn(_work, (size, config, gpu, 1 + repeats, out), nprocs=size)
        _, *counted = json.loads(Path(out, "clips.json").read_text())
    return min(counted, key=lambda parts: sum(parts.values()))


def row(name: str, config: RunConfig, size: int, parts: dict[str, float], alone: float) -> dict[str, Any]:
    """What is told of a preset and a number of workers; `alone` is the seconds of the first number."""
    seconds, frames = sum(parts.values()), config.data.long_frames
    return {
        "case": f"{name}, {size} worker{'s' if size > 1 else ''}",
        "frames": frames,
        "seconds": round(seconds, 4),
        "fps": round(frames / seconds, 3),
        "ratio": round(alone / seconds, 3),
        "parts_s": {part: round(own, 5) for part, own in parts.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", nargs="+", default=["tiny"])
    parser.add_argument("--set", action="append", default=[], help="a setting, as the command line takes it")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5, help="clips that are counted")
    parser.add_argument("--gpu", action="store_true", help="one GPU per worker")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in given.config:
        config, alone = load(name, given.set), 0.0
        for size in given.workers:
            parts = measured(config, size, gpu=given.gpu, repeats=given.repeats)
            alone = alone or sum(parts.values())
            rows.append(row(name, config, size, parts, alone))
            print(json.dumps(rows[-1]), flush=True)
    if given.json:
        write(given.json, "cuda" if given.gpu else "cpu", rows, settings=given.set, repeats=given.repeats)


if __name__ == "__main__":
    main()
