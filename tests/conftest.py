"""Fixtures: the published network and recordings, tiny networks, generated sound."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.register_assert_rewrite(
    "tests.commands", "tests.masked_training", "tests.packed_files", "tests.slurm.client"
)


def pytest_collection_modifyitems(items):
    """Tests marked `shared` need the folder that L3PRUNE_SHARED names."""
    if os.environ.get("L3PRUNE_SHARED"):
        return
    skip = pytest.mark.skip(reason="L3PRUNE_SHARED is not set")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the published SEA-64 network, ESC-10 and reference values."""
    return Path(os.environ["L3PRUNE_SHARED"])


@pytest.fixture(scope="session")
def reference(shared):
    """Windows, log-mels and embeddings that the published network's own stack computed."""
    with np.load(shared / "reference" / "sea64_esc10.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def sea64(shared):
    """The published network. Read-only: tests that train take a copy by surgery."""
    from l3prune.weights import load_network

    return load_network(shared / "models" / "edgel3_sea_ust_audio_emb_64.h5.gz")


def make_tiny():
    """A SEA network of four filters a layer, with weights and statistics that are not trivial."""
    from l3prune.networks import create_network

    network = create_network("sea64", filters=[4] * 8)
    rng = np.random.default_rng(5)
    for weight in network.weights:
        if "moving_variance" in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif "kernel" in weight.name:
            # Not Keras's own random weights, which differ from run to run.
            weight.assign(rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape))
        else:
            weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    network.get_layer("batch_normalization_1").moving_mean.assign([-30.0])
    network.get_layer("batch_normalization_1").moving_variance.assign([200.0])
    return network


@pytest.fixture
def tiny():
    """A tiny network; see `make_tiny`."""
    return make_tiny()


def make_pruned():
    """A network with masks, whose kernels are large enough to be quantised."""
    from l3prune.graph import conv_weights
    from l3prune.networks import create_network
    from l3prune.plan import plan_layerwise
    from l3prune.surgery import apply_masks

    network = create_network("sea64", filters=[8, 16, 16, 16, 24, 24, 16, 16])
    rng = np.random.default_rng(1)
    for weight in network.weights:
        if "kernel" in weight.name:
            weight.assign(rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape))
        elif "moving_variance" in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif "gamma" in weight.name:
            # A scale may be negative; a zero behind it stays one.
            weight.assign(rng.uniform(0.5, 1.5, weight.shape) * rng.choice([-1, 1], weight.shape))
    norm = network.get_layer("batch_normalization_1")
    norm.moving_mean.assign([-30.0])
    norm.moving_variance.assign([200.0])
    return apply_masks(network, plan_layerwise(conv_weights(network), [0, *[0.6, 0.8] * 3, 0.9]))


def chirp(seconds: float, sample_rate: int, low: float = 100.0, high: float = 3000.0):
    """A linear sweep, (samples,) float32."""
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    phase = 2 * np.pi * (low * time + (high - low) * time**2 / (2 * max(seconds, 1e-9)))
    return (0.5 * np.sin(phase)).astype(np.float32)


def make_sounds(folder: Path) -> Path:
    """Four different recordings at 8 kHz, 2 s each, in a new folder."""
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(7)
    noise = rng.uniform(-0.5, 0.5, 16000).astype(np.float32)
    bursts = noise * (np.arange(16000) % 2000 < 300)
    for name, audio in {
        "chirp.wav": chirp(2, 8000),
        "noise.flac": noise,
        "bursts.ogg": bursts,
        "deep/low.wav": chirp(2, 8000, 50, 400),
    }.items():
        soundfile.write(folder / name, audio, 8000)
    return folder


@pytest.fixture
def sounds(tmp_path) -> Path:
    """A folder of recordings; see `make_sounds`."""
    return make_sounds(tmp_path / "sounds")


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    """A file with the tiny network."""
    from l3prune.weights import save_network

    path = tmp_path_factory.mktemp("net") / "tiny.h5"
    save_network(make_tiny(), path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory, net):
    """Where a module's tests of the pruning command run; see `commands.Place`."""
    from tests.commands import Place

    return Place(tmp_path_factory.mktemp("place"), net)


@pytest.fixture(scope="module")
def slurm():
    """A SLURM of two hosts on this machine."""
    from tests.slurm.client import running

    with running() as cluster:
        yield cluster
