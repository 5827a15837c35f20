"""`sostenuto sample`: videos from a trained network, as MP4, GIF and a contact sheet."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.commands.runs import checkpoint_of
from jobs.config.checks import check_times
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress, print_line
from models.config import SamplingConfig
from models.device import compute_device
from models.errors import ConfigError
from models.rng import Key
from models.text.kinds import text_kind
from pipelines.checkpoints import Network, NetworkSpec, load_network, read_spec
from pipelines.data.store.caption_embeddings import embed_captions, text_encoder
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.generation import Head, Method, check, generate_latents
from pipelines.media.contact_sheet import contact_sheet, evenly, video_strip
from pipelines.media.video import write_gif, write_mp4
from pipelines.storage import Storage, temporary_folder

SHEET_COLUMNS = 9
SHEET_ROWS = 8


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
) -> list[str]:
    """Write `count` videos with their captions, on this machine's GPU if `cluster.use_gpu`.

    Args:
        config: the run's settings.
        checkpoint: folder of a network; None is the run's distilled student.
        count: number of videos.
        captions: taken in turn; None takes different ones of LONG.
        head: `dm` takes the few steps that the checkpoint was distilled for, `fm` Euler steps.
        steps: Euler steps; None is the config's.
        out: folder; None is the run's samples/.
        times: of the few-step sampler in place of the checkpoint's own, as in 1,0.5.

    Returns:
        Paths of the MP4 files.

    Raises:
        ConfigError: steps or times that do not suit the sampler, a head that is absent or untrained, no GPU.
        CheckpointError: there is no finished student.
    """
    paths = RunPaths.of(config)
    folder = checkpoint or checkpoint_of(config, "distill", "sample")
    info = read_info(paths.dataset)
    spec, device = read_spec(folder), compute_device(config.cluster.use_gpu)
    method, sampling = _method(config, spec, head, steps, times)
    check(spec, method)
    texts = list(captions or ())
    if not texts:
        different = sorted(set(ShardDataset(paths.dataset, "long").captions))
        texts = [different[place] for place in evenly(len(different), min(count, len(different)))]
    chosen = list(itertools.islice(itertools.cycle(texts), count))
    target = Storage(out or paths.samples)
    with ConsoleProgress() as progress:
        embed_captions(spec.text, paths.dataset, chosen, device=device.type)
        made = _videos(config, load_network(folder, device), method, sampling, paths.dataset, chosen)
        written = _write(target, made, chosen, info.long.fps, progress)
    if note := text_kind(spec.text).cut_note(captions or ()):
        print_line(note)
    print_line(f"{count} videos, a contact sheet and metadata.jsonl in {target}")
    return written


def _method(
    config: RunConfig, spec: NetworkSpec, head: Head, steps: int | None, times: str | None
) -> tuple[Method, SamplingConfig]:
    """The sampler, and its settings: few-step times are the checkpoint's own, where `times` has no others."""
    if head == "fm":
        if times is not None:
            raise ConfigError("the FM head was given times of the few-step sampler", "Give --steps instead")
        return Method("fm", "ode", steps or config.sampling.ode_steps), config.sampling
    own = spec.sampling.steps
    if steps is not None:
        raise ConfigError(
            f"the few-step sampler was asked for {steps} steps but has the times {list(own)}",
            f"Leave --steps out, give other times by --times {','.join(map(str, own))}, or take --head fm",
        )
    chosen = own
    if times is not None:
        try:
            chosen = tuple(float(part) for part in times.split(","))
        except ValueError as error:
            raise ConfigError(f"--times {times!r} cannot be read", "Write --times 1,0.75,0.5,0.25") from error
        check_times(chosen, "--times")
        print_line(f"sampled at the times {list(chosen)}, not at those of its distillation, {list(own)}")
    elif own != config.sampling.steps:
        print_line(
            f"sampled at the checkpoint's times {list(own)}, not at sampling.steps: --times has others"
        )
    return Method("dm", "few_step", len(chosen)), dataclasses.replace(config.sampling, steps=chosen)


def _videos(
    config: RunConfig,
    network: Network,
    method: Method,
    sampling: SamplingConfig,
    dataset: str,
    captions: Sequence[str],
) -> Iterator[NDArray[np.uint8]]:
    """Frames [F, H, W, 3] of each video, generated batch by batch on the network's device."""
    device = next(network.model.parameters()).device
    encoder, autoencoder = text_encoder(network.spec.text, dataset), dataset_autoencoder(dataset, device)
    batch, key = config.evaluation.batch_size, Key(config.seed, purpose="sample")
    for start in range(0, len(captions), batch):
        samples = range(start, min(start + batch, len(captions)))
        latents = generate_latents(
            network,
            method,
            network.spec.shape,
            encoder.encode(captions[samples.start : samples.stop]),
            key,
            samples,
            sampling=sampling,
            flow=network.spec.flow,
        )
        for video in latents.cpu():
            yield autoencoder.decode(video[None])[0].numpy()


def _write(
    target: Storage,
    videos: Iterator[NDArray[np.uint8]],
    captions: Sequence[str],
    fps: float,
    progress: ConsoleProgress,
) -> list[str]:
    """MP4 and GIF of each video, metadata.jsonl, and a contact sheet of the first."""
    strips, lines, written = [], [], []
    with temporary_folder() as folder:
        for index, (frames, caption) in enumerate(zip(videos, captions, strict=True)):
            stem = f"{index:05d}"
            write_mp4(folder / f"{stem}.mp4", iter(frames), fps)
            if index < SHEET_ROWS:
                write_gif(folder / f"{stem}.gif", iter(frames), fps)
                strips.append(video_strip(frames, caption, SHEET_COLUMNS))
            lines.append(json.dumps({"file_name": f"{stem}.mp4", "caption": caption}))
            written.append(f"{target}/{stem}.mp4")
            progress("sample", index + 1, len(captions))
        contact_sheet(f"The first {len(strips)} of {len(captions)} samples", strips).save(
            folder / "sheet.png"
        )
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        target.put_folder(folder, "")
    return written
