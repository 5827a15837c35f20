"""Pages that show texts of others: every one is escaped, and numbers stand at the right."""

import io

import numpy as np
from PIL import Image

from pipelines.media.html import DOTS_PER_INCH, blank_figure, page, picture, png, table


def test_titles_and_cells_are_escaped():
    made = page("<b>", table(["<i>"], [["<script>&"]]))
    assert "<title>&lt;b&gt;</title>" in made
    assert "<h1>&lt;b&gt;</h1>" in made
    assert "<th>&lt;i&gt;</th>" in made
    assert "<td>&lt;script&gt;&amp;</td>" in made


def test_numbers_among_words_are_marked():
    made = table(["a", "b"], [["x", 3], ["y", 0.5]], words=True)
    assert made.count('<td class="number">') == 2
    assert '<table class="words">' in made
    assert "<table><tr>" in table(["a"], [])


def test_a_name_stays_inside_its_attribute():
    assert (
        picture('"><script>', b"x") == '<img alt="&quot;&gt;&lt;script&gt;" src="data:image/png;base64,eA==">'
    )


def test_figures_have_their_size():
    figure = blank_figure(2, 1)
    figure.add_subplot().plot([0, 1])
    image = Image.open(io.BytesIO(png(figure)))
    assert image.size == (2 * DOTS_PER_INCH, DOTS_PER_INCH)
    assert np.asarray(image).std() > 0
