"""The model card of an export: what the network is, how to sample it, and what is known of it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config.schema import RunConfig
from models.text.kinds import text_kind
from models.wan.layout import is_windowed
from pipelines.checkpoints import NetworkSpec
from pipelines.data.store.info import CorpusInfo, DatasetInfo

_FEW_STEP = "Few-step generator: the encoder and the distribution-matching head of a Sostenuto student."
_MANY_STEP = "Many-step generator: the encoder and the flow-matching head of a Sostenuto student."

_SAMPLE = """```python
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

FOLDER, BASE = "{folder}", "base"  # this folder, and that of the base model's pipeline
TIMES = {times}

transformer = WanTransformer3DModel.from_pretrained(FOLDER)
scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(FOLDER, subfolder="scheduler")
schedule = scheduler.set_timesteps
scheduler.set_timesteps = lambda steps, device: schedule(sigmas=TIMES, device=device)
pipeline = WanPipeline.from_pretrained(BASE, transformer=transformer, scheduler=scheduler)
video = pipeline(
    prompt="...", num_frames={frames}, height={height}, width={width},
    num_inference_steps=len(TIMES), guidance_scale={guidance},
).frames[0]
```"""

_WINDOWED = """## Windowed attention

Blocks {blocks} attend to {window} latent frames on each side only (`sostenuto_attention` in config.json).
Diffusers does not know that: it would let them attend to the whole clip, which changes the velocity of every
clip of more than {exact} latent frames. Run these lines on `transformer` before sampling. Their mask has
(frames * tokens a frame) squared entries: sample long clips at full size by `sostenuto sample`, without one.

```python
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor


class Windowed(WanAttnProcessor):
    def __init__(self, tokens_per_frame):
        super().__init__()
        self.tokens_per_frame = tokens_per_frame

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        frame = torch.arange(hidden_states.shape[1], device=hidden_states.device) // self.tokens_per_frame
        near = (frame[:, None] - frame[None, :]).abs() <= {window}
        return super().__call__(attn, hidden_states, encoder_hidden_states, near, rotary_emb)


for block in {indices}:
    transformer.blocks[block].attn1.set_processor(Windowed(tokens_per_frame={tokens}))
```"""


@dataclass(frozen=True)
class Licence:
    """The licence that lies beside the base model.

    Args:
        path: the file; None where there is none.
        text: what it says.
    """

    path: Path | None
    text: str

    @property
    def identifier(self) -> str:
        """Its name for the card's header; only one is recognised, and the file travels with the export."""
        if self.path is None:
            return "unknown"
        apache = "Apache License" in self.text and "Version 2.0" in self.text
        return "apache-2.0" if apache else "other"


@dataclass(frozen=True)
class Card:
    """What a card tells.

    Args:
        config: the settings of training.
        spec: the student.
        checkpoint: stage and step, such as `distill/step-001000`.
        head: `dm` or `fm`.
        shift: the scheduler's.
        dataset: what it was trained on; None where that is not at hand.
        metrics: what was measured, by system.
        licence: the base model's.
    """

    config: RunConfig
    spec: NetworkSpec
    checkpoint: str
    head: str
    shift: float
    dataset: DatasetInfo | None
    metrics: Mapping[str, Mapping[str, Any]]
    licence: Licence


def model_card(card: Card) -> str:
    """The card as Markdown."""
    parts = [
        "\n".join(_header(card)),
        f"# {card.config.name}\n\n{_FEW_STEP if card.head == 'dm' else _MANY_STEP}",
        "\n".join(_what(card)),
        "\n".join(("## Sampling", "", *_sampling(card))),
        *_windowed(card),
        "\n".join(("## Data", "", *_data(card))),
        "\n".join(("## Training", "", *_training(card))),
        "\n".join(("## Metrics", "", *_metrics(card))),
        "\n".join(("## Licence", "", *_licence(card))),
        "\n".join(("## Limits", "", *_limits(card))),
    ]
    return "\n\n".join(parts) + "\n"


def _header(card: Card) -> Iterator[str]:
    yield from ("---", "library_name: diffusers", "pipeline_tag: text-to-video")
    yield f"license: {card.licence.identifier}"
    if card.config.model.pretrained is not None:
        yield f"base_model: {json.dumps(base_name(card.config.model.pretrained))}"
    yield "---"


def base_name(folder: str) -> str:
    """What a base model is called after: its folder, or the pipeline's around it."""
    path = Path(folder)
    return path.parent.name if path.name == "transformer" and path.parent.name else path.name


def _pixels(card: Card) -> tuple[int, int, int]:
    """Frames, rows and columns of the clips it was trained on."""
    data = card.config.data
    return data.long_frames, data.height, data.width


