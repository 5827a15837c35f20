"""Pages that show texts of others: every one is escaped, and numbers stand at the right."""

import io

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from pipelines.media.html import _TEMPLATES, DOTS_PER_INCH, blank_figure, png, render

USE = '{%% from "media/macros.html.j2" import picture, table, video %%}{{ %s }}'


def expand(call: str, **values: object) -> str:
    return _TEMPLATES.from_string(USE % call).render(values)


def test_titles_and_cells_are_escaped():
    page = render("media/base.html.j2", title="<b>")
    assert "<title>&lt;b&gt;</title>" in page
    assert "<h1>&lt;b&gt;</h1>" in page
    table = expand("table(head, rows)", head=["<i>"], rows=[["<script>&"]])
    assert "<th>&lt;i&gt;</th>" in table
    assert "<td>&lt;script&gt;&amp;</td>" in table


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="title"):
        render("media/base.html.j2")


def test_numbers_are_marked():
    table = expand('table(["a", "b"], rows, "words")', rows=[["x", 3], ["y", 0.5]])
    assert table.count('<td class="number">') == 2
    assert '<table class="words">' in table
    assert "<table>" in expand('table(["a"], [])')


def test_a_name_stays_inside_its_attribute():
    name = '"><script>'
    escaped = "&#34;&gt;&lt;script&gt;"
    made = expand("picture(name, png)", name=name, png=b"x")
    assert made.strip() == f'<img alt="{escaped}" src="data:image/png;base64,eA==">'
    assert f'src="{escaped}"' in expand("video(name)", name=name)


def test_figures_have_their_size():
    figure = blank_figure(2, 1)
    figure.add_subplot().plot([0, 1])
    image = Image.open(io.BytesIO(png(figure)))
    assert image.size == (2 * DOTS_PER_INCH, DOTS_PER_INCH)
    assert np.asarray(image).std() > 0
