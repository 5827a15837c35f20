"""`sostenuto track`: what MLflow did not take, and sending it."""

from jobs.config.schema import RunConfig
from jobs.console import print_line
from jobs.tracking import resend_all
from jobs.unsent import describe, resend_command, unsent_of


def track(config: RunConfig, *, resend: bool) -> int:
    """Print what is unsent of this run; with `resend`, send it, file by file, and remove what was taken.

    Returns:
        How many records are left.

    Raises:
        ClusterError: MLflow does not answer or refuses; what it did not take stays.
    """
    unsent = unsent_of(config)
    kept = list(unsent.files())
    if not kept:
        print_line(f"MLflow has everything: nothing is in {unsent.storage}")
        return 0
    if not resend:
        print_line(f"{describe(kept)} are in {unsent.storage}")
        print_line(f"to send them: {resend_command(config)}")
        return sum(len(one.entries) for one in kept)
    resend_all(unsent, config.tracking.uri)
    print_line(f"{describe(kept)} are in MLflow now")
    return 0
