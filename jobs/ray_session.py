"""One Ray per command: the cluster's inside a job or where RAY_ADDRESS is set, else a private local one.

A local Ray has at least four logical CPUs, because controllers and workers deadlock on fewer. It asks for a
token, listens on this machine only, sends no telemetry, and leaves no process and no file behind; what a
killed command leaves, the next one deletes.
"""

import logging
import os
import re
import secrets
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from jobs.console import raise_on_sigterm, warn
from models.errors import ClusterError
from pipelines.storage import temporary_folder
from pipelines.training.config import ClusterConfig

OBJECT_STORE_BYTES = 384 << 20
"""Object store of a local Ray; shards travel by file, so little passes through it."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
"""Environment of a quiet Ray; a variable that the user has set stays."""

LOCAL = {
    "RAY_maximum_startup_concurrency": "8",
    "RAY_num_workers_soft_limit": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Environment of a private Ray on one machine: idle workers end and give their memory back (1.1 GiB while
stages train), and nothing watches for a machine that is taken away."""

SPOKEN_AGAIN_S = 60.0
"""How long the same sentence of Ray's is not shown again."""

NOISY_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve")


def require_token_mode() -> None:
    """Turn tokens on where there is one: Ray's client never does by itself, and is then refused."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def worker_environment() -> dict[str, str]:
    """Environment variables of every Ray worker of this run."""
    passed = {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW_", "SOSTENUTO_"))}
    quiet = {name: os.environ.get(name, value) for name, value in QUIET.items()}
    return passed | quiet | {"OMP_NUM_THREADS": "1"}


def logical_cpus(cluster: ClusterConfig) -> int:
    """CPUs of a local Ray: the setting's, or the machine's, at least 4 and 2 beside the workers."""
    return cluster.logical_cpus or max(4, os.cpu_count() or 1, cluster.most_workers + 2)


@contextmanager
def ray_session(cluster: ClusterConfig, *, dashboard: bool = False, debug: bool = False) -> Iterator[None]:
    """Ray for the length of a `with` block; an already connected process keeps its Ray.

    Args:
        cluster: what training asks of Ray.
        dashboard: also start the dashboard, which Tune needs to free the resources of stopped trials.
        debug: let Ray and the workers print what they log.

    Raises:
        ClusterError: the cluster does not answer or refuses the token, or a local Ray cannot be started.
    """
    _set_defaults(QUIET)
    import ray

    if ray.is_initialized():
        yield
        return
    quiet(debug=debug)
    # the path of a socket of Ray's has 107 bytes at most
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) <= 20 else "/tmp"
    with nullcontext() if os.environ.get("RAY_ADDRESS") else temporary_folder(parent) as folder:
        try:
            _start(cluster, folder, dashboard=dashboard, debug=debug)
            raise_on_sigterm()
            yield
        finally:
            ray.shutdown()


def _start(cluster: ClusterConfig, folder: Path | None, *, dashboard: bool, debug: bool) -> None:
    """Join the cluster of RAY_ADDRESS, or start a private Ray that keeps its files in `folder`."""
    import ray
    from ray._private import auto_init_hook
    from ray._private import worker as ray_worker

    # a thread that outlives the session, such as another stage's after an error, starts no Ray of its own
    auto_init_hook.enable_auto_connect = False
    if not debug:
        # Ray prints what befalls workers and nodes in paragraphs, whatever `log_to_driver` says
        ray_worker.print_to_stdstream = Sentences()
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    settings: dict[str, Any] = {
        "runtime_env": {"env_vars": worker_environment()},
        "logging_level": logging.WARNING if debug else logging.ERROR,
        "log_to_driver": debug,
    }
    if folder is None:
        require_token_mode()
        settings |= {"address": os.environ["RAY_ADDRESS"]}
        problem = f"the Ray cluster at {os.environ['RAY_ADDRESS']} cannot be joined"
        remedy = "Check RAY_ADDRESS, RAY_AUTH_MODE=token and the token, or unset RAY_ADDRESS"
    else:
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            # in memory only; Ray itself turns the token mode on
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        _set_defaults(LOCAL)
        settings |= {
            "address": "local",
            "num_cpus": logical_cpus(cluster),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": dashboard,
            "_temp_dir": str(folder),
        }
        problem = "a local Ray cannot be started"
        remedy = "Free memory, disk and /dev/shm; `sostenuto doctor` checks them"
    try:
        with _stderr_without("Set ray log level"):
            ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        raise ClusterError(f"{problem}: {' '.join(str(error).split())[:200]}", remedy) from error


class Sentences:
    """Shows the first sentence of what Ray prints, and the same one not again for a while."""

    def __init__(self) -> None:
        self._shown: dict[str, float] = {}

    def __call__(self, data: Mapping[str, Any], ignore_prefix: bool) -> None:
        """In place of Ray's own printer; `data["lines"]` are paragraphs."""
        del ignore_prefix
        for text in data["lines"]:
            sentence = re.split(r"[.:;]?\s*\n|\. ", text.strip(), maxsplit=1)[0][:300]
            sentence += " and is tried again" if "will be retried" in text else ""
            now = time.monotonic()
            if now - self._shown.get(sentence, -SPOKEN_AGAIN_S) >= SPOKEN_AGAIN_S:
                self._shown[sentence] = now
                warn(f"ray: {sentence}")


@contextmanager
def _stderr_without(words: str) -> Iterator[None]:
    """Standard error, libraries' too, is held until the context ends; lines with these words are dropped."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                if words not in line:
                    warn(line)


def _set_defaults(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def quiet(*, debug: bool = False) -> None:
    """Silence Ray's loggers, whose errors are raised anyway, and Ray Data's bars and plans."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = debug
    context.print_on_execution_start = debug
    if not debug:
        warnings.filterwarnings("ignore", module=r"ray\..*")
        for name in NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
