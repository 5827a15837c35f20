"""Captions with their times, as people write them."""

import pytest

from jobs.timeline import read_timeline
from models.errors import ConfigError
from pipelines.creation import Cue

CUES = [Cue(0.0, "a bay at dusk, amber sun"), Cue(20.0, "rain: heavy, teal sun"), Cue(80.5, "night")]


def test_text_and_file_say_the_same(tmp_path):
    text = "0s: a bay at dusk, amber sun; 20: rain: heavy, teal sun; 1:20.5: night;"
    path = tmp_path / "story.yaml"
    path.write_text("0s: a bay at dusk, amber sun\n80.5: night\n20s: 'rain: heavy, teal sun'\n")
    assert read_timeline(text) == CUES
    assert read_timeline(str(path)) == CUES


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a bay at dusk", "no time in the part 'a bay at dusk'"),
        ("5s: a bay", "nothing for the beginning"),
        ("", "nothing for the beginning"),
        ("0s: a; 3s: b; 3: c", "two captions at 3 s"),
        ("0s: a; soon: b", "'soon' in --timeline is no time"),
        ("0s: a; -3s: b", "is no time"),
        ("none.yaml", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said(given, said):
    with pytest.raises(ConfigError, match=said):
        read_timeline(given)


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "0s: [1, 2]\n", "0s: {a: b}\n", "0s: !!python/name:os.system\n"]
)
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "story.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"has no lines of a time and a caption|cannot be read"):
        read_timeline(str(path))
