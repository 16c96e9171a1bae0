"""Wishes for masks that change: where schedules begin, end, and what they end with."""

import numpy as np
import pytest

from l3prune import graph
from l3prune.errors import ParameterError
from l3prune.gradual import GradualPruning
from l3prune.options import MASK_SCHEDULES
from l3prune.pruner import Wish, prune
from l3prune.rigl import RigL
from l3prune.schedules import KINDS, MaskSchedule, begin
from tests.conftest import make_tiny

LIST = [0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.75]


def test_the_command_knows_all_kinds():
    assert MASK_SCHEDULES == KINDS


def ends(update):
    """(begin, end, final sparsity) of each layer's schedule, or of the one for all."""
    schedules = update.schedules
    each = schedules if isinstance(schedules, dict) else {"all": schedules}
    return {
        name: (one.begin_step, one.end_step, float(one(max(one.begin_step, one.end_step))[1]))
        for name, one in each.items()
    }


def test_polynomial_ends_at_half_of_the_training():
    student, update = begin(make_tiny(), Wish(amount=LIST), MaskSchedule("polynomial"), 10, 30)
    assert isinstance(update, GradualPruning)
    found = ends(update)
    assert found["conv_2"] == (0, 150, pytest.approx(0.5))
    assert found["audio_embedding_layer"] == (0, 150, pytest.approx(0.75))
    # A layer of 0 % has no mask.
    assert list(found) == list(graph.masks(student)) == list(graph.convolutions(student))[1:]
    assert all(mask.all() for mask in graph.masks(student).values())


def test_one_threshold_has_one_schedule():
    schedule = MaskSchedule("constant", begin_step=7)
    student, update = begin(make_tiny(), Wish(overall=0.6), schedule, 10, 3)
    assert ends(update) == {"all": (7, -1, pytest.approx(0.6))}
    assert len(graph.masks(student)) == 8
    assert update.description()["plan"][0] == "plan_global"


def test_initial_sparsity_and_end_step():
    schedule = MaskSchedule("polynomial", begin_step=2, end_step=9, initial_sparsity=0.3)
    _, update = begin(make_tiny(), Wish(amount=0.8), schedule, 10, 3)
    one = update.schedules["conv_1"]
    assert (one.begin_step, one.end_step, float(one(2)[1])) == (2, 9, pytest.approx(0.3))


@pytest.mark.parametrize(
    ("ramp", "epochs", "starts"),
    [
        # Seven layers share 21 epochs of 10 steps.
        (False, 21, [0, 30, 60, 90, 120, 150, 180]),
        # An eighth share is left to train with the last layer pruned.
        (True, 24, [0, 30, 60, 90, 120, 150, 180]),
        (False, 3, [0, 10, 20, 30, 40, 50, 60]),
    ],
)
def test_layers_share_the_epochs(ramp, epochs, starts):
    schedule = MaskSchedule("layer-by-layer", ramp=ramp)
    _, update = begin(make_tiny(), Wish(amount=LIST), schedule, 10, epochs)
    assert [first for first, _, _ in ends(update).values()] == starts
    if epochs == 3:
        with pytest.raises(ParameterError, match="after 60 steps and the run has 30"):
            update.epochs(10, epochs)
    else:
        update.epochs(10, epochs)


def test_rigl_begins_with_the_plan():
    wish = Wish(budget="sparsity=70", allocation="erk")
    student, update = begin(make_tiny(), wish, MaskSchedule("rigl", alpha=0.2), 10, 8)
    assert isinstance(update, RigL)
    assert (update.end_step, update.frequency, update.alpha) == (60, 100, 0.2)
    expected = graph.masks(prune(make_tiny(), wish)[0])
    for name, mask in graph.masks(student).items():
        np.testing.assert_array_equal(mask, expected[name])


def test_blocks_stay_whole_through_a_schedule():
    schedule = MaskSchedule("polynomial", frequency=5)
    _, update = begin(make_tiny(), Wish(amount=0.5, block="2x2"), schedule, 10, 2)
    assert update.description()["plan"][2]["block"] == (2, 2)


@pytest.mark.parametrize(
    ("wish", "schedule", "message"),
    [
        ({"filterwise": True, "amount": 0.5}, {"kind": "constant"}, "not by filters"),
        ({"pattern": "2:4"}, {"kind": "rigl"}, "not by patterns"),
        ({"amount": 0.5, "block": "2x2"}, {"kind": "rigl"}, "RigL moves single weights"),
        ({"overall": 0.5}, {"kind": "layer-by-layer"}, "not one threshold for all"),
        ({"amount": 0.0}, {"kind": "constant"}, "nothing to prune"),
        ({"amount": 0.0}, {"kind": "layer-by-layer"}, "nothing to prune"),
        ({"amount": 0.5}, {"kind": "rigl", "frequency": 0}, "frequency=0 is not a whole"),
        ({"amount": 0.5}, {"kind": "polynomial", "end_step": 0}, "end_step=0 is not a whole"),
    ],
)
def test_what_does_not_go_together(wish, schedule, message):
    with pytest.raises(ParameterError, match=message):
        begin(make_tiny(), Wish(**wish), MaskSchedule(**schedule), 10, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosine"}, "mask schedule 'cosine'; allowed: constant, polynomial, layer-by-"),
        ({"kind": "constant", "end_step": 0}, "end_step is not for the mask schedule constant"),
        ({"kind": "rigl", "ramp": True}, "ramp is not for the mask schedule rigl"),
        ({"kind": "polynomial", "alpha": 0.3}, "it takes frequency, begin_step, end_step, init"),
        # Once gone, all is gone: these have no changes to be between.
        ({"kind": "constant", "frequency": 5}, "frequency is not for the mask schedule constant"),
        ({"kind": "layer-by-layer", "frequency": 5}, "it takes epochs_per_layer, ramp"),
    ],
)
def test_settings_of_another_kind(settings, message):
    with pytest.raises(ParameterError, match=message):
        MaskSchedule(**settings)


def test_a_ramp_has_a_frequency():
    _, update = begin(
        make_tiny(),
        Wish(amount=LIST),
        MaskSchedule("layer-by-layer", ramp=True, frequency=7),
        10,
        24,
    )
    assert {schedule.frequency for schedule in update.schedules.values()} == {7}


def test_the_criterion_scores_and_the_rule_ranks():
    wish = Wish(amount=0.5, block="2x2", criterion="random")
    _, update = begin(make_tiny(), wish, MaskSchedule("polynomial"), 10, 4)
    assert update.criterion == "random"
    assert update.plan.keywords == {"block": (2, 2), "criterion": "magnitude"}
