"""What tests of several packages share."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.command import succeed
from tests.head import Head, end_head, save, saved, start_head

settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

COMMANDS = "e2e docs reliability jobs/commands/test_inspect jobs/commands/test_s jobs/test_bad_input".split()
WORKERS = """
pipelines/data/ingest pipelines/data/report pipelines/data/decode/test_hostile
pipelines/data/store/test_caption_embeddings pipelines/data/store/test_damage
jobs/serve/test_engine pipelines/evaluation/test_folders pipelines/evaluation/test_r pipelines/test_ray
pipelines/training/monitors/test_board
""".split()
"""Tests whose commands, or whose tasks, run on Ray, by the beginnings of their paths. Each kind is for one
process: its fixtures are made once, and no more Ray workers live than memory has room for."""
PLACES = [f"tests/{beginning}" for beginning in (*COMMANDS, *WORKERS)]


def place(path: str) -> int:
    """Where a file of tests comes: those on Ray first, as they take longest."""
    return next((i for i, beginning in enumerate(PLACES) if path.startswith(beginning)), len(PLACES))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place(item.nodeid))


@pytest.hookimpl(optionalhook=True)  # unknown without xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deals files to processes, each kind on Ray as if it were one file."""
    from xdist.scheduler import LoadFileScheduling

    class InTurn(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            where = place(nodeid)
            if where == len(PLACES):
                return str(super()._split_scope(nodeid))
            return "commands" if where < len(COMMANDS) else "workers"

    return InTurn(config, log)


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """What a test, or a command run inside it, leaves in the environment ends with it."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that all processes of a test run share, for one of them at a time."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    """The one Ray of a test run: the first test that asks for it starts it, the end of the run ends it."""
    with shared(tmp_path_factory, "head") as folder:
        file = folder / "head.json"
        if not file.exists():
            # the path of a socket of Ray's has 107 bytes at most
            save(start_head(Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp")), TOKEN), file)
        return saved(file)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    file = session.config._tmp_path_factory.getbasetemp() / "head" / "head.json"
    if file.exists():
        end_head(saved(file))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says why the page was not tried in a browser, where it was not."""
    skipped = [one for one in terminalreporter.stats.get("skipped", []) if "test_browser" in one.nodeid]
    for reason in {one.longrepr[2] for one in skipped}:
        terminalreporter.write_line(f"the page was not tried in a browser. {reason}")


@pytest.fixture(scope="session")
def ray_local(head: Head) -> Iterator[None]:
    """This process, joined to the head."""
    import ray
    from ray._private.authentication_test_utils import reset_auth_token_state

    os.environ |= {name: head.variables[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray Data's telemetry logs from a thread of this process
    reset_auth_token_state()  # an earlier test may have asked without a token
    ray.init(address=head.ray, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated sqlite file: making one takes seconds, copying it none."""
    from jobs.config import load as configs
    from jobs.tracking import open_run

    folder = tmp_path_factory.mktemp("mlflow")
    config = configs.load(
        "ci",
        [
            f"storage.root={folder}",
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
            "tracking.experiment=template",
        ],
    )
    reference = open_run(config, "template")
    assert reference is not None
    reference().close()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def finished_quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `quickstart --config ci` has run once, with what it said in output.txt.

    The processes of a test run share it. Tests that would change its runs/ take a copy (tests/command.py:
    copy_runs).
    """
    with shared(tmp_path_factory, "finished-quickstart") as folder:
        output = folder / "output.txt"
        if not output.exists():
            output.write_text(succeed(folder, "quickstart", "--config", "ci", timeout_s=800))
    return folder


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the real Wan autoencoder class with tiny random weights."""
    import torch

    diffusers = pytest.importorskip("diffusers")
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 2.0, 0.5, 1.0],
        )
    folder = tmp_path_factory.mktemp("wan")
    model.save_pretrained(folder)
    return folder


TEXT_DIM = 16
WORDS = "a bay at dusk streaked sky amber sun red blue moon slow waves clip video short long number".split()


@pytest.fixture(scope="session")
def umt5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the real UMT5 classes, laid out as in a diffusers pipeline: tiny random weights, TEXT_DIM
    numbers a token, and a tokenizer that knows WORDS, letters and digits."""
    import torch

    transformers = pytest.importorskip("transformers")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [(f"\u2581{word}", -2.0) for word in WORDS]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789,.'-&"]
    tokenizer = transformers.T5TokenizerFast(vocab=pieces, extra_ids=0)
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer), d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.UMT5EncoderModel(config)
    folder = tmp_path_factory.mktemp("umt5")
    tokenizer.save_pretrained(folder / "tokenizer")
    model.save_pretrained(folder / "text_encoder")
    return folder