def _what(card: Card) -> Iterator[str]:
    model, (frames, channels, rows, columns) = card.spec.model, card.spec.shape
    yield (
        f"{model.num_layers} blocks of {model.num_heads} x {model.head_dim} channels, weights averaged over "
        f"training (EMA). It was trained on clips of {_pixels(card)[0]} frames at {_pixels(card)[1]} x "
        f"{_pixels(card)[2]} pixels: latents of {frames} frames, {channels} channels, {rows} x {columns}."
    )


def _times(card: Card) -> list[float]:
    """Times before the shift, which the scheduler applies."""
    if card.head == "dm":
        return list(card.config.sampling.steps)
    count = card.config.sampling.ode_steps
    return [1 - step / count for step in range(count)]


def _sampling(card: Card) -> Iterator[str]:
    frames, height, width = _pixels(card)
    guidance = 1.0 if card.head == "dm" else card.config.sampling.guidance_scale
    times = _times(card)
    if card.head == "dm":
        yield (
            f"{len(times)} evaluations a clip, at the times {times} before the shift {card.shift:g} that the "
            "scheduler applies, with fresh noise at every step and no guidance. The pipeline would choose "
            "other times by itself, so they are given:"
        )
        told = str(times)
    else:
        yield f"{len(times)} Euler steps, shift {card.shift:g}, guidance {guidance:g}:"
        told = f"[1 - step / {len(times)} for step in range({len(times)})]"
    yield ""
    yield _SAMPLE.format(folder=".", times=told, frames=frames, height=height, width=width, guidance=guidance)
    flow = card.config.flow
    yield ""
    yield (
        f"The shift is that of {card.spec.shape[0]} latent frames. For T latent frames it is "
        f"{flow.timestep_shift:g} * max(1, sqrt(T / {flow.timestep_shift_frames})): `scheduler.set_shift`."
    )


def _windowed(card: Card) -> Iterator[str]:
    model, (frames, _, rows, columns) = card.spec.model, card.spec.shape
    if not is_windowed(model, frames):
        return
    indices = [index for index, kind in enumerate(model.attention_pattern) if kind == "W"]
    _, patch_rows, patch_columns = model.patch_size
    values = {
        "blocks": ", ".join(map(str, indices)),
        "window": str(model.window),
        "exact": str(model.window + 1),
        "indices": str(indices),
        "tokens": str((rows // patch_rows) * (columns // patch_columns)),
    }
    text = _WINDOWED
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    yield text


def _data(card: Card) -> Iterator[str]:
    if card.dataset is None:
        yield "The dataset's description was not at hand when this was exported."
        return
    yield "| corpus | videos | windows | hours | captions | frames a window | rejected |"
    yield "|---|---|---|---|---|---|---|"
    for name in ("short", "long"):
        yield _corpus(name.upper(), card.dataset.corpus(name))
    yield ""
    yield f"Dataset `{card.dataset.version}`, hash of all windows `{card.dataset.data_hash}`."


def _corpus(name: str, info: CorpusInfo) -> str:
    return (
        f"| {name} | {info.videos} | {info.windows} | {info.hours:.2f} | {info.captions} | "
        f"{info.window_frames} | {info.rejects} |"
    )


def _training(card: Card) -> Iterator[str]:
    base = card.config.model.pretrained
    start = "from scratch" if base is None else f"from {base_name(base)}"
    yield f"Checkpoint `{card.checkpoint}`, seed {card.config.seed}, {start}. All settings: `sostenuto.yaml`."


def _metrics(card: Card) -> Iterator[str]:
    if not card.metrics:
        yield "None of this checkpoint were at hand when this was exported."
        return
    names = list(card.metrics)
    yield f"| metric | {' | '.join(names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for metric in dict.fromkeys(key for values in card.metrics.values() for key in values):
        cells = [_number(card.metrics[name].get(metric)) for name in names]
        if any(cell != "-" for cell in cells):
            yield f"| {metric} | {' | '.join(cells)} |"
    yield ""
    yield f"By `sostenuto evaluate --config sostenuto.yaml --seed {card.config.seed}`, one seed."


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _licence(card: Card) -> Iterator[str]:
    data = "The licence of the training data is not known to the exporter."
    if card.config.model.pretrained is None:
        yield f"There is no base model. {data}"
    elif card.licence.path is None:
        yield f"Unknown: no LICENSE lay beside the base model. Fill it in before sharing this. {data}"
    else:
        yield f"That of the base model, in LICENSE. {data}"


def _limits(card: Card) -> Iterator[str]:
    frames, height, width = _pixels(card)
    yield f"- Trained at {frames} frames of {height} x {width} pixels; nothing else was measured."
    yield "- What its corpora do not show, it has not learned."
    yield "- Nothing filters what it is asked for or what it makes."
    if not text_kind(card.spec.text).in_pipelines:
        kind = card.spec.text.kind
        yield f"- Its text encoder (`text.kind: {kind}`) is in no pipeline: give `prompt_embeds`."
    if card.head == "dm":
        yield "- Few-step distillation narrows diversity; guidance does not apply to this head."
