"""A made-up checkpoint of I3D, laid out as the published one, with as many channels as a test wants."""

import numpy as np

from pipelines.evaluation.features.i3d import BLOCKS

STEM, CLASSES = (2, 3, 2), 5
FEW = dict.fromkeys(BLOCKS, (1, 2, 1, 1, 2, 1))
"""Channels of a network that numpy can follow."""
BRANCHES = ("0/Conv3d_0a_1x1", "1/Conv3d_0a_1x1", "1/Conv3d_0b_3x3", "2/Conv3d_0a_1x1", "2/Conv3d_0b_3x3")


def tree(seed=0):
    """Nested dictionaries of float32 arrays: `params` and `batch_stats`."""
    random = np.random.default_rng(seed)
    params, stats = {}, {}

    def unit(place, kernel, inputs, outputs):
        into, name = place
        shape = (kernel, kernel, kernel, inputs, outputs)
        values = random.standard_normal(shape) * np.sqrt(2.0 / (inputs * kernel**3))
        params_here, stats_here = (d.setdefault(into, {}) if into else d for d in (params, stats))
        params_here[name] = {
            "Conv_0": {"kernel": values.astype(np.float32)},
            "BatchNorm_0": {"bias": random.uniform(0, 0.5, outputs).astype(np.float32)},
        }
        mean = random.normal(0, 0.2, (1, 1, 1, 1, outputs)).astype(np.float32)
        var = random.uniform(0.01, 1.5, (1, 1, 1, 1, outputs)).astype(np.float32)
        stats_here[name] = {"BatchNorm_0": {"mean": mean, "var": var}}

    unit(("", "Conv3d_1a_7x7"), 7, 3, STEM[0])
    unit(("", "Conv3d_2b_1x1"), 1, STEM[0], STEM[1])
    unit(("", "Conv3d_2c_3x3"), 3, STEM[1], STEM[2])
    channels = STEM[2]
    for name, (one, left, a, right, b, pooled) in FEW.items():
        mixed = f"Mixed_{name}"
        for branch, kernel, inputs, outputs in (
            (BRANCHES[0], 1, channels, one),
            (BRANCHES[1], 1, channels, left),
            (BRANCHES[2], 3, left, a),
            (BRANCHES[3], 1, channels, right),
            (BRANCHES[4], 3, right, b),
            ("3/Conv3d_0b_1x1", 1, channels, pooled),
        ):
            unit((mixed, f"Branch_{branch}"), kernel, inputs, outputs)
        channels = one + a + b + pooled
    kernel = random.standard_normal((1, 1, 1, channels, CLASSES)).astype(np.float32)
    bias = random.standard_normal(CLASSES).astype(np.float32)
    params["Logits/Conv3d_0c_1x1"] = {"Conv_0": {"kernel": kernel, "bias": bias}}
    return {"params": params, "batch_stats": stats}
