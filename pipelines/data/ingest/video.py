"""One video of a group: cut into windows, each judged, those that are kept encoded."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from models.autoencoders.kinds import Autoencoder
from pipelines.data.curate.quality import Curator, Verdict
from pipelines.data.decode.decoder import Probe
from pipelines.data.decode.transforms import nearest
from pipelines.data.ingest.decoded import Event, Frames, next_probe, rest_of_video
from pipelines.data.ingest.groups import Task
from pipelines.data.ingest.windowing import Cutting, Floats, encoded_windows, sliding
from pipelines.data.source.manifest import Source
from pipelines.data.store.ledger import Status, Window
from pipelines.data.types import Reject, Rejected


def read_video(
    task: Task,
    corpus: str,
    source: Source,
    events: Iterator[Event],
    take: "Callable[[Video, Iterator[Frames]], None]",
) -> Status:
    """How a video ended.

    Args:
        events: of the group; this video's are next, and are used up.
        take: uses the video's frames to the end.
    """
    status = new_status(corpus, source)
    try:
        probe = next_probe(events)
        status = _probed(status, probe)
        video = Video(task, corpus, source, probe)
        take(video, rest_of_video(events))
        status = replace(status, **video.counts())
        video.require_windows()
    except Rejected as rejected:
        return rejected_status(status, rejected.reject)
    return status


class Video:
    """One video being cut, judged and encoded."""

    def __init__(self, task: Task, corpus: str, source: Source, probe: Probe) -> None:
        self._corpus, self._source, self._reader = corpus, source, probe.reader
        self._fps = task.data.fps or probe.fps
        self._curator = Curator(task.data.curation, self._fps, probe.fps)
        self._verdicts: dict[int, Verdict] = {}
        self._lengths: dict[int, int] = {}
        self._frames = 0
        self.size = nearest(probe.height, probe.width, task.data.sizes)
        """Height and width of its frames as they are cut, pixels."""
        (length, stride), *shorter = task.data.cuts_of(corpus)
        self._shortest = shorter[-1][0] if shorter else length
        self._cutting = Cutting(
            length, stride, lambda: self._curator.shot_starts, self._keeps, task.data.encode_batch, shorter
        )

    def windows(self, chunks: Iterator[Frames], autoencoder: Autoencoder) -> Iterator[tuple[Window, Floats]]:
        """The windows that are kept, with their latents."""
        frames = self._curator.watch(self._counted(chunks))
        for start, latents in encoded_windows(frames, autoencoder, self._cutting):
            yield self._window(start, self._verdicts.pop(start)), latents

    def judged(self, chunks: Iterator[Frames]) -> list[Window]:
        """The windows that are kept, without their latents."""
        frames = self._curator.watch(self._counted(chunks))
        starts = [start for start, _ in sliding(frames, self._cutting)]
        return [self._window(start, self._verdicts.pop(start)) for start in starts]

    def _counted(self, chunks: Iterator[Frames]) -> Iterator[Frames]:
        for frames in chunks:
            self._frames += len(frames)
            yield frames

    def _keeps(self, start: int, length: int) -> bool:
        verdict = self._curator.judge(start, length)
        self._lengths[start] = length
        self._verdicts[start] = verdict
        return not verdict.reason

    def _window(self, start: int, verdict: Verdict) -> Window:
        return Window(
            window_id=f"{self._corpus}-{self._source.id[:32]}-{start:08d}",
            source_id=self._source.id,
            start_frame=start,
            num_frames=self._lengths[start],
            reader=self._reader,
            shot=verdict.shot,
            reason=verdict.reason,
            **verdict.scores._asdict(),
        )

    @property
    def dropped(self) -> list[Window]:
        """The windows that are not kept, once all were judged."""
        return [self._window(start, verdict) for start, verdict in self._verdicts.items()]

    def counts(self) -> dict[str, Any]:
        """For the status."""
        ends = pairwise([*self._lengths, self._frames])
        shown = sum(min(self._lengths[start], after - start) for start, after in ends)
        return {
            "num_frames": self._frames,
            "seconds": self._frames / self._fps,
            "num_windows": len(self._lengths) - len(self._verdicts),
            "dropped_windows": len(self._verdicts),
            "tail_frames": self._frames - shown,
        }

    def require_windows(self) -> None:
        """Refuse a video of which nothing is left."""
        if len(self._lengths) > len(self._verdicts):
            return
        if self._verdicts:
            commonest = Counter(v.reason for v in self._verdicts.values()).most_common(1)[0][0]
            raise Rejected(Reject("curation", f"each of {len(self._verdicts)} windows: {commonest}"))
        shots = len(self._curator.shot_starts) + 1
        told = f"{self._frames} frames" + (f" in {shots} shots" if shots > 1 else "")
        reason = f"{told}, a window of {self._corpus.upper()} needs {self._shortest}"
        raise Rejected(Reject("window", reason))


def new_status(corpus: str, source: Source) -> Status:
    """The status of a video that nothing is known of yet."""
    return Status(
        corpus=corpus,
        source_id=source.id,
        source=source.path,
        caption=source.caption,
        num_bytes=source.num_bytes,
        status="written",
    )


def rejected_status(status: Status, reject: Reject) -> Status:
    """The same, rejected."""
    return replace(
        status, status="rejected", stage=reject.stage, reason=reject.reason, num_windows=0, latents_sha256=""
    )


def _probed(status: Status, probe: Probe) -> Status:
    return replace(
        status,
        reader=probe.reader,
        reader_reason=probe.reader_reason,
        width=probe.width,
        height=probe.height,
        source_fps=probe.fps,
    )
