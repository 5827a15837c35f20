"""From YAML and --set to a frozen RunConfig: what is read, what is refused, what is the same twice."""

import ast
import dataclasses
import inspect
import itertools
import json

import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as runs
from hypothesis import strategies as st

from jobs.config import load as configs
from jobs.config.schema import RunConfig, settings
from models.errors import ConfigError
from tests.texts import texts

PRESETS = configs.presets()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_survive_json_and_yaml(name):
    config = configs.load(name)
    assert configs.from_json(configs.to_json(config)) == config
    assert configs.build(yaml.safe_load(configs.to_yaml(config))) == config


def test_the_presets_are_these():
    assert PRESETS == ["ci", "clips", "minute", "mouse", "tiny", "wan-1.3b", "wan-14b"]


def test_tiny_is_the_default_recipe():
    config = configs.load("tiny")
    assert (config.teacher.steps, config.teacher.short_batch, config.teacher.learning_rate) == (
        1500,
        64,
        3e-3,
    )
    assert (config.teacher.t_mean, config.teacher.t_std) == (0.0, 1.2)
    assert (config.sft.steps, config.sft.long_batch, config.sft.learning_rate, config.sft.t_mean) == (
        1000,
        32,
        1.5e-3,
        0.6,
    )
    assert (config.mixed.short_batch, config.mixed.long_batch) == (64, 32)
    assert (config.distill.steps, config.distill.learning_rate, config.distill.critic_learning_rate) == (
        210,
        1e-4,
        5e-4,
    )
    assert config.warmup.steps == 0


def test_minute_withholds_the_words_of_the_world():
    from pipelines.world.captions import COLOURS

    config = configs.load("minute")
    assert config.text.withheld_words == COLOURS
    assert config.data.long_frames == config.world.long_frames == 240


def test_a_file_extends_a_preset_and_another_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: tiny\nteacher: {steps: 7}\n")
    (tmp_path / "more.yaml").write_text("extends: mine.yaml\nteacher: {short_batch: 5}\n")
    config = configs.load(str(tmp_path / "more.yaml"))
    assert (config.teacher.steps, config.teacher.short_batch, config.teacher.t_std) == (7, 5, 1.2)


def test_a_circle_of_files_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(ConfigError, match="extends itself"):
        configs.load(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("loss.reverse_kl_weight=1e-3", "loss.reverse_kl_weight", 1e-3),
        ("loss.reverse_kl_weight=2", "loss.reverse_kl_weight", 2.0),
        ("distill.windows_per_video=null", "distill.windows_per_video", None),
        ("distill.windows_per_video=3", "distill.windows_per_video", 3),
        ("sampling.steps=[1.0, 0.7, 0.5, 0.2]", "sampling.steps", (1.0, 0.7, 0.5, 0.2)),
        ("model.clip_position=false", "model.clip_position", False),
        ("data.limits.max_bytes=10", "data.limits.max_bytes", 10),
        ("data.curation.min_motion=0.1", "data.curation.min_motion", 0.1),
        ("data.curation.aspects=['16:9','4:3']", "data.curation.aspects", ("16:9", "4:3")),
        ("name=other", "name", "other"),
        ("cluster.logical_cpus=8", "cluster.logical_cpus", 8),
        ("data.fps=8", "data.fps", 8.0),
    ],
)
def test_set_reads_every_kind_of_value(text, name, value):
    found = configs.flatten(configs.load("tiny", [text]))[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("storage.root=/tmp/a #b", "storage.root", "/tmp/a #b"),
        ("name=2024-11-20", "name", "2024-11-20"),
        ("name=1e5", "name", "1e5"),
        ("name=yes", "name", "yes"),
        ("name=bob's run", "name", "bob's run"),
        ("name='12'", "name", "12"),
        ('name="a\\tb"', "name", "a\tb"),
        ("name='it''s'", "name", "it's"),
        ("name='a' #b'", "name", "'a' #b'"),
        ("tracking.uri=a: b", "tracking.uri", "a: b"),
        ("tracking.uri=null", "tracking.uri", None),
        ("tracking.uri='null'", "tracking.uri", "null"),
        ("text.negative_caption=''", "text.negative_caption", ""),
        ("lora.stages=[sft, distill]", "lora.stages", ("sft", "distill")),
    ],
)
def test_a_text_is_taken_as_it_was_typed(text, name, value):
    assert configs.flatten(configs.load("tiny", [text]))[name] == value


@pytest.mark.parametrize("name", ["name", "tracking.uri"])
@runs(max_examples=200)
@given(text=texts())
@example(text="x\n y")
@example(text="\x7f")
def test_any_text_survives_set_and_yaml(name, text):
    given_name, _, given_text = configs.override(name, text).partition("=")
    assert given_name == name
    assert configs._value_of(name, given_text) == text
    shown = configs.yaml_of({"a": text, "b": [text]})
    for loader in (configs._Loader, yaml.SafeLoader):
        assert yaml.load(shown, Loader=loader) == {"a": text, "b": [text]}  # noqa: S506


@runs(max_examples=200)
@given(words=st.lists(texts(), max_size=4))
def test_any_list_of_texts_survives_set(words):
    _, _, given_text = configs.override("text.withheld_words", words).partition("=")
    assert configs._value_of("text.withheld_words", given_text) == words


@pytest.mark.parametrize("text", ["2024-11-20", "1e5", "it's #1", "'x'", "null", "\u0085", "a: \U0001f600"])
def test_a_config_keeps_its_texts_in_every_form(text):
    config = configs.load("ci", [configs.override("name", text), configs.override("tracking.uri", text)])
    assert (config.name, config.tracking.uri) == (text, text)
    assert configs.load("ci", values={"name": text, "tracking.uri": text}) == config
    assert configs.from_json(configs.to_json(config)) == config
    assert configs.build(yaml.safe_load(configs.to_yaml(config))) == config


