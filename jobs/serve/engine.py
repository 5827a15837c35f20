"""Ray Serve: replicas that make clips, as many as work is there for."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve

from jobs.config.load import to_json
from jobs.config.schema import RunConfig
from jobs.serve.queue import Make
from jobs.serve.studio import Outcome, Studio

ENDING_S = 600.0
"""How long a replica that is not needed any more may go on with its request."""


@contextmanager
def deployed(config: RunConfig) -> Iterator[Make]:
    """Replicas on the running Ray, from when the first is ready to the end of a `with` block.

    Nothing listens on a port: requests come through this process. Other applications of the cluster are left
    alone.
    """
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
    name = f"sostenuto-{config.name}-{config.seed}"
    handle = serve.run(deployment.bind(to_json(config)), name=name, route_prefix=None)

    async def make(job: str, wanted: str) -> Outcome:
        outcome: Outcome = await handle.make.remote(job, wanted)
        return outcome

    try:
        yield make
    finally:
        handle.shutdown()  # else its thread asks Ray for figures when there is none any more
        serve.delete(name, _blocking=False)
