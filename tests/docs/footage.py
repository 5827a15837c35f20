"""The two folders that docs/data.md speaks of, synthesised: clips with a metadata.csv, and a few films."""

import csv
from pathlib import Path

from tests.pipelines.data.videos import low_rank, write_video

CLIPS, FILMS = 12, 3
FPS = 24


def write_footage(root: Path) -> dict[str, str]:
    """Make both below `root`; where they are, by their names on the page."""
    rows = []
    for number in range(CLIPS):
        name = f"{number + 1:05d}.mp4"
        write_video(root / "webvid" / name, low_rank(2 * FPS, 6, 64, 7, 1.0 + number), FPS, crf="4")
        rows.append((name, f"a beach at dusk, take {number % 4 + 1}"))
    whole = (root / "webvid" / rows[0][0]).read_bytes()
    (root / "webvid" / "00013.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "webvid" / "00014.mp4").write_bytes(whole)
    rows += [("00013.mp4", "a beach at noon"), ("00014.mp4", "a beach at dusk, take 1")]
    with (root / "webvid" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption"), *rows])
    for number in range(FILMS):
        video = low_rank(10 * FPS, 6, 64, 7, 50.0 + number)
        write_video(root / "films" / f"evening {number + 1}.mp4", video, FPS, crf="4")
    return {"/mnt/webvid": str(root / "webvid"), "/mnt/films": str(root / "films")}
