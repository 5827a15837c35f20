"""SHORT and LONG for the preset `mouse`, from one public video of a mouse in an open field.

    python benchmarks/make_mouse.py m3v1mp4.mp4 [--out clips/mouse]
    python benchmarks/make_mouse.py --download m3v1mp4.mp4

The video is an example of DeepLabCut, 78 seconds of 640x480 at 30 frames a second (LGPL-3.0, 2.2 MB):
github.com/DeepLabCut/DeepLabCut, commit 4c67067, examples/openfield-Pranav-2018-10-30/videos/m3v1mp4.mp4. A
file with another sha256 is refused; with --download it is fetched from there first.

Pictures are averaged to 128x96, at 10 frames a second. SHORT is sharp clips of 2 seconds, one from each
second, LONG blurred clips of 7 seconds (Gaussian, 2.2 pixels), one from each three and a half; both plain and
mirrored, which their captions say. The folder then has all that a run needs:

    sostenuto quickstart --config mouse
"""

import argparse
import hashlib
import itertools
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipelines.media.video import decode, write_mp4

COMMIT = "4c6706710e42c3b6a4b1d5230f62eb58c1bbfc79"
PATH = "examples/openfield-Pranav-2018-10-30/videos/m3v1mp4.mp4"
URL = f"https://raw.githubusercontent.com/DeepLabCut/DeepLabCut/{COMMIT}/{PATH}"
SHA256 = "e2394b4221821cdb7206910a6efcec9db338cb497d1f880bd5a0ef2fd087ce59"
EVERY, FPS = 3, 10
SHRINK = 5
BLUR = 2.2
CLIPS = {"short": (20, 10), "long": (70, 35)}
"""Frames of a clip, and from one clip to the next."""
CAPTIONS = {False: "a mouse in an open field, plain", True: "a mouse in an open field, mirrored"}


def pictures(video: Path) -> Iterator[NDArray[np.uint8]]:
    """Every third frame, averaged to 128x96, in order: to a reader that jumps this file gives grey frames."""
    for frame in itertools.islice(decode(str(video)), 0, None, EVERY):
        height, width, _ = frame.shape
        cells = frame.reshape(height // SHRINK, SHRINK, width // SHRINK, SHRINK, 3)
        yield cells.mean(axis=(1, 3)).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path, help="the file; with --download, where to put it")
    parser.add_argument(
        "--out", type=Path, default=Path("clips/mouse"), help="gets the folders short and long"
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch the file from GitHub, unless it is there"
    )
    args = parser.parse_args()
    if args.download and not args.video.exists():
        print(f"fetching {URL}")
        urllib.request.urlretrieve(URL, args.video)
    if not args.video.exists():
        parser.error(f"{args.video} is not there: fetch {URL}, or add --download")
    if (found := hashlib.sha256(args.video.read_bytes()).hexdigest()) != SHA256:
        parser.error(f"{args.video} has sha256 {found}, not {SHA256}: fetch {URL}")

    frames = np.stack(list(pictures(args.video)))
    for corpus, (length, stride) in CLIPS.items():
        folder = args.out / corpus
        folder.mkdir(parents=True, exist_ok=True)
        looks = gaussian_filter(frames, (0, BLUR, BLUR, 0)) if corpus == "long" else frames
        starts = range(0, len(frames) - length + 1, stride)
        for start, mirrored in itertools.product(starts, CAPTIONS):
            clip = looks[start : start + length]
            name = folder / f"{start:03d}{'m' if mirrored else ''}"
            write_mp4(name.with_suffix(".mp4"), clip[:, :, ::-1] if mirrored else clip, FPS)
            name.with_suffix(".txt").write_text(CAPTIONS[mirrored] + "\n")
        print(f"{folder}: {len(starts) * len(CAPTIONS)} clips of {length / FPS:g} seconds")


if __name__ == "__main__":
    main()
