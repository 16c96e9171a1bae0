"""python -m l3prune.compare --config: cells, the linear classifier, tables, runs, wrong input."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from l3prune import criteria
from l3prune.compare import main as compare
from l3prune.errors import Interrupted, ParameterError
from l3prune.methods import results, study, tasks, ways
from l3prune.methods.probe import PENALTIES, clip_features, probe
from l3prune.methods.results import markdown, pareto, plot, summarise
from l3prune.methods.settings import Cell, cells, new_parser, parse
from l3prune.networks import create_network
from l3prune.plan import score
from l3prune.weights import save_network
from tests.label_corpora import SMALL, make_corpus

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs" / "compare").glob("*.json"))


# The linear classifier.


@pytest.fixture
def clips():
    rng = np.random.default_rng(1)
    targets = np.tile(np.arange(3), 20)
    features = rng.normal(size=(60, 7)) + np.eye(3, 7)[targets] * 1.5
    return features, targets, np.split(np.arange(60), [36, 48])


def test_the_classifier_is_scikit_learns_ridge(clips):
    features, targets, (train, validation, test) = clips
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    scaled = (features - mean) / std
    found = []
    for penalty in sorted(PENALTIES, reverse=True):
        ridge = Ridge(alpha=penalty * len(train)).fit(scaled[train], np.eye(3)[targets[train]])
        said = ridge.predict(scaled).argmax(axis=1) == targets
        found.append((said[validation].mean(), said[test].mean()))
    # The strongest penalty of those that validate best.
    expected = max(found, key=lambda pair: pair[0])
    assert probe(features, targets, train, validation, test) == expected
    # Which of those matters here, and so does the choice.
    assert max(reversed(found), key=lambda pair: pair[0]) != expected
    assert len({pair[0] for pair in found}) > 1


def test_nothing_is_chosen_on_test_clips(clips):
    features, targets, (train, validation, test) = clips
    before = probe(features, targets, train, validation, test)[0]
    changed = targets.copy()
    changed[test] = (targets[test] + 1) % 3
    assert probe(features, changed, train, validation, test)[0] == before
    # Nor are they scaled by.
    wild = features.copy()
    wild[test] *= 1000
    assert probe(wild, targets, train, validation, test)[0] == before


def test_a_value_that_never_changes_tells_nothing(clips):
    features, targets, parts = clips
    constant = np.hstack([features, np.full((60, 1), 7.0)])
    assert probe(constant, targets, *parts) == probe(features, targets, *parts)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 99))
def test_features_of_clips_are_means_and_deviations(counts, seed):
    windows = np.random.default_rng(seed).normal(size=(sum(counts), 3)).astype(np.float32)
    numbers = np.repeat(np.arange(len(counts)), counts)
    found = clip_features(windows, numbers)
    for number in range(len(counts)):
        own = windows[numbers == number].astype(np.float64)
        np.testing.assert_allclose(found[number], [*own.mean(axis=0), *own.std(axis=0)], atol=1e-12)


# Cells.


def line(*more):
    words = ["--filterwise", "l1", "random", "--ratios", "25", "50", "--seeds", "0", "1"]
    args = new_parser().parse_args([*words, *more])
    args.layerwise, args.amounts = ["magnitude"], {"hspg": [3.0]}
    args.sparsities = [90.0]
    return args


def test_cells_by_hand():
    found = cells(line(), [1, 2], control=True)
    # Two folds; two seeds each of the control, 2 x 2 of filters, 1 of weights, 1 of hspg.
    assert len(found) == len({cell.name for cell in found}) == 2 * 2 * (1 + 4 + 1 + 1)
    assert found[0] == Cell((1,), "unpruned", "", 0, 0)
    assert {cell.name for cell in found} >= {
        "fold1-filterwise-random-50-seed1",
        "fold2-layerwise-magnitude-90-seed0",
        "fold2-hspg-3-seed1",
    }
    assert [cell.folds for cell in found] == [(1,)] * 14 + [(2,)] * 14


def test_folds_that_are_held_out_together():
    found = cells(line("--held-out", "2"), [1, 2, 3], control=False)
    assert {cell.folds for cell in found} == {(1, 2), (3,)}
    assert sum(cell.way == "unpruned" for cell in found) == 2
    assert found[0].name == "fold1+2-unpruned-0-seed0"


@pytest.mark.parametrize(
    ("folds", "tested", "expected"),
    [
        ((1, 2, 3, 4), (2,), ((1,), (3, 4))),
        ((1, 2, 3, 4), (1, 2), ((4,), (3,))),
        ((1, 2, 3, 4), (3, 4), ((2,), (1,))),
    ],
)
def test_what_distils_and_validates_is_not_tested_on(folds, tested, expected):
    assert tasks._distillation_folds(folds, tested) == expected


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_committed_configs(config):
    words = ["--data-dir", "d", "--output-dir", "o"]
    args = parse(["--config", str(config), *words])
    assert len(args.ratios) >= 2
    assert args.seeds
    assert {*args.filterwise} >= {*criteria.CRITERIA} - {
        *("magnitude", "operator_norm_uncentred", "operator_norm_energy")
    }


# Tables.


def made(way, criterion, seed, fold, accuracy, stage="retrained", amount=50):
    costs = dict.fromkeys(results._COSTS, 1000 if way == "unpruned" else 500)
    return {
        "way": way,
        "criterion": criterion,
        "amount": amount,
        "seed": seed,
        "fold": fold,
        "stage": stage,
        "accuracy": accuracy,
        **costs,
    }


ROWS = [
    *(
        made("unpruned", "", 0, fold, accuracy, "pruned", 0)
        for fold, accuracy in ((1, 0.8), (2, 0.6))
    ),
    *(made("filterwise", "l1", seed, fold, 0.5, "pruned") for seed in (0, 1) for fold in (1, 2)),
    made("filterwise", "l1", 0, 1, 0.7),
    made("filterwise", "l1", 1, 1, 0.5),
    made("filterwise", "l1", 0, 2, 0.6),
    made("filterwise", "l1", 1, 2, 0.4),
    *(made("filterwise", "random", seed, fold, 0.4) for seed in (0, 1) for fold in (1, 2)),
]


def test_a_summary_by_hand():
    unpruned, l1, chance = summarise(ROWS)
    assert unpruned["pruned"] == pytest.approx(
        {"accuracy": 0.7, "std": 0.02**0.5, "difference": 0, "error": 0}
        | {"over_chance": None, "error_over_chance": None}
    )
    # Before retraining both seeds are the same network, which counts once.
    assert l1["pruned"]["accuracy"] == 0.5
    assert l1["pruned"]["std"] == 0
    after = l1["retrained"]
    assert after["accuracy"] == pytest.approx(0.55)
    assert after["std"] == pytest.approx((0.05 / 3) ** 0.5)
    # Folds 0.6 - 0.8 and 0.5 - 0.6.
    assert after["difference"] == pytest.approx(-0.15)
    assert after["error"] == pytest.approx(0.05)
    assert after["over_chance"] == pytest.approx(0.15)
    assert after["error_over_chance"] == pytest.approx(0.05)
    assert chance["retrained"]["over_chance"] is None
    assert (unpruned["ms"], l1["ms"]) == (1000, 500)


def test_the_text_and_the_plot():
    table = summarise(ROWS)
    text = markdown(table, {"folds": [1, 2], "num_epochs": 3})
    assert "| filterwise l1 | 50 | 50.0 ± 0.0 | 55.0 ± 12.9 | -15.0 ± 5.0 | +15.0 ± 5.0 |" in text
    assert "budget is 3 epochs" in text
    left = plot(table).axes[0]
    assert {text.get_text() for text in plot(table).legends[0].get_texts()} == {
        *("unpruned", "filterwise l1", "filterwise random")
    }
    np.testing.assert_allclose(left.lines[-1].get_xydata(), [[500, 55], [1000, 70]])


POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(POINTS)
def test_what_is_not_on_the_front_is_beaten_from_it(points):
    front = pareto(points)
    assert front
    for number, (cost, accuracy) in enumerate(points):
        beaten = [
            other
            for other in front
            if points[other][0] <= cost
            and points[other][1] >= accuracy
            and points[other] != points[number]
        ]
        assert bool(beaten) == (number not in front)


# Chance.


def test_chance_is_drawn_anew_for_each_seed():
    weights = {"a": criteria.ConvWeights(np.ones((3, 3, 2, 16), np.float32))}

    def drawn(seed):
        with criteria.drawn(seed):
            return score(weights, "random", filters=True)["a"]

    np.testing.assert_array_equal(drawn(0), score(weights, "random", filters=True)["a"])
    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert (drawn(0) != drawn(1)).all()


# Runs.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "ESC-10", each=4)


TINY = {
    "network": "dcase2021",
    "network_arguments": SMALL,
    "dataset": "esc50",
    "folds": [1],
    "filterwise": ["l1", "taylor"],
    "layerwise": ["magnitude"],
    "ratios": [50],
    "sparsities": [80],
    "teacher_epochs": 1,
    "num_epochs": 1,
    "train_epoch_size": 1,
    "train_batch_size": 4,
    "rounds": 1,
}


@pytest.fixture
def command(tmp_path, corpus):
    """Runs the command on a config that is changed."""

    def run(*words, **changes):
        config = {name: value for name, value in {**TINY, **changes}.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return compare(
            [
                *("--config", str(tmp_path / "config.json"), "--data-dir", str(corpus)),
                *("--output-dir", str(tmp_path / "out"), "--quiet", *map(str, words)),
            ]
        )

    return run


@pytest.mark.slow
def test_labels_in_parts_then_as_a_whole(command, tmp_path, capsys, monkeypatch):
    """Two tasks share the cells; the last one writes the table; nothing is measured twice."""
    assert command("--task", 1, "--tasks", 2) == 0
    assert "2 of 4 measurements are still to come" in capsys.readouterr().out
    assert command("--task", 2, "--tasks", 2) == 0
    out = tmp_path / "out"
    with open(out / "methods.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # The unpruned network is retrained too.
    assert [(row["way"], row["criterion"], row["stage"]) for row in rows] == [
        (way, criterion, stage)
        for way, criterion in (
            *(("unpruned", ""), ("filterwise", "l1")),
            *(("filterwise", "taylor"), ("layerwise", "magnitude")),
        )
        for stage in ("pruned", "retrained")
    ]
    # By hand: 7x7 convolutions 1-2-2-3 of 4-4-6, dense 6-8-2, four values a filter of BatchNorm.
    smaller = 49 * (2 + 4 + 6) + 7 + 4 * 7 + (6 * 8 + 8) + (8 * 2 + 2)
    assert {int(row["parameters"]) for row in rows if row["way"] == "filterwise"} == {smaller}
    masked = [row for row in rows if row["way"] == "layerwise"]
    assert all(int(row["nonzero_macs"]) < 0.3 * int(row["macs"]) for row in masked)
    assert (out / "methods.png").stat().st_size > 1000
    assert not any((out / "work" / "training").iterdir())

    # As a whole: all is there already.
    monkeypatch.setattr(study, "_measure_one", None)
    assert command() == 0
    table = capsys.readouterr().out
    assert "| layerwise magnitude | 80 |" in table
    # Another budget is another table.
    assert command("--num-epochs", "2") == 2
    assert "num_epochs=1 there, 2 here" in capsys.readouterr().err
    assert command("--learning-rate", "0.5") == 2
    assert "learning_rate=None there, 0.5 here" in capsys.readouterr().err


@pytest.mark.slow
def test_embeddings(command, net, tmp_path, capsys):
    assert (
        command(
            network=str(net),
            network_arguments=None,
            folds=None,
            criterion_inputs=4,
            batch_norm="freeze",
            seeds=[0, 1],
            filterwise=["random"],
            layerwise=None,
        )
        == 0
    )
    record = json.loads((tmp_path / "out" / "methods.json").read_text())
    unpruned, chance = record["summary"]
    assert "retrained" not in unpruned
    with open(tmp_path / "out" / "methods.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["fold"] for row in rows} == {"1", "2", "3"}
    # Distillation brings the embedding nearer, and each seed draws other filters.
    error = {stage: [] for stage in ("pruned", "retrained")}
    for row in rows:
        if row["way"] == "filterwise":
            error[row["stage"]].append(float(row["mse"]))
    assert len({*error["pruned"]}) == 6
    assert np.mean(error["retrained"]) < np.mean(error["pruned"])
    assert chance["parameters"] < unpruned["parameters"]


@pytest.mark.slow
def test_methods_that_train_first(command, tmp_path):
    """Slimming has half of the budget before the cut, HSPG all of it."""
    more = {"num_epochs": 2, "trained": ["slimming", "hspg"], "strengths": [2000]}
    assert command(filterwise=None, layerwise=None, gamma_l1=1.0, **more) == 0
    with open(tmp_path / "out" / "methods.csv", newline="") as file:
        rows = {(row["way"], row["stage"]): row for row in csv.DictReader(file)}
    assert rows["slimming", "retrained"]["epochs_before"] == "1"
    assert rows["hspg", "retrained"]["epochs_before"] == "2"
    whole = int(rows["unpruned", "pruned"]["parameters"])
    for way in ("slimming", "hspg"):
        assert int(rows[way, "pruned"]["parameters"]) < whole, way
    # There is nothing left to retrain for.
    assert rows["hspg", "pruned"]["accuracy"] == rows["hspg", "retrained"]["accuracy"]


def test_a_signal_ends_a_run_that_goes_on(command, monkeypatch, capsys):
    def stopped(args, task, cell, work):
        raise Interrupted("stopped by SIGTERM after step 1; give --continue-model-dir x")

    monkeypatch.setattr(study, "_measure_one", stopped)
    monkeypatch.setattr(study, "task_of", lambda args: _NoTask)
    assert command() == 75
    told = capsys.readouterr().err
    assert "fold1-unpruned-0-seed0 stopped by SIGTERM after step 1; the same command goes" in told
    assert "--continue-model-dir" not in told


class _NoTask:
    control = False

    def __init__(self, args, folds, work):
        self.folds = folds

    @staticmethod
    def check(args, network, dataset):
        pass


# Wrong input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "option 'colour' is unknown"),
        ({"filterwise": ["l3"]}, "criterion 'l3' is unknown; known: bn_gamma"),
        ({"layerwise": ["taylor"]}, "--layerwise taylor: it scores filters"),
        ({"network": "dcase2020"}, "--network dcase2020 is none"),
        ({"network": "a.h5", "network_arguments": None}, "no such weight file: a.h5"),
        ({"network": "sea64", "network_arguments": None}, "gives embeddings, not classes"),
        ({"dataset": "esc51"}, "dataset 'esc51' is unknown"),
        ({"folds": [9]}, "--folds 9: esc50 here has folds 1, 2, 3"),
        ({"ratios": [100]}, "--ratios 100 is not above 0 and below 100 percent"),
        ({"ratios": [90]}, "layer conv_1: 90 % of 4 filters leaves none; give at most 75 %"),
        ({"ratios": [50, 50]}, "--ratios has 50.0 twice"),
        ({"ratios": None}, "--filterwise needs --ratios"),
        ({"sparsities": [99.9]}, "layerwise magnitude 99.9: "),
        ({"filterwise": None, "layerwise": None}, "nothing to compare"),
        ({"trained": ["by_hand"]}, "--trained 'by_hand' is unknown; known: hspg, slimming"),
        ({"trained": ["hspg"]}, "--trained hspg needs --strengths"),
        ({"seeds": [-1]}, "--seeds -1 is not in 0"),
        ({"num_epochs": 0}, "epochs=0 is not a whole number"),
        ({"best_by": "beauty"}, "best_by='beauty'"),
        ({"trained": ["slimming"], "ratios": None, "filterwise": None}, "slimming needs --ratios"),
        ({"held_out": 2, "folds": None}, "--held-out is for embeddings"),
        ({"hspg_epsilon": 1.0}, "--hspg-epsilon=1.0 is not in [0, 1)"),
        ({"network": None}, "--network is needed"),
        (
            {"network": "fat2019", "network_arguments": {"filters": [1] * 8, "units": 2}},
            "--filterwise taylor scores whole clips, and network fat2019 hears them in segments",
        ),
    ],
)
def test_wrong_input_is_one_line(command, tmp_path, capsys, changes, message):
    assert command(**changes) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_weights_of_a_classifier_are_no_embedding(command, tmp_path, capsys):
    """They may have been trained on the clips that they would be judged on."""
    path = tmp_path / "trained.h5"
    save_network(create_network("dcase2021", classes=2, **SMALL), path)
    assert command(network=str(path), network_arguments=None) == 2
    assert (
        "scores classes, and may have been trained on clips to test on" in capsys.readouterr().err
    )


def test_a_task_beyond_the_last(command, capsys):
    assert command("--task", 3, "--tasks", 2) == 2
    assert "--task 3 is not in 1 … 2" in capsys.readouterr().err


def test_a_layer_that_a_ratio_would_empty_is_named():
    network = create_network("sea64", filters=[2, 4, 4, 4, 4, 4, 4, 4])
    with pytest.raises(ParameterError, match=r"layer conv_1: 80 % of 2 .* at most 50 %"):
        ways.check_cells(network, [Cell((1,), "filterwise", "l1", 80, 0)], 5)
    ways.check_cells(network, [Cell((1,), "filterwise", "l1", 50, 0)], 5)


@pytest.mark.parametrize(
    ("way", "epochs", "message"),
    [
        ("slimming", 1, "slimming 50: slimming trains in half of the epochs: give --num-epochs 2"),
        ("slimming", 2, "slimming 50: network bare has no BatchNorm with scale"),
        ("hspg", 2, "hspg 50: no filter of network bare can be removed when it is zero"),
    ],
)
def test_methods_that_cannot_train_a_network_are_told_before_it_is_trained(way, epochs, message):
    inputs = keras.Input((4, 4, 1))
    maps = keras.layers.Conv2D(2, 1, activation="sigmoid", name="conv")(inputs)
    network = keras.Model(inputs, keras.layers.Conv2D(2, 1, name="last")(maps), name="bare")
    with pytest.raises(ParameterError, match=message):
        ways.check_cells(network, [Cell((1,), way, "", 50, 0)], epochs)