def test_what_a_file_cannot_say_without_quotes_has_a_remedy_that_works(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: 12")
    with pytest.raises(ConfigError, match=r"name is a text.*in quotes, or set it by --set name=TEXT"):
        configs.load(str(path))
    assert configs.load(str(path), ["name=12"]).name == "12"
    path.write_text("name: 2024-11-20")
    assert configs.load(str(path)).name == "2024-11-20"


def test_later_overrides_win():
    assert configs.load("tiny", ["seed=1", "seed=2"]).seed == 2


def test_a_space_of_the_sweep_has_dotted_keys_and_replaces_the_default_one():
    config = configs.load("tiny", ["sweep.space.distill.learning_rate={low: 1e-5, high: 1e-4, log: true}"])
    assert config.sweep.space == {"distill.learning_rate": {"low": 1e-5, "high": 1e-4, "log": True}}


REFUSED = [
    ("los.reverse_kl_weight=1", "unknown setting", "loss.reverse_kl_weight"),
    ("loss.reverse_kl_wieght=1", "unknown setting", "Did you mean loss.reverse_kl_weight?"),
    ("window=3", "unknown setting", "model.window"),
    ("zzz=1", "unknown setting", "--dry-run"),
    ("loss=3", "is a group", "Set a field"),
    ("loss.reverse_kl_weight", "is not name=value", "--set loss.reverse_kl_weight=0.3"),
    ("=3", "is not name=value", "--set"),
    ("seed=[1", "YAML cannot read", "Quote it"),
    ("teacher.steps=1.5", "teacher.steps", "--set teacher.steps=VALUE"),
    ("teacher.steps=many", "teacher.steps", "--set teacher.steps=VALUE"),
    ("teacher.schedule=linear", "'cosine' or 'constant'", "teacher.schedule"),
    ("teacher.learning_rate=.nan", "finite", "teacher.learning_rate"),
    ("model.patch_size=[1,2]", "model.patch_size", "model.patch_size"),
    ("sft.steps=null", "sft.steps", "sft.steps"),
    ("data.curation.max_flash=2", "data.curation.max_flash is 2", "0 ... 1"),
    ("data.curation.aspects=['2:1']", "data.curation.aspects", "16:9"),
    ("data.limits.max_bites=1", "unknown setting", "data.limits.max_bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem", "remedy"), REFUSED)
def test_a_wrong_setting_is_refused_with_its_remedy(text, problem, remedy):
    with pytest.raises(ConfigError) as caught:
        configs.load("tiny", [text])
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)


FILES = [
    ("teacher: {stepz: 3}", "unknown setting 'teacher.stepz'", "teacher.steps"),
    ("- a\n- b", "holds no mapping", "group:"),
    ("a: [", "cannot be read as YAML", "Correct"),
    ("teacher: 3", "is a group", "teacher.steps"),
    ("extends: nope", "no preset and no file", "Presets:"),
    ("extends: minut", "no preset and no file", "Did you mean minute?"),
]


@pytest.mark.parametrize(("text", "problem", "remedy"), FILES)
def test_a_wrong_file_is_refused_with_its_remedy(tmp_path, text, problem, remedy):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        configs.load(str(path))
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def test_an_empty_file_is_all_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert configs.load(str(path)) == RunConfig()


@pytest.mark.parametrize("name", settings())
def test_every_setting_can_be_set_to_its_own_value(name):
    config = configs.load("tiny")
    value = json.loads(json.dumps(configs.flatten(config)[name]))
    assert configs.with_values(config, {name: value}) == config


def test_flat_names_are_the_names_of_the_fields():
    flat = configs.flatten(configs.load("tiny"))
    assert sorted(flat) == sorted(settings())
    assert flat["loss.reverse_kl_weight"] == 1.0
    assert flat["data.limits.timeout_s"] == 120.0


@given(st.floats(1e-6, 1e6), st.integers(1, 10**6))
def test_any_number_survives_set_and_json(weight, steps):
    config = configs.load("tiny", [f"loss.reverse_kl_weight={weight!r}", f"teacher.steps={steps}"])
    assert config.loss.reverse_kl_weight == weight
    assert configs.from_json(configs.to_json(config)).teacher.steps == steps


def test_the_hash_follows_numbers_and_not_places():
    config = configs.load("tiny")
    places = [
        "name=b",
        "storage.root=/x",
        "tracking.enabled=false",
        "cluster.num_workers=2",
        "sweep.trials=9",
    ]
    assert configs.config_hash(configs.load("tiny", places)) == configs.config_hash(config)
    for numbers in ("seed=1", "loss.reverse_kl_weight=0.5", "evaluation.videos=299", "world.crf=15"):
        assert configs.config_hash(configs.load("tiny", [numbers])) != configs.config_hash(config)


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        configs.load("tiny").seed = 3


GROUPS = sorted(
    {type(value) for value in vars(configs.load("tiny")).values() if dataclasses.is_dataclass(value)},
    key=lambda group: group.__name__,
)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_every_field_is_documented_where_it_is_declared(group):
    body = ast.parse(inspect.getsource(group)).body[0].body
    declared = {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    told = {
        node.target.id
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr)
    }
    inherited = {field.name for base in group.__mro__[1:-1] for field in dataclasses.fields(base)}
    assert declared - told - inherited == set()
