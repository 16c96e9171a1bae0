"""`training.fit`: objectives, several inputs, layers that are not to change."""

import numpy as np
import pytest

from l3prune import graph
from l3prune.avc import freeze_vision
from l3prune.batch_norm import measure_batch_norm
from l3prune.checkpoints import LATEST
from l3prune.errors import L3PruneError, ParameterError
from l3prune.gradual import GradualPruning, prunable, sparsity_schedule
from l3prune.networks import create_network
from l3prune.networks.avc import PARTS, part_of
from l3prune.recipes import CORRESPONDENCE, Objective, Recipe
from l3prune.rigl import RigL
from l3prune.training import fit
from l3prune.weights import load_network


@pytest.fixture
def pair():
    """A network of two inputs of different shapes, of image and sound."""
    narrow = {"audio_filters": [2] * 8, "vision_filters": [2] * 8, "fusion_units": 3}
    network = create_network("avc", audio="sea64", input="log_mel", weight_decay=0.0, **narrow)
    rng = np.random.default_rng(3)
    for weight in network.weights:
        if "kernel" in weight.name:
            weight.assign(rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape))
    return network


def batch(number):
    rng = np.random.default_rng(number)
    images = rng.uniform(-1, 1, (4, 224, 224, 3)).astype(np.float32)
    spectrograms = rng.uniform(-80, 0, (4, 64, 50, 1)).astype(np.float32)
    return (images, spectrograms), np.eye(2, dtype=np.float32)[rng.integers(0, 2, 4)]


def stream(first=0):
    while True:
        yield batch(first)
        first += 1


def validate():
    yield batch(1000)


def train(network, folder, pruner=None, steps=2, resume=False, **recipe):
    recipe = Recipe(**{"epochs": 2, "learning_rate": 0.05, **recipe})
    return fit(
        network,
        *(stream, validate, steps, folder, recipe),
        objective=CORRESPONDENCE,
        pruner=pruner,
        resume=resume,
        quiet=True,
    )


def figures(probabilities, labels):
    right = probabilities.argmax(axis=1) == labels.argmax(axis=1)
    return -np.log((probabilities * labels).sum(axis=1)).mean(), right.mean()


@pytest.mark.slow
def test_correspondence_by_hand(pair, tmp_path):
    inputs, labels = batch(0)
    first = figures(pair(inputs, training=True).numpy(), labels)
    (row,) = train(prunable(pair), tmp_path, steps=1, epochs=1)
    inputs, labels = batch(1000)
    last = figures(load_network(tmp_path / LATEST)(inputs, training=False).numpy(), labels)
    names = ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert list(row) == ["epoch", "learning_rate", *names]
    assert [row[name] for name in names] == pytest.approx([*first, *last], rel=1e-4)


def weights(network, part):
    return {
        layer.name: [weight.numpy().tobytes() for weight in layer.weights]
        for layer in network.layers
        if part_of(layer.name) == part and layer.weights
    }


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["train", "freeze"])
@pytest.mark.parametrize("rule", ["gradual", "rigl"])
def test_frozen_layers_stay_as_they_are(pair, tmp_path, batch_norm, rule):
    network = prunable(pair)
    if rule == "gradual":
        pruner = GradualPruning(sparsity_schedule("polynomial", 0.5, end_step=3, frequency=1))
    else:
        for layer in graph.convolutions(network).values():
            layer.set_mask(np.random.default_rng(1).random(layer.kernel.shape) < 0.5)
        pruner = RigL(4, frequency=1, alpha=1)
    freeze_vision(network)
    before = {part: weights(network, part) for part in PARTS}
    masks = graph.masks(network)
    train(network, tmp_path, pruner, batch_norm=batch_norm)
    assert weights(network, "vision") == before["vision"]
    assert weights(load_network(tmp_path / LATEST), "vision") == before["vision"]
    for name, moved in weights(network, "audio").items():
        assert moved != before["audio"][name], name
    after = graph.masks(network)
    for name, mask in masks.items():
        assert (after[name] == mask).all() == (part_of(name) == "vision"), name
    for layer in network.layers:
        if layer.weights:
            assert layer.trainable == (part_of(layer.name) != "vision"), layer.name


def test_frozen_statistics_are_not_measured(pair):
    freeze_vision(pair)
    before = weights(pair, "vision")
    measure_batch_norm(pair, stream(), 2)
    assert weights(pair, "vision") == before
    both = np.concatenate([batch(number)[0][1] for number in (0, 1)])
    mean = pair.get_layer("batch_normalization_1").moving_mean.numpy()
    assert mean == pytest.approx([both.mean()], rel=1e-4)


def test_masks_of_frozen_layers_are_refused(pair, tmp_path):
    network = prunable(pair)
    freeze_vision(network)
    pruner = GradualPruning({"vision_conv_2": sparsity_schedule("constant", 0.5)})
    with pytest.raises(ParameterError, match=r"vision_conv_2, .* layers are: conv_1, "):
        train(network, tmp_path / "run", pruner)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_runs_are_continued_with_the_layers_frozen_that_were(pair, tmp_path):
    freeze_vision(pair)
    train(pair, tmp_path, epochs=1)
    pair.trainable = True
    with pytest.raises(L3PruneError, match="with those layers frozen that were"):
        train(pair, tmp_path, resume=True)


@pytest.mark.slow
def test_runs_are_continued_with_their_own_objective(pair, tmp_path):
    train(pair, tmp_path, epochs=1)
    other = Objective("categorical_crossentropy", ("mse",))
    with pytest.raises(L3PruneError, match="was not trained with loss, mse; continue it with its"):
        fit(
            pair,
            *(stream, validate, 2, tmp_path, Recipe(epochs=2)),
            objective=other,
            resume=True,
            quiet=True,
        )


def test_training_batches_that_end(pair, tmp_path):
    with pytest.raises(L3PruneError, match="batches ended before the training did"):
        fit(
            pair,
            *(lambda first: iter([batch(0)]), validate, 2, tmp_path, Recipe(epochs=1)),
            objective=CORRESPONDENCE,
            quiet=True,
        )
