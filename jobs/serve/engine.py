"""Ray Serve: replicas that make clips, as many as work is there for."""

import logging

from ray import serve

from jobs.config.load import to_json
from jobs.config.schema import RunConfig
from jobs.serve.queue import Make
from jobs.serve.studio import Outcome, Studio

ENDING_S = 600.0
"""How long a replica that is not needed any more may go on with its request."""


def deploy(config: RunConfig) -> Make:
    """Start the replicas on the running Ray, and wait for the first.

    Nothing listens on a port: requests come through this process.
    """
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
    limits = config.serve
    deployment = serve.deployment(
        Studio,
        name="studio",
        max_ongoing_requests=1,
        autoscaling_config={
            "min_replicas": limits.min_replicas,
            "max_replicas": limits.max_replicas,
            "target_ongoing_requests": 1,
            "upscale_delay_s": 2,
            "downscale_delay_s": 300,
        },
        ray_actor_options={"num_cpus": 1, "num_gpus": int(config.cluster.use_gpu)},
        graceful_shutdown_timeout_s=ENDING_S,
    )
    handle = serve.run(deployment.bind(to_json(config)), name=name_of(config), route_prefix=None)

    async def make(job: str, wanted: str) -> Outcome:
        outcome: Outcome = await handle.make.remote(job, wanted)
        return outcome

    return make


def undeploy(config: RunConfig) -> None:
    """End the replicas; other applications of the cluster go on."""
    serve.delete(name_of(config), _blocking=False)


def name_of(config: RunConfig) -> str:
    """Of the application in Ray Serve."""
    return f"sostenuto-{config.name}-{config.seed}"
