"""`sostenuto serve`: a page that makes clips with the run's trained systems, and its API."""

import ipaddress
import os
import secrets
import socket
from pathlib import Path

import uvicorn

from jobs.commands.runs import checkpoint_of
from jobs.config.paths import RunPaths, is_remote
from jobs.config.schema import RunConfig
from jobs.console import print_line
from jobs.ray_session import ray_session
from jobs.serve.app import create_app
from jobs.serve.desk import Desk, Page
from jobs.serve.engine import deployed
from jobs.serve.history import History
from jobs.serve.remake import keep_config
from jobs.serve.wanted import SYSTEMS, checkpoints
from models.errors import CheckpointError, ClusterError, ConfigError
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import read_info
from pipelines.media.contact_sheet import evenly

TOKEN = "SOSTENUTO_TOKEN"  # noqa: S105 - the name of the variable
EXAMPLES = 12
ENDING_S = 3


def serve(config: RunConfig, *, host: str, port: int) -> None:
    """Serve until Ctrl-C.

    Args:
        config: the run's settings; `serve` has the limits.
        host, port: where to listen; elsewhere than on this machine alone, a token is asked for.

    Raises:
        CheckpointError: nothing has been trained with this seed.
        ConfigError: results would lie in an object store.
        ClusterError: the port is taken, another server works in the folder, or Ray cannot be used.
    """
    page = page_of(config)
    token = None if is_loopback(host) else os.environ.get(TOKEN) or secrets.token_urlsafe(32)
    history = History(Path(RunPaths.of(config).serve))
    try:
        with listening(host, port) as listener, ray_session(config.cluster), deployed(config) as make:
            app = create_app(Desk(page, history, make), token=token)
            shown = f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{listener.getsockname()[1]}/"
            print_line(f"results: {history.folder}")
            print_line(f"page: {address}{f'?token={token}' if token else ''}")
            settings = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=ENDING_S,
            )
            uvicorn.Server(settings).run(sockets=[listener])
    finally:
        history.close()


def page_of(config: RunConfig) -> Page:
    """What the page is told of its run.

    Raises: as `serve`.
    """
    paths = RunPaths.of(config)
    if is_remote(paths.serve):
        raise ConfigError(
            f"results would lie in {paths.serve}, and players read files",
            "Set serve.folder to a folder that every replica mounts",
        )
    known = checkpoints(config)
    if not known:
        raise CheckpointError(
            f"nothing has been trained in {paths.seed(config.seed)}", "Run `sostenuto quickstart` first"
        )
    for system in SYSTEMS:
        if system.name in known:
            checkpoint_of(config, system.stage, "serve")  # a stale one is told
    info = read_info(paths.dataset)
    different = sorted(set(ShardDataset(paths.dataset, "long").captions))
    examples = tuple(different[i] for i in evenly(len(different), min(EXAMPLES, len(different))))
    folder = Path(paths.serve)
    folder.mkdir(parents=True, exist_ok=True)
    return Page(config, keep_config(config, folder), info, examples)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there, on any free port for 0.

    Raises:
        ClusterError: it is taken, or is not this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ClusterError(
            f"nothing can listen on {host}:{port}: {error.strerror or error}",
            "Choose another --port, or another --host",
        ) from error
