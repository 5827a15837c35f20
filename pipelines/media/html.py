"""Pages that open in a browser and request nothing, and the figures inside them.

Templates lie beside the code that renders them (`page.html.j2`) and extend `media/base.html.j2`; they are
named by their path below pipelines/. Every value is escaped.
"""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOTS_PER_INCH = 110
"""Of figures: eleven inches are the width of a page."""
MUTED, ACCENT = "#7a8aa0", "#c85a3c"
"""Colours of figures: what is compared with, and what it is about."""

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1]),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["base64"] = lambda data: base64.b64encode(data).decode()


def render(template: str, **values: Any) -> str:
    """A page from a template, such as `data/report/page.html.j2`."""
    return _TEMPLATES.get_template(template).render(values)


def blank_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that no window shows."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=DOTS_PER_INCH)
    return memory.getvalue()
