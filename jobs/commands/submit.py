"""`sostenuto submit`: send a command to the Jobs server of a Ray cluster, and follow it."""

import asyncio
import json
import logging
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.main import get_group

from jobs.cli import app
from jobs.console import print_line, warn
from jobs.tracking import this_commit
from jobs.working_dir import EXCLUDES, WorkingDir, megabytes
from models.errors import ClusterError, ConfigError

COMMANDS = frozenset(get_group(app).commands)
"""First words that mean a sostenuto command; anything else runs as it is."""

NAMED = 8
"""Things left behind that a line names."""

PASSED = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "OMP_NUM_THREADS")
"""Variables of this shell that the job gets."""


@dataclass(frozen=True)
class Submission:
    """One job, before it is sent."""

    entrypoint: str
    address: str
    submission_id: str | None
    runtime_env: dict[str, Any]
    """What travels with the job."""
    working_dir: WorkingDir

    @classmethod
    def of(
        cls,
        command: Sequence[str],
        *,
        address: str | None,
        submission_id: str | None,
        env: Sequence[str],
        working_dir: str,
    ) -> "Submission":
        """Read the options of the command line.

        Raises:
            ConfigError: a variable that is not NAME=VALUE, or a working directory that is not a folder.
        """
        variables = {name: os.environ[name] for name in PASSED if name in os.environ}
        if commit := this_commit():
            variables["SOSTENUTO_COMMIT"] = commit
        for pair in env:
            name, equals, value = pair.partition("=")
            if not equals or not name:
                remedy = "Write it as --env MLFLOW_TRACKING_URI=http://head:5000"
                raise ConfigError(f"--env {pair!r} is not NAME=VALUE", remedy)
            variables[name] = value
        if not Path(working_dir).is_dir():
            remedy = "Run submit from the repository's root"
            raise ConfigError(f"--working-dir {working_dir!r} is not a folder", remedy)
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            if address is None and os.environ.get(name, "").startswith(("http://", "https://")):
                address = os.environ[name].rstrip("/")
        words = ["python", "-m", "jobs", *command] if command[0] in COMMANDS else command
        return cls(
            entrypoint=shlex.join(words),
            address=address or "http://127.0.0.1:8265",
            submission_id=submission_id,
            runtime_env={"working_dir": working_dir, "excludes": list(EXCLUDES), "env_vars": variables},
            working_dir=WorkingDir(working_dir),
        )


def token() -> str | None:
    """Ray's token: from $RAY_AUTH_TOKEN, else the file $RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"].strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else None


def connect(address: str) -> Any:
    """A JobSubmissionClient that sends the token.

    Raises:
        ClusterError: nothing answers at the address, or it refuses the token.
    """
    found = token()
    os.environ["RAY_AUTH_MODE"] = "token" if found else os.environ.get("RAY_AUTH_MODE", "disabled")
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for logger in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    headers = {"Authorization": f"Bearer {found}"} if found else {}
    try:
        return JobSubmissionClient(address, headers=headers)
    except AuthenticationError as error:
        problem = "refuses the token" if found else "asks for a token, and none is set"
        remedy = "Set RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token to the cluster's token"
        raise ClusterError(f"the Jobs server at {address} {problem}", remedy) from error
    except (ConnectionError, RuntimeError, ValueError, requests.RequestException) as error:
        remedy = "Start one (ray start --head), open a tunnel (ray dashboard cluster.yaml), or give --address"
        raise ClusterError(f"no Ray head answers at {address}", remedy) from error


def submit(request: Submission, *, follow: bool, dry_run: bool) -> int:
    """Send a job. Following it, print its log until it ends; Ctrl-C leaves it running.

    Returns:
        The exit code: 0 when it was sent or succeeded, else the job's own, or 1.

    Raises:
        ClusterError: the working directory is too large, or the server cannot be reached, or refuses the
            token or the job.
    """
    travels = request.working_dir
    if dry_run:
        job = {
            "address": request.address,
            "entrypoint": request.entrypoint,
            "runtime_env": request.runtime_env,
            "files": len(travels.sizes),
            "bytes": travels.num_bytes,
            "largest": travels.largest,
            "left_out": travels.left_out,
        }
        print_line(json.dumps(job, indent=2))
    travels.check()
    if dry_run:
        return 0
    client = connect(request.address)
    try:
        name = client.submit_job(
            entrypoint=request.entrypoint,
            submission_id=request.submission_id,
            runtime_env=request.runtime_env,
        )
    except (RuntimeError, ValueError) as error:
        if "status code 413" in str(error):
            raise travels.too_large() from error
        lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
        telling = [line for line in lines if "Error:" in line or "already exists" in line]
        reason = (telling or lines or ["no reason given"])[-1].strip('"')[:300]
        taken = "already exists" in reason
        remedy = "Choose another --submission-id" if taken else "Correct what the server names"
        raise ClusterError(f"the job was refused: {reason}", remedy) from error
    print_line(f"submitted {name}: {request.entrypoint}")
    behind = travels.left_out
    more = f" and {len(behind) - NAMED} more" if len(behind) > NAMED else ""
    print_line(
        f"with {len(travels.sizes)} files, {megabytes(travels.num_bytes)}; "
        f"left out: {', '.join(behind[:NAMED]) or 'nothing'}{more}"
    )
    hint = f"RAY_AUTH_MODE=token ray job {{}} --address {request.address} {name}"
    if not follow:
        print_line(f"follow it: {hint.format('logs --follow')}")
        return 0
    try:
        asyncio.run(_print_log(client, name))
        while (status := str(client.get_job_status(name).value)) not in ("SUCCEEDED", "FAILED", "STOPPED"):
            time.sleep(0.5)
    except KeyboardInterrupt:
        warn(f"the job goes on. Follow it: {hint.format('logs --follow')}; stop it: {hint.format('stop')}")
        raise SystemExit(130) from None
    if status == "SUCCEEDED":
        print_line(f"{name} succeeded")
        return 0
    details = client.get_job_info(name)
    warn(f"{name} {status.lower()}: {details.message or 'no message'}")
    return int(details.driver_exit_code or 1)


async def _print_log(client: Any, job: str) -> None:
    """The job's output as it comes, without gaps however often the connection breaks."""
    async for text in client.tail_job_logs(job):
        print_line(text.rstrip("\n"))
