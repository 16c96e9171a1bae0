"""Small Cnn14s, and large ones without their weights' values."""

from __future__ import annotations

import contextlib

import numpy as np
import tensorflow as tf

from l3prune.networks import cnn14, create_network

#: Filters that each published plan leaves.
PLANS = {
    name: [*cnn14.FILTERS[:6], *rest]
    for name, rest in {
        "0 %": cnn14.FILTERS[6:],
        "25 %": (384, 384, 768, 768, 1536, 1536),
        "50 %": (256, 256, 512, 512, 1024, 1024),
        "75 %": (128, 128, 256, 256, 512, 512),
        "75 % mixed": (128, 128, 256, 256, 1024, 1024),
    }.items()
}


@contextlib.contextmanager
def weightless():
    """In here, networks have weights without values, which takes neither memory nor time."""
    with tf.Graph().as_default():
        yield


def small(name="cnn14", **arguments):
    """A network of four filters a layer and five classes, for any length."""
    sizes = {"filters": [4] * 12, "units": 6, "classes": 5, "samples": None}
    return create_network(name, **{**sizes, **arguments})


def shaken(network):
    """The network with weights and statistics that are not trivial."""
    rng = np.random.default_rng(5)
    for weight in network.weights:
        if "moving_variance" in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif "kernel" in weight.name:
            weight.assign(rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape))
        else:
            weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    network.get_layer("bn0").moving_mean.assign(rng.normal(-20, 2, 64))
    network.get_layer("bn0").moving_variance.assign(rng.uniform(50, 150, 64))
    return network
