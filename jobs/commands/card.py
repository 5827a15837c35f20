"""The model card of an export: what the network is, how to sample it, and what is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config.schema import RunConfig
from models.text.kinds import text_kind
from pipelines.checkpoints import NetworkSpec
from pipelines.data.store.info import DatasetInfo

LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
TEMPLATE = Path(__file__).with_name("card.md.j2")


@dataclass(frozen=True)
class Licence:
    """The licence file of the base model.

    Args:
        path: None where there is none.
        text: its content.
    """

    path: Path | None = None
    text: str = ""

    @property
    def identifier(self) -> str:
        """Its name in the card's header; only one is recognised, and the file travels with the export."""
        if self.path is None:
            return "unknown"
        apache = "Apache License" in self.text and "Version 2.0" in self.text
        return "apache-2.0" if apache else "other"


def find_licence(config: RunConfig) -> Licence:
    """The licence in the base model's folder or in the one around it."""
    if config.model.pretrained is not None:
        base = Path(config.model.pretrained)
        for folder in (base, base.absolute().parent):
            for path in (folder / name for name in LICENCES):
                if path.is_file():
                    return Licence(path, path.read_text(encoding="utf-8", errors="replace"))
    return Licence()


def base_name(folder: str) -> str:
    """What a base model is called: its folder, or the pipeline's around it."""
    path = Path(folder)
    return path.parent.name if path.name == "transformer" and path.parent.name else path.name


def model_card(
    config: RunConfig,
    spec: NetworkSpec,
    *,
    checkpoint: str,
    head: str,
    shift: float,
    dataset: DatasetInfo | None,
    metrics: Mapping[str, Mapping[str, Any]],
    licence: Licence,
) -> str:
    """The card as Markdown.

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
    from huggingface_hub import ModelCard, ModelCardData

    model, sampling = config.model, config.sampling
    base = None if model.pretrained is None else base_name(model.pretrained)
    times, steps, guidance = str(list(sampling.steps)), len(sampling.steps), 1.0
    if head == "fm":
        steps, guidance = sampling.ode_steps, sampling.guidance_scale
        times = f"[1 - step / {steps} for step in range({steps})]"
    windowed = [block for block, kind in enumerate(spec.model.attention_pattern) if kind == "W"]
    frames, _, rows, columns = spec.shape
    _, patch_rows, patch_columns = spec.model.patch_size
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    cells = {name: [values.get(name) for values in metrics.values()] for name in names}
    numbers = [
        (name, [f"{value:.4g}" if isinstance(value, int | float) else "-" for value in row])
        for name, row in cells.items()
        if any(isinstance(value, int | float) for value in row)
    ]
    data = ModelCardData(
        library_name="diffusers", pipeline_tag="text-to-video", license=licence.identifier, base_model=base
    )
    card = ModelCard.from_template(
        data,
        template_path=TEMPLATE,
        name=config.name,
        head=head,
        model=spec.model,
        data=config.data,
        shape=spec.shape,
        steps=steps,
        times=times,
        shift=f"{shift:g}",
        guidance=guidance,
        timestep_shift=f"{config.flow.timestep_shift:g}",
        timestep_shift_frames=config.flow.timestep_shift_frames,
        windowed_blocks=windowed if spec.model.is_windowed(frames) else [],
        tokens_per_frame=(rows // patch_rows) * (columns // patch_columns),
        dataset=dataset,
        checkpoint=checkpoint,
        seed=config.seed,
        base=base,
        systems=list(metrics),
        metrics=numbers,
        licence_file=licence.path,
        text_kind=None if text_kind(spec.text).in_pipelines else spec.text.kind,
    )
    return f"{card}\n"
