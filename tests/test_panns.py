"""What PANNs and E-PANNs publish, and what follows from their networks."""

import itertools

import numpy as np
import pytest

from l3prune.errors import ParameterError
from l3prune.networks import create_network
from l3prune.panns import counts, reductions
from tests.cnn14_networks import PLANS, small, weightless


@pytest.fixture(scope="module")
def found():
    with weightless():
        return {
            plan: counts(create_network("cnn14", filters=filters))
            for plan, filters in PLANS.items()
        }


@pytest.mark.parametrize(
    ("plan", "trainable", "keras", "torchsummary", "megabytes", "state_dict"),
    [
        ("0 %", 80_753_615, 80_769_871, 81_804_239, 312.06, 81_853_327),
        ("25 %", 47_408_591, 47_421_263, 48_459_215, 184.86, 48_504_719),
        ("50 %", 23_205_839, 23_214_927, 24_256_463, 92.53, 24_298_383),
        ("75 %", 8_145_359, 8_150_863, 9_195_983, 35.08, 9_234_319),
        ("75 % mixed", 17_453_519, 17_461_071, 18_504_143, 70.59, 18_544_527),
    ],
)
def test_parameters(found, plan, trainable, keras, torchsummary, megabytes, state_dict):
    of = found[plan]
    assert (of.trainable, of.parameters) == (trainable, keras)
    assert (of.torchsummary, of.state_dict) == (torchsummary, state_dict)
    assert round(of.torchsummary_megabytes, 2) == megabytes


@pytest.mark.parametrize(
    ("plan", "billions"),
    [
        ("0 %", [20.0367, 20.0419, 21.1584, 21.1260, 42.2196]),
        ("25 %", [15.6377, 15.6420, 16.7566, 16.7251, 33.4188]),
        ("50 %", [12.4114, 12.4146, 13.5275, 13.4969, 26.9631]),
        ("75 %", [10.3576, 10.3598, 11.4709, 11.4412, 22.8526]),
        ("75 % mixed", [10.8696, 10.8728, 11.9841, 11.9543, 23.8788]),
    ],
)
def test_operations(found, plan, billions):
    of = found[plan]
    given = [of.conv_macs, of.macs, of.thop, of.thop_2_norm, of.panns]
    assert [round(each / 1e9, 4) for each in given] == billions


def test_operations_to_the_digit(found):
    of = found["0 %"]
    assert of.conv_macs == 20_036_653_056
    assert of.macs - of.conv_macs == 5_273_600
    assert (of.thop - of.thop_2_norm) // 2 == 16_194_112
    assert of.thop_2_norm - of.macs - 2 * 16_194_112 == 1_051_674_624
    assert of.thop == 21_158_377_728


@pytest.mark.parametrize(
    ("plan", "trainable", "torchsummary", "thop_plain", "thop"),
    [
        ("25 %", 41.29, 40.76, 21.89, 20.80),
        ("50 %", 71.26, 70.35, 37.95, 36.07),
        ("75 %", 89.91, 88.76, 48.18, 45.79),
    ],
)
def test_reductions(found, plan, trainable, torchsummary, thop_plain, thop):
    """Of the published 41, 70, 78 % of the parameters and 24, 36, 46 % of the operations all but 78
    and 24 follow from networks pruned alike in C7 … C12."""
    saved = reductions(found["0 %"], found[plan])["saved_percent"].round(2)
    assert (saved["trainable"], saved["torchsummary"]) == (trainable, torchsummary)
    assert (saved["thop_plain"], saved["thop"]) == (thop_plain, thop)


def test_the_mixed_plan_has_the_published_reductions_at_75_percent(found):
    saved = reductions(found["0 %"], found["75 % mixed"])["saved_percent"].round(2)
    assert (saved["trainable"], saved["thop_plain"]) == (78.39, 45.63)
    assert (saved["torchsummary"], saved["thop"]) == (77.38, 43.36)


def test_no_other_plan_of_quarters_has_them(found):
    """Of 4^6 plans, by formulas that agree with the networks that were counted."""
    whole, keeps = np.array(PLANS["0 %"]), (1.0, 0.75, 0.5, 0.25)
    #: Places that a convolution of C1 … C12 computes, of ten seconds.
    grids = np.repeat([1001 * 64, 500 * 32, 250 * 16, 125 * 8, 62 * 4, 31 * 2], 2)

    def costs(filters):
        """Trained parameters and THOP's operations, without the Fourier transform."""
        weights = 9 * np.array([1, *filters[:-1]]) * filters
        dense = 2048 * filters[-1] + 2048 * 527
        parameters = weights.sum() + 2 * (64 + filters.sum()) + dense + 2048 + 527
        values = 1001 * 64 + (grids * filters).sum()
        return parameters, (grids * weights).sum() + dense + 4 * values

    for plan, filters in PLANS.items():
        assert costs(np.array(filters)) == (found[plan].trainable, found[plan].thop_plain)
    kernels = 2 * 513 * 1024
    both, with_transform = [], []
    for plan in itertools.product(keeps, repeat=6):
        part = np.array(costs((whole * [*[1] * 6, *plan]).astype(int)))
        for fits, more in ((both, (0, 0)), (with_transform, (kernels, 1001 * kernels))):
            saved = 100 * (1 - (part + more) / (np.array(costs(whole)) + more))
            if (np.abs(saved - (78, 46)) < 0.6).all():
                fits.append(plan)
    assert both == [(0.25,) * 4 + (0.5,) * 2]
    assert with_transform == []


def test_networks_without_counts():
    with pytest.raises(ParameterError, match=r"network 'sea64' is none of PANNs' \(cnn14, cnn14_d"):
        counts(create_network("sea64", filters=[1] * 8))
    with pytest.raises(ParameterError, match=r"any length has no number .* samples=320000"):
        counts(small())


def test_counts_do_not_need_the_front_end_inside():
    with weightless():
        one, other = (
            counts(create_network("cnn14", filters=[1] * 12, samples=32_000, input=given))
            for given in ("waveform", "log_mel")
        )
    assert one == other
