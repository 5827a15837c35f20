"""Preview videos of a stage that trains."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.data.types import CorpusName
from pipelines.media.contact_sheet import contact_sheet, evenly, video_strip
from pipelines.media.video import write_mp4
from pipelines.storage import temporary_folder
from pipelines.tracking import Tracker

COLUMNS = 8


def preview(
    videos: Tensor, captions: Sequence[str], dataset: str, corpus: CorpusName, step: int, tracker: Tracker
) -> None:
    """Decodes latents [B, T, C, h, w], and files MP4s and a contact sheet under `preview/step-...`.

    Args:
        videos, captions: one caption for each.
        dataset: whose autoencoder decodes.
        corpus: has the frames per second of the videos.
        step: of the stage.
        tracker: takes the files.
    """
    autoencoder = dataset_autoencoder(dataset, videos.device)
    frames = torch.cat([autoencoder.decode(video[None]) for video in videos.cpu()]).numpy()
    fps = read_info(dataset).corpus(corpus).fps
    with temporary_folder() as folder:
        for index, video in enumerate(frames):
            write_mp4(folder / f"{index}.mp4", iter(video), fps)
        places = evenly(frames.shape[1], COLUMNS)
        strips = [
            video_strip({place: video[place] for place in places}, caption)
            for caption, video in zip(captions, frames, strict=True)
        ]
        contact_sheet(f"step {step}", strips).save(folder / "sheet.png")
        for path in sorted(folder.iterdir()):
            tracker.artifact(str(path), f"preview/step-{step:06d}")
