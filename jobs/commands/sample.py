"""`sostenuto sample`: videos from a trained network, as MP4, GIF and a contact sheet.

This process makes them; or `cluster.num_workers` on Ray do, of which groups of `cluster.context_parallel`
share the frames of each video. The first worker of a group writes its videos, this process what is about all.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from torch import distributed

from jobs.commands.runs import checkpoint_of
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.config.systems import method_of, read_times
from jobs.console import ConsoleProgress, print_line, warn
from jobs.ray_session import ray_session
from jobs.timeline import read_timeline
from models.config import SamplingConfig, TextConfig
from models.device import compute_device
from models.errors import ConfigError
from models.rng import Key
from models.text.kinds import text_kind
from pipelines.checkpoints import MANIFEST_FILE, load_network, read_spec
from pipelines.context import FrameGroup
from pipelines.creation import Cue, Maker, Request, is_picture, read_start
from pipelines.data.store.caption_embeddings import embed_captions, text_encoder
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.data.types import CorpusName
from pipelines.generation import Head, Method, check
from pipelines.media.color import Frames
from pipelines.media.contact_sheet import Strip, contact_sheet, evenly, video_strip
from pipelines.media.video import StreamedMp4, write_gif
from pipelines.ray_group import SILENCE, ray_group
from pipelines.ray_map import Pool
from pipelines.sharing import following, leading
from pipelines.storage import Storage, hash_of, temporary_folder
from pipelines.synthesis import Synthesis, synthesize
from pipelines.tracking import Progress
from pipelines.training.monitors.board import BoardProgress, progress_board, relayed_warnings
from pipelines.world.captions import caption
from pipelines.world.factors import all_labels

SHEET_COLUMNS = 9
SHEET_ROWS = 8
CORPORA_OF_WORLD = ("world", "short", "long")
"""Sources of captions whose clips have exact labels, where the run is one of the built-in world."""


def sample(
    config: RunConfig,
    *,
    checkpoint: str | None,
    count: int,
    captions: Sequence[str] | None,
    head: Head,
    steps: int | None,
    out: str | None,
    times: str | None = None,
    seconds: float | None = None,
    extend: str | None = None,
    image: str | None = None,
    loop: bool = False,
    timeline: str | None = None,
    negative: str | None = None,
    dataset: str | None = None,
    captions_from: str = "long",
    tars: bool = False,
    as_json: bool = False,
) -> list[str]:
    """Write `count` videos with their captions, on this machine's GPU if `cluster.use_gpu`, or on Ray by
    `cluster.num_workers`, groups of which make different ones; or a dataset of them, on Ray.

    Args:
        config: the run's settings.
        checkpoint: folder of a network; None is the run's distilled student, or its teacher.
        count: number of videos.
        captions: taken in turn; None takes different ones of LONG.
        head: `dm` takes the few steps that the checkpoint was distilled for, `fm` Euler steps; `teacher` goes
            window by window.
        steps: Euler steps, of the teacher for one window; None is the config's.
        out: folder; None is the run's samples/.
        times: of the few-step sampler in place of the checkpoint's own, as in 1,0.5.
        seconds: of a video, with what it begins with; None is what the network makes at once.
        extend, image: file of a video or a picture that all videos begin with.
        loop: the last frame is followed by the first.
        timeline: captions with their times, or a YAML file of them (jobs/timeline.py).
        negative: caption that guidance leads away from.
        dataset: folder or URI of a dataset of the first `count` videos, of which what is missing is made.
        captions_from: its captions, where none are given: `world`, all of the built-in world's; `short`,
            `long`, those of a corpus; or a text file with one per line.
        tars: it is made of tars for webdataset, not of files.
        as_json: print one JSON object on standard output and nothing else there.

    Returns:
        Paths of the MP4 files; of a dataset none.

    Raises:
        ConfigError: steps or times that do not suit the sampler, a head that is absent or untrained, no GPU,
            or a combination that makes no sense.
        DataError: a file to begin with that cannot be read.
        CheckpointError: there is no finished student.
        ClusterError: there is no room for the workers, or one of them died.
    """
    sampler = _sampler(config, checkpoint, head, steps, times, negative, as_json=as_json)
    if dataset is not None:
        unfit = {"extend": extend, "image": image, "loop": loop, "timeline": timeline, "negative": negative}
        _refuse_beside_dataset(unfit | {"out": out})
        write_dataset(
            config, sampler, count, captions, captions_from, seconds, tars, dataset, as_json=as_json
        )
        return []
    begin = _beginning(extend, image)
    return write_samples(
        config, sampler, count, captions, timeline, seconds, begin, out, loops=loop, as_json=as_json
    )


class Sampler(NamedTuple):
    """A network, and how it is sampled."""

    folder: str
    text: TextConfig
    method: Method
    sampling: SamplingConfig


def _sampler(
    config: RunConfig,
    checkpoint: str | None,
    head: Head,
    steps: int | None,
    times: str | None,
    negative: str | None,
    *,
    as_json: bool,
) -> Sampler:
    """Says where its times are not those that one would expect."""
    folder = checkpoint or checkpoint_of(config, "teacher" if head == "teacher" else "distill", "sample")
    folder = str(Storage(folder))
    spec, say = read_spec(folder), warn if as_json else print_line
    given, own = None if times is None else read_times(times), spec.sampling.steps
    if given:
        say(f"sampled at the times {list(given)}, not at those of its distillation, {list(own)}")
    elif head == "dm" and own != config.sampling.steps:
        say(f"sampled at the checkpoint's times {list(own)}, not at sampling.steps: --times has others")
    method, sampling = method_of(config, spec, head, steps, given)
    check(spec, method)
    if negative is None:
        return Sampler(folder, spec.text, method, sampling)
    if method.sampler == "few_step" or sampling.guidance_scale == 1:
        raise ConfigError(
            "--negative leads away by guidance, and this sampler is not guided",
            "Take --head fm with --set sampling.guidance_scale=3",
        )
    return Sampler(folder, dataclasses.replace(spec.text, negative_caption=negative), method, sampling)


def _story(captions: Sequence[str] | None, timeline: str | None) -> tuple[Sequence[str], tuple[Cue, ...]]:
    """Captions that videos begin with, in turn, and those that follow in all of them."""
    if timeline is None:
        return captions or (), ()
    if captions:
        raise ConfigError("--timeline and --caption both say what is shown", "Give one of them")
    first, *later = read_timeline(timeline)
    return [first.caption], tuple(later)


def _beginning(extend: str | None, image: str | None) -> str | None:
    """The file that videos begin with."""
    if extend and image:
        raise ConfigError("--extend and --image both say what the videos begin with", "Give one of them")
    if image and not is_picture(image):
        raise ConfigError(
            f"--image {image} is no PNG, JPEG or WebP picture",
            "Give one, or go on from a video with --extend",
        )
    return extend or image


def _refuse_beside_dataset(options: Mapping[str, object]) -> None:
    if unfit := [name for name, value in options.items() if value]:
        raise ConfigError(
            f"--dataset makes clips of captions alone, and was given --{unfit[0]}", f"Leave out --{unfit[0]}"
        )


def dataset_captions(config: RunConfig, source: str, dataset: str) -> tuple[str, ...]:
    """Different captions: all of the built-in world's, those of a corpus, or a file's lines.

    Raises:
        ConfigError: the run is not of the world, or the file cannot be read or holds none.
    """
    if source == "world" and not config.uses_world:
        raise ConfigError(
            "--captions-from world, but this run was trained on other videos",
            "Take short, long or a text file",
        )
    if source == "world":
        return tuple(caption(*map(int, label)) for label in all_labels("all"))
    if source in ("short", "long"):
        corpus: CorpusName = "short" if source == "short" else "long"
        return tuple(sorted(set(ShardDataset(dataset, corpus).captions)))
    remedy = "Give a text file with a caption per line, or world, short or long"
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--captions-from {source} cannot be read: {error}", remedy) from error
    if not any(line.strip() for line in lines):
        raise ConfigError(f"--captions-from {source} holds no caption", remedy)
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def write_samples(
    config: RunConfig,
    sampler: Sampler,
    count: int,
    captions: Sequence[str] | None,
    timeline: str | None,
    seconds: float | None,
    begin: str | None,
    out: str | None,
    *,
    loops: bool,
    as_json: bool,
) -> list[str]:
    """Make videos, and say where they are; `begin` is the file that they begin with, the other arguments and
    what is raised are those of `sample`."""
    paths, (firsts, cues) = RunPaths.of(config), _story(captions, timeline)
    info = read_info(paths.dataset)
    fps = info.long.fps
    begins = read_start(begin, config.data.limits, (info.height, info.width), fps) if begin else None
    if not firsts:
        different = sorted(set(ShardDataset(paths.dataset, "long").captions))
        firsts = [different[place] for place in evenly(len(different), min(count, len(different)))]
    chosen = tuple(itertools.islice(itertools.cycle(firsts), count))
    target = Storage(out or paths.samples)
    wanted = Videos(config, sampler, chosen, fps, seconds, begins, loops, cues, target)
    with ConsoleProgress(to_stderr=as_json) as progress:
        if wanted.workers > 1:
            made = _make_on_ray(wanted, progress)
        else:
            _embed(wanted)
            made = [_make(wanted, progress, wanted.batches)]
    written = _write_about_all(wanted, made)
    if as_json:
        print_line(json.dumps({"folder": str(target), "videos": written}, ensure_ascii=False))
    else:
        if note := text_kind(sampler.text).cut_note(captions or ()):
            print_line(note)
        print_line(f"{count} videos, a contact sheet and metadata.jsonl in {target}")
    return [f"{target}/{one['file_name']}" for one in written]


@dataclass(frozen=True)
class Videos:
    """What is made, wherever: captions and what else is asked of all, how, and the folder."""

    config: RunConfig
    sampler: Sampler
    captions: Sequence[str]
    fps: float
    seconds: float | None
    begins: Frames | None
    loops: bool
    cues: tuple[Cue, ...]
    target: Storage

    @property
    def batches(self) -> list[range]:
        """Samples that are made at once."""
        count, size = len(self.captions), self.config.evaluation.batch_size
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    @property
    def groups(self) -> int:
        """Groups of workers that make different batches; none is without one."""
        cluster = self.config.cluster
        return min(cluster.least_workers // cluster.context_parallel, len(self.batches))

    @property
    def workers(self) -> int:
        """Of all groups."""
        return self.groups * self.config.cluster.context_parallel


class Made(NamedTuple):
    """What one group has made."""

    rows: list[dict[str, Any]]
    """Lines of metadata.jsonl."""
    strips: dict[int, Strip]
    """Of the contact sheet, by sample."""


def _embed(wanted: Videos) -> None:
    """Stores what captions lack of embeddings, by an encoder that is gone before the network comes."""
    told = [*wanted.captions, *(cue.caption for cue in wanted.cues)]
    device = compute_device(wanted.config.cluster.use_gpu)
    embed_captions(wanted.sampler.text, RunPaths.of(wanted.config).dataset, told, device=device.type)


def _make(
    wanted: Videos, progress: Progress, batches: Sequence[range], group: FrameGroup | None = None
) -> Made:
    """Loads what makes videos and writes some batches of them, as the first of a group that shares their
    frames where there is one."""
    config, sampler, dataset = wanted.config, wanted.sampler, RunPaths.of(wanted.config).dataset
    device = compute_device(config.cluster.use_gpu)
    maker = Maker(
        load_network(sampler.folder, device),
        sampler.method,
        dataset_autoencoder(dataset, device),
        text_encoder(sampler.text, dataset),
        sampler.sampling,
        wanted.fps,
    )
    frames = _frames(maker, wanted.seconds, wanted.begins)
    request = Request(frames=frames, begins=wanted.begins, loops=wanted.loops, cues=wanted.cues)
    maker.check(request)
    if group is None:
        return _write(wanted, maker, request, progress, batches)
    group.own(maker.at_once(request) // maker.network.spec.model.patch_size[0])
    with leading(maker.network, group):
        return _write(wanted, maker, request, progress, batches)


def _make_on_ray(wanted: Videos, progress: Progress) -> list[Made]:
    """What each group has made, at the same time as the others: all, or as many as the cluster holds."""
    cluster = wanted.config.cluster
    kind = "GPU" if cluster.use_gpu else "CPU"
    with ray_session(cluster), progress_board(progress) as board:
        has = int(ray.cluster_resources().get(kind, 0))
        groups = min(wanted.groups, max(1, has // cluster.context_parallel))
        if groups < wanted.groups:
            warn(f"{groups} of {wanted.groups} groups make the videos: the cluster has {has} {kind}s")
        work, size = partial(_take_part, wanted, board), groups * cluster.context_parallel
        made = ray_group(work, size, use_gpu=cluster.use_gpu)
    return [one for one in made if one is not None]


def _take_part(wanted: Videos, progress: BoardProgress, rank: int, size: int) -> Made | None:
    """The work of one worker; what the first of a group has made."""
    alike, sampler = wanted.config.cluster.context_parallel, wanted.sampler
    number, place = divmod(rank, alike)
    group = None
    if alike > 1:
        own, _ = distributed.new_subgroups(alike, timeout=SILENCE)
        group = FrameGroup(place, alike, own)
    with relayed_warnings(progress):
        if rank == 0:
            _embed(wanted)
        distributed.all_reduce(torch.zeros(1))  # all wait for it
        if place == 0:
            if size > alike:
                progress = dataclasses.replace(progress, prefix=f"group {number + 1}: ")
            return _make(wanted, progress, wanted.batches[number :: size // alike], group)
    assert group is not None
    network = load_network(sampler.folder, compute_device(wanted.config.cluster.use_gpu))
    following(network, sampler.method.head, group)
    return None


def write_dataset(
    config: RunConfig,
    sampler: Sampler,
    count: int,
    captions: Sequence[str] | None,
    captions_from: str,
    seconds: float | None,
    tars: bool,
    out: str,
    *,
    as_json: bool,
) -> None:
    """Make what a dataset lacks, on Ray's actors; the arguments are those of `sample`.

    Raises:
        ConfigError: as `dataset_captions`.
        DataError: the folder holds clips of other settings.
        ClusterError: Ray cannot be used.
    """
    dataset, wanted = RunPaths.of(config).dataset, config.evaluation
    long = read_info(dataset).long
    synthesis = Synthesis(
        checkpoint=sampler.folder,
        weights=hash_of(Storage(sampler.folder).read_json(MANIFEST_FILE))[:16],
        dataset=dataset,
        system=f"{sampler.method.head} head, {sampler.method.steps} steps",
        method=sampler.method,
        sampling=sampler.sampling,
        seed=config.seed,
        frames=long.window_frames if seconds is None else max(1, round(seconds * long.fps)),
        form="webdataset" if tars else "mp4",
        captions=tuple(captions or ()) or dataset_captions(config, captions_from, dataset),
        is_world=config.uses_world and not captions and captions_from in CORPORA_OF_WORLD,
        batch=wanted.batch_size,
    )
    workers = Pool(wanted.min_actors, wanted.max_actors, config.cluster.use_gpu)
    start = time.monotonic()
    with ray_session(config.cluster), ConsoleProgress(to_stderr=as_json) as progress:
        made = synthesize(synthesis, count, out, workers, progress)
    if as_json:
        print_line(json.dumps({"folder": out, "clips": count, "made": made}))
        return
    print_line(f"{made} of {count} clips made in {(time.monotonic() - start) / 60:.1f} minutes: {out}")


def _frames(maker: Maker, seconds: float | None, begins: Frames | None) -> int:
    """Frames of a clip: as many as wanted, or what one piece makes after those it begins with."""
    if seconds is not None:
        return max(1, round(seconds * maker.fps))
    if begins is None:
        return maker.trained_frames
    return (
        len(begins)
        + maker.trained_frames
        - maker.pixels(min(maker.latents(len(begins)), maker.network.spec.shape[0] // 2))
    )


def _write(
    wanted: Videos, maker: Maker, request: Request, progress: Progress, batches: Sequence[range]
) -> Made:
    """An MP4 of each video, which can be played while it grows, and of the first ones, where one piece makes
    them, GIFs."""
    config, captions = wanted.config, wanted.captions
    key, rows, strips = Key(config.seed, purpose="sample"), list[dict[str, Any]](), dict[int, Strip]()
    shown, whole = evenly(request.frames, SHEET_COLUMNS), request.frames <= maker.trained_frames
    total = sum(map(len, batches)) * request.frames
    with _folder_of(wanted.target) as folder:
        for samples in batches:
            own = captions[samples.start : samples.stop]
            files = [StreamedMp4(folder / f"{index:05d}.mp4", maker.fps) for index in samples]
            pictures = [dict[int, Frames]() for _ in samples]
            done = 0
            for piece in maker.create(request, own, key, samples):
                for file, frames, kept in zip(files, piece, pictures, strict=True):
                    file.add(frames)
                    kept |= {
                        place: frame for place, frame in enumerate(frames, done) if whole or place in shown
                    }
                done += piece.shape[1]
                progress("sample", len(rows) * request.frames + done * len(samples), total)
            for index, file, caption, kept in zip(samples, files, own, pictures, strict=True):
                file.finish()
                if index < SHEET_ROWS:
                    if whole:
                        write_gif(folder / f"{index:05d}.gif", list(kept.values()), maker.fps)
                    strips[index] = video_strip({place: kept[place] for place in shown}, caption)
                rows.append(
                    {
                        "file_name": f"{index:05d}.mp4",
                        "caption": caption,
                        "seed": config.seed,
                        "sample": index,
                    }
                )
    return Made(rows, strips)


def _write_about_all(wanted: Videos, made: Sequence[Made]) -> list[dict[str, Any]]:
    """A contact sheet of the first videos, and metadata.jsonl, whose lines are given."""
    rows = sorted((row for one in made for row in one.rows), key=lambda row: int(row["sample"]))
    strips = {sample: strip for one in made for sample, strip in one.strips.items()}
    if wanted.cues:
        rows = [row | {"timeline": [dataclasses.asdict(cue) for cue in wanted.cues]} for row in rows]
    with _folder_of(wanted.target) as folder:
        title = f"The first {len(strips)} of {len(rows)} samples"
        contact_sheet(title, [strips[sample] for sample in sorted(strips)]).save(folder / "sheet.png")
        (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return rows


@contextmanager
def _folder_of(target: Storage) -> Iterator[Path]:
    """A folder to write to: the target itself, where it is on this machine."""
    if target.is_local:
        with target.errors_about(""):
            folder = Path(target.local())
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
        return
    with temporary_folder() as folder:
        yield folder
        target.put_folder(folder, "")
