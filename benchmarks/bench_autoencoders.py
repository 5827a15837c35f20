"""The convolutional autoencoder against patches of principal components, at the same numbers per pixel.

    python benchmarks/bench_autoencoders.py FOLDER [--height 48 --width 64] [--frames 2500] [--json FILE]

FOLDER holds MP4 files. Codes are fitted on frames of the first four fifths of them, by name, and measured
on the rest:

PSNR         of all pixels, and of those that differ by more than 16 of 255 from the median picture
edges        root mean square gradient of what is decoded, 1 for that of the frames
seams        mean change of the error from pixel to pixel across the borders of squares, over that elsewhere:
             1 where there are none
noisy PSNR   as the second PSNR, with noise of a fifth of the latents' deviation before decoding
seconds      of fitting; milliseconds to encode and to decode a frame, on one thread
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from timing import milliseconds, write
from torch import Tensor

from models.autoencoders.kinds import Autoencoder, autoencoder_kind, load_autoencoder
from models.config import AutoencoderConfig
from models.rng import Key
from pipelines.media.video import read_mp4
from pipelines.storage import temporary_folder

CODES = tuple(
    AutoencoderConfig(kind=kind, patch_size=patch, components=components)
    for patch, components in ((8, 8), (16, 16), (16, 32))
    for kind in ("pca", "conv")
)
STANDS_OUT = 16
NOISE = 0.2


def frames_of(folder: Path, height: int, width: int) -> list[NDArray[np.uint8]]:
    """Videos [F, H, W, 3], area-averaged to this size."""
    videos = []
    for path in sorted(folder.glob("*.mp4")):
        pixels = torch.from_numpy(read_mp4(path)).movedim(-1, 1).float()
        small = F.interpolate(pixels, (height, width), mode="area")
        videos.append(small.round().to(torch.uint8).movedim(1, -1).numpy())
    return videos


def psnr(error: Tensor) -> float:
    return float(-10 * (error.square().mean() / 255**2).log10())


def gradient(pixels: Tensor) -> float:
    return float((pixels.diff(dim=1).square().mean() + pixels.diff(dim=2).square().mean()).sqrt())


def seams(error: Tensor, patch: int) -> float:
    """Of the error [N, H, W, 3]."""
    at, off = [], []
    for axis in (1, 2):
        steps = error.diff(dim=axis).abs().movedim(axis, 0)
        border = torch.arange(1, len(steps) + 1) % patch == 0
        at.append(steps[border].mean())
        off.append(steps[~border].mean())
    return float(sum(at) / sum(off))


def measure(code: Autoencoder, patch: int, frames: Tensor, ground: Tensor) -> dict[str, float]:
    latents = code.encode(frames[None])
    clean = code.decode(latents)[0].float()
    noise = Key(0, purpose="noise").numpy().standard_normal(latents.shape, np.float32)
    noisy = code.decode(latents + NOISE * latents.std() * torch.from_numpy(noise))[0].float()
    moving = (frames.float() - ground).abs().amax(dim=-1) > STANDS_OUT
    error = clean - frames.float()
    one = frames[None, :1]
    return {
        "psnr": psnr(error),
        "moving_psnr": psnr(error[moving]),
        "edges": gradient(clean) / gradient(frames.float()),
        "seams": seams(error, patch),
        "noisy_psnr": psnr((noisy - frames.float())[moving]),
        "encode_ms": milliseconds(lambda: code.encode(one), "cpu", 3),
        "decode_ms": milliseconds(lambda: code.decode(latents[:, :1]), "cpu", 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--height", type=int, default=48)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--frames", type=int, default=2500, help="frames to fit on")
    parser.add_argument("--steps", type=int, default=AutoencoderConfig.fit_steps, help="of the network")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    videos = frames_of(args.folder, args.height, args.width)
    split = len(videos) * 4 // 5
    if not 0 < split < len(videos):
        parser.error(f"{args.folder} holds {len(videos)} MP4 files: give two or more")
    sample = np.concatenate(videos[:split])
    sample = sample[np.linspace(0, len(sample) - 1, min(args.frames, len(sample))).round().astype(int)]
    held_out = torch.from_numpy(np.concatenate(videos[split:]))
    ground = torch.from_numpy(np.median(sample, axis=0)).float()

    rows: list[dict[str, Any]] = []
    for config in CODES:
        started = time.thread_time()
        with temporary_folder() as folder:
            for _ in autoencoder_kind(config).fit(sample, args.height, args.width, folder):
                pass
            seconds = time.thread_time() - started
            code = load_autoencoder(folder)
        name = f"{config.kind}, {config.components} per {config.patch_size}x{config.patch_size}"
        found = measure(code, config.patch_size, held_out, ground)
        rows.append({"code": name, **found, "fit_seconds": seconds})
        print(
            name, *(f"{key} {value:.4g}" for key, value in found.items()), f"fit {seconds:.0f} s", flush=True
        )
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()))
    Console().print(table)
    if args.json:
        write(args.json, "cpu", rows, height=args.height, width=args.width, frames=len(sample))


if __name__ == "__main__":
    main()
