"""Network slimming: the penalty on scales, one threshold, fresh weights after the cut."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from l3prune import graph
from l3prune.classification import predict, train_on_labels
from l3prune.errors import L3PruneError, ParameterError
from l3prune.filterwise import plan_filterwise
from l3prune.labelled import LabelledMaps
from l3prune.networks import avc, create_network, list_networks
from l3prune.options import parse
from l3prune.pruner import Wish, make_plan, prune
from l3prune.recipes import Recipe
from l3prune.slimming import scales, slimmed_norms, with_penalty
from tests.test_networks import SMALL

#: Those that are trained on something, each with an audio input of its own.
NETWORKS = sorted({*list_networks()} - {*avc.NETWORKS})

#: Of so many layers that a test of one takes long.
DEEP = ("densenet121", "resnet50")


def stays(plan):
    return {name: np.flatnonzero(mask).tolist() for name, mask in plan.items()}


def test_the_threshold_by_hand():
    scores = {"a": np.array([0.1, 0.5, 0.3]), "b": np.array([0.2, 0.05, 0.4, 0.6])}
    # Sorted: .05 .1 .2 .3 .4 .5 .6; number int(7 * 0.5) = 3 is .3, and what is above it stays.
    assert stays(plan_filterwise(scores, threshold_ratio=0.5)) == {"a": [1], "b": [2, 3]}
    assert stays(plan_filterwise(scores, threshold_ratio=0)) == {"a": [0, 1, 2], "b": [0, 1, 2, 3]}
    # Layers keep their best filter, whatever the threshold.
    assert stays(plan_filterwise(scores, threshold_ratio=0.99)) == {"a": [1], "b": [3]}


def test_of_1920_scales_959_stay():
    rng = np.random.default_rng(0)
    sizes = (64, 64, 128, 128, 256, 256, 512, 512)
    scores = {str(number): rng.uniform(0.1, 1, size) for number, size in enumerate(sizes)}
    plan = plan_filterwise(scores, threshold_ratio=0.5)
    assert sum(int(mask.sum()) for mask in plan.values()) == 959
    threshold = np.sort(np.concatenate(list(scores.values())))[960]
    for name, mask in plan.items():
        np.testing.assert_array_equal(mask, scores[name] > threshold)


def test_layers_are_compared_as_they_are():
    scores = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([10.0, 20.0, 30.0])}
    assert stays(plan_filterwise(scores, threshold_ratio=0.5)) == {"a": [2], "b": [1, 2]}
    # `global_ratio` compares them by their layer's mean, .5 1 1.5 in both.
    assert stays(plan_filterwise(scores, global_ratio=0.5)) == {"a": [1, 2], "b": [2]}
    groups = [("a", "b")]  # means 5.5, 11, 16.5
    assert stays(plan_filterwise(scores, threshold_ratio=0.4, groups=groups)) == {
        "a": [2],
        "b": [2],
    }


def test_a_tie_with_the_threshold_goes_and_equal_scales_are_refused():
    scores = {"a": np.array([0.1, 0.2, 0.2, 0.2, 0.9])}
    assert stays(plan_filterwise(scores, threshold_ratio=0.25)) == {"a": [4]}
    with pytest.raises(ParameterError, match="all 4 filters score 1, so that no threshold tells"):
        plan_filterwise({"a": np.ones(4)}, threshold_ratio=0.5)
    with pytest.raises(ParameterError, match="threshold_ratio=50 is not in"):
        plan_filterwise(scores, threshold_ratio=50)


def marked(name, **arguments):
    """A small network whose scales all differ."""
    network = create_network(name, **{**SMALL.get(name, {"filters": [4] * 8}), **arguments})
    rng = np.random.default_rng(1)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and layer.scale:
            layer.gamma.assign(rng.uniform(0.1, 1, layer.gamma.shape) * rng.choice([-1, 1]))
    return network


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=[pytest.mark.slow] * (each in DEEP)) for each in NETWORKS],
)
def test_every_network_is_slimmed(name):
    network = marked(name)
    norms = slimmed_norms(network)
    assert norms
    found = scales(network)
    penalised = with_penalty(network, 0.25)
    sums = sum(float(each.sum()) for each in found.values())
    decay = float(sum(network.losses)) if network.losses else 0.0
    assert float(sum(penalised.losses)) == pytest.approx(0.25 * sums + decay, rel=1e-5)
    plan = make_plan(network, Wish(filterwise=True, overall=0.5, criterion="bn_gamma"))
    # What is removed has a scale below all that stays, but for the best filter of its layer.
    gone, kept = [], []
    for layer, mask in plan.items():
        gamma = np.abs(graph.conv_weights(network)[layer].gamma)
        assert any(np.array_equal(gamma, each) for each in found.values())
        gone += gamma[~mask].tolist()
        kept += gamma[mask].tolist() if mask.sum() > 1 else []
    if all(mask.size == 1 for mask in plan.values()):
        return  # a network whose layers have one filter each loses none
    assert max(gone) < min(kept, default=1)
    smaller, _ = prune(network, Wish(filterwise=True, overall=0.5, criterion="bn_gamma"))
    assert smaller.output_shape == network.output_shape


def test_layers_without_a_norm_of_their_own_stay_whole():
    network = marked("mel256", filters=[4] * 8)
    assert graph.conv_weights(network)["audio_embedding_layer"].gamma is None
    plan = make_plan(network, Wish(filterwise=True, overall=0.5, criterion="bn_gamma"))
    assert "audio_embedding_layer" not in plan
    bare = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 1), keras.layers.Flatten()]
    )
    with pytest.raises(
        ParameterError, match=r"no layer can lose filters here: .* without BatchNorm"
    ):
        make_plan(bare, Wish(filterwise=True, overall=0.5, criterion="bn_gamma"))
    with pytest.raises(ParameterError, match="has no BatchNorm with scale behind a convolution"):
        with_penalty(bare, 0.1)


def test_the_gradient_has_the_sign_of_the_scale_added():
    network = marked("fat2019", input="log_mel")
    norm = network.get_layer("batch_normalization_2")
    norm.gamma.assign([0.0, -0.25])
    penalised = with_penalty(network, 0.125)
    gamma = penalised.get_layer("batch_normalization_2").gamma
    with tf.GradientTape() as tape:
        loss = tf.add_n(penalised.losses)
    np.testing.assert_allclose(tape.gradient(loss, gamma), [0.0, -0.125])
    assert not network.losses  # the given one is as it was


@pytest.mark.parametrize("strength", [-1e-3, float("nan"), float("inf"), "much", True])
def test_strengths_that_are_none(strength):
    with pytest.raises(ParameterError, match=r"gamma_l1=.* is not a number ≥ 0; 1e-6 to 1e-4"):
        with_penalty(create_network("dcase2021", **SMALL["dcase2021"]), strength)


def test_training_with_the_penalty_draws_scales_to_zero(tmp_path):
    """Labels that have nothing to do with the maps: what is left is the penalty."""
    rng = np.random.default_rng(2)
    maps = rng.normal(size=(4, 40, 500, 1)).astype(np.float32)
    data = LabelledMaps(maps, np.eye(2, dtype=np.float32)[[0, 1, 1, 0]], ("a", "b"), "noise")

    def trained(strength):
        keras.utils.set_random_seed(3)
        network = create_network("dcase2021", filters=[2, 2, 2], dense_units=2, classes=2)
        recipe = Recipe(epochs=3, learning_rate=0.05, checkpoint_interval=0, best_from=2)
        train_on_labels(
            *(network, data, data, tmp_path / f"{strength}"),
            recipe=recipe,
            batch_size=4,
            gamma_l1=strength,
            quiet=True,
        )
        assert predict(network, data, quiet=True)[0].shape == (4, 2)
        return sum(float(each.sum()) for each in scales(network).values())

    assert trained(10.0) < trained(0.0) - 0.3


def test_a_run_with_the_penalty_does_not_go_on_without(tmp_path):
    maps = np.random.default_rng(2).normal(size=(2, 40, 500, 1)).astype(np.float32)
    data = LabelledMaps(maps, np.eye(2, dtype=np.float32), ("a", "b"), "noise")
    network = create_network("dcase2021", filters=[2, 2, 2], dense_units=2, classes=2)
    for epochs, strength, expected in ((1, 0.5, None), (2, 0.0, "gamma_l1=0.5, not None")):
        recipe = Recipe(epochs=epochs, checkpoint_interval=0)
        with pytest.raises(L3PruneError, match=expected) if expected else contextlib.nullcontext():
            train_on_labels(
                *(network, data, data, tmp_path),
                recipe=recipe,
                batch_size=2,
                gamma_l1=strength,
                resume=epochs > 1,
                quiet=True,
            )


# The command's options.

LINE = ["w.h5", "FAT", "out", "--labels", "fsdkaggle2019", "--filterwise", "--retrain"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from-scratch", "--layer-ratio", "a=1", "--fresh", "a"], "drop --fresh"),
        (["--from-scratch", "--layer-ratio", "a=1", "--iterative"], "drop --iterative"),
        (["--global-filter-ratio", "5", "--cosine-interval", "3"], "without --schedule cosine"),
        (["--global-filter-ratio", "5", "--final-learning-rate", "1"], "without --schedule cosine"),
    ],
)
def test_options_that_do_not_go_together(words, message):
    with pytest.raises(ParameterError, match=message):
        parse([*LINE, *words])


def test_from_scratch_is_for_filters_of_a_retrained_network():
    with pytest.raises(ParameterError, match="--from-scratch is for --filterwise with --retrain"):
        parse([*LINE[:-1], "--global-filter-ratio", "50", "--from-scratch"])
    with pytest.raises(ParameterError, match="--from-scratch is for --labels"):
        parse(["w.h5", "a", "b", "out", "--filterwise", "--filter-ratio", "9", "--from-scratch"])
    with pytest.raises(ParameterError, match="--gamma-l1 is for --labels"):
        parse(["w.h5", "a", "b", "out", "--filterwise", "--filter-ratio", "9", "--gamma-l1", "1"])
