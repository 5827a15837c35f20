"""One Ray for a command: the cluster's inside a job or where RAY_ADDRESS says so, else a private local one.

A local Ray counts at least four logical CPUs, because controllers and workers wait for each other on fewer.
It asks for a token, listens on this machine only, reports nothing, and leaves no process and no file behind.
"""

import logging
import os
import secrets
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.console import raise_on_sigterm
from models.errors import ClusterError
from pipelines.training.config import ClusterConfig

OBJECT_STORE_BYTES = 384 << 20
"""Object store of a local Ray: shards travel by file, so little passes through it."""

REMOVE_S = 5.0
"""Longest time that ending processes of Ray are waited for."""

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

NOISY_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve")


def joins_cluster() -> bool:
    """Whether a command uses a cluster that is already there."""
    return bool(os.environ.get("RAY_ADDRESS"))


def require_token_mode() -> None:
    """Turn tokens on where one is at hand: Ray's client never does by itself, and is then refused."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ["RAY_AUTH_MODE"] = "token"


def worker_environment() -> dict[str, str]:
    """Environment variables that every Ray worker of this run gets."""
    passed = {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW_", "SOSTENUTO_"))}
    return (
        passed
        | {name: os.environ.get(name, value) for name, value in QUIET.items()}
        | {"OMP_NUM_THREADS": "1"}
    )


def logical_cpus(cluster: ClusterConfig) -> int:
    """CPUs that a local Ray counts: the setting's, or the machine's, at least 4 and 2 beside the workers."""
    return cluster.logical_cpus or max(4, os.cpu_count() or 1, cluster.num_workers + 2)


@contextmanager
def ray_session(cluster: ClusterConfig, *, dashboard: bool = False, debug: bool = False) -> Iterator[None]:
    """Ray for the length of a `with` block; an already connected process keeps its Ray.

    Args:
        cluster: what training asks of Ray.
        dashboard: also start the dashboard, which Tune needs to free the resources of stopped trials.
        debug: let Ray and the workers print what they log.

    Raises:
        ClusterError: the cluster does not answer, refuses the token, or a local Ray cannot be started.
    """
    _set_defaults(QUIET)
    import ray

    if ray.is_initialized():
        yield
        return
    quiet(debug=debug)
    folder = None if joins_cluster() else _short_folder()
    try:
        _start(cluster, folder, dashboard=dashboard, debug=debug)
        raise_on_sigterm()
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove Ray's files; its last processes may still write while they end."""
    deadline = time.monotonic() + REMOVE_S
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _short_folder() -> Path:
    """A temporary folder whose name leaves room for Ray's sockets: a socket's path has 107 bytes at most."""
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="sostenuto-", dir=parent if len(parent) <= 20 else "/tmp"))


def _start(cluster: ClusterConfig, folder: Path | None, *, dashboard: bool, debug: bool) -> None:
    """Join the cluster of RAY_ADDRESS, or start a private Ray that keeps its files in `folder`."""
    import ray

    level = logging.WARNING if debug else logging.ERROR
    runtime_env = {"env_vars": worker_environment()}
    try:
        if folder is None:
            require_token_mode()
            ray.init(
                address=os.environ["RAY_ADDRESS"],
                runtime_env=runtime_env,
                logging_level=level,
                log_to_driver=debug,
            )
            return
        _private_token()
        _set_defaults(LOCAL)
        ray.init(
            address="local",
            num_cpus=logical_cpus(cluster),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=dashboard,
            runtime_env=runtime_env,
            logging_level=level,
            log_to_driver=debug,
            _temp_dir=str(folder),
        )
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:200]
        if folder is None:
            raise ClusterError(
                f"the Ray cluster at {os.environ['RAY_ADDRESS']} cannot be joined: {reason}",
                "Check RAY_ADDRESS, RAY_AUTH_MODE=token and the token, or unset RAY_ADDRESS",
            ) from error
        raise ClusterError(
            f"a local Ray cannot be started: {reason}",
            "Free memory, disk and /dev/shm; `sostenuto doctor` checks them",
        ) from error


def _set_defaults(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _private_token() -> None:
    """A token in memory for a private Ray, unless the user has one. Ray itself turns the token mode on."""
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def quiet(*, debug: bool = False) -> None:
    """Silence Ray's loggers, whose errors are raised as well, and the bars and plans of Ray Data."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = debug
    context.print_on_execution_start = debug
    if not debug:
        warnings.filterwarnings("ignore", module=r"ray\..*")
        for name in NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
