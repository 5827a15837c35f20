"""`sostenuto sample`: videos from a trained network, as MP4, GIF and a contact sheet."""

import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress, print_line
from models.device import compute_device
from models.errors import ConfigError
from models.rng import Key
from models.text.kinds import text_kind
from pipelines.checkpoints import Network, load_network, read_spec
from pipelines.data.store.caption_embeddings import embed_captions, text_encoder
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.generation import Head, Method, check, generate_latents
from pipelines.media.contact_sheet import contact_sheet, evenly, video_strip
from pipelines.media.video import write_gif, write_mp4
from pipelines.storage import Storage, temporary_folder
from pipelines.training.recipes import require_finished

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
) -> list[str]:
    """Write `count` videos with their captions, on this machine's GPU if `cluster.use_gpu`.

    Args:
        config: the run's settings.
        checkpoint: folder of a network; None is the run's distilled student.
        count: number of videos.
        captions: taken in turn; None takes different ones of LONG.
        head: `dm` takes the few steps of `sampling.steps`, `fm` Euler steps.
        steps: Euler steps; None is the config's.
        out: folder; None is the run's samples/.

    Returns:
        Paths of the MP4 files.

    Raises:
        ConfigError: steps for the few-step sampler, a head that is absent or untrained, or no GPU.
        CheckpointError: there is no finished student.
    """
    paths = RunPaths.of(config)
    folder = checkpoint or require_finished(paths.seed(config.seed), "distill", "sample").checkpoint
    info = read_info(paths.dataset)
    method, device = _method(config, head, steps), compute_device(config.cluster.use_gpu)
    spec = read_spec(folder)
    check(spec, method)
    texts = list(captions or ())
    if not texts:
        different = sorted(set(ShardDataset(paths.dataset, "long").captions))
        texts = [different[place] for place in evenly(len(different), min(count, len(different)))]
    chosen = list(itertools.islice(itertools.cycle(texts), count))
    target = Storage(out or paths.samples)
    with ConsoleProgress() as progress:
        embed_captions(spec.text, paths.dataset, chosen, device=device.type)
        made = _videos(config, load_network(folder, device), method, paths.dataset, chosen)
        written = _write(target, made, chosen, info.long.fps, progress)
    if note := text_kind(spec.text).cut_note(captions or ()):
        print_line(note)
    print_line(f"{count} videos, a contact sheet and metadata.jsonl in {target}")
    return written


def _method(config: RunConfig, head: Head, steps: int | None) -> Method:
    if head == "fm":
        return Method("fm", "ode", steps or config.sampling.ode_steps)
    if steps is not None and steps != len(config.sampling.steps):
        raise ConfigError(
            f"the few-step sampler was asked for {steps} steps but has the times {config.sampling.steps}",
            "Leave --steps out, set sampling.steps, or take --head fm",
        )
    return Method("dm", "few_step", len(config.sampling.steps))


def _videos(
    config: RunConfig, network: Network, method: Method, dataset: str, captions: Sequence[str]
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
            sampling=config.sampling,
            flow=config.flow,
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
