"""A page that opens in a browser and asks nothing of the network, and the pictures that lie inside it."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOTS_PER_INCH = 110
"""Of figures: eleven inches are the width of a page."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.words th, .words td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.words td.number { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0; } video, img { max-width: 100%; } .wide { overflow-x: auto; }
"""


def page(title: str, body: str) -> str:
    """A whole HTML page.

    Args:
        title: plain text; also the first heading.
        body: HTML, its texts escaped already.
    """
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>{body}</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, words: bool = False) -> str:
    """A table of plain values, each escaped.

    Args:
        head: a heading a column.
        rows: a value a column; numbers stand at the right.
        words: texts stand at the left, not only those of the first column.
    """
    first = "".join(f"<th>{escape(heading)}</th>" for heading in head)
    rest = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    kind = ' class="words"' if words else ""
    return f"<div class=wide><table{kind}><tr>{first}</tr>{rest}</table></div>"


def _cell(value: object) -> str:
    kind = ' class="number"' if isinstance(value, int | float) else ""
    return f"<td{kind}>{escape(str(value))}</td>"


def picture(name: str, png: bytes) -> str:
    """A PNG inside the page."""
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def blank_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that no window shows."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as a file."""
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=DOTS_PER_INCH)
    return memory.getvalue()
