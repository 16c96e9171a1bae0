"""python -m l3prune.pruning: what is pruned, students, masks that change, scores from data."""

import csv
import json

import numpy as np
import pytest

import l3prune.schedules
from l3prune import graph
from l3prune.activations import DATA_CRITERIA
from l3prune.errors import ParameterError
from l3prune.gradual import GradualPruning
from l3prune.networks import create_network, inference
from l3prune.options import parse
from l3prune.pruning import main as prune
from l3prune.scan import Spread
from l3prune.sensitivity import main as sensitivity
from l3prune.weights import load_network, save_network
from l3prune.windows import open_windows
from tests.commands import (
    SPARSITY,
    assert_equal_weights,
    pruned_by,
    refuse,
    run_folder,
    words,
)

NUMBERS = ("--num_filters", *["3"] * 8)


def test_filterwise_from_the_command_line(place, tmp_path):
    """EdgeL3's --num_filters; the embedding gets as short as the last layer."""
    counts = [3, 2, 4, 1, 3, 2, 2, 3]
    options = ("--filterwise", "--num_filters", *map(str, counts))
    run_dir, report = pruned_by(place, tmp_path / "out", *options)
    assert run_dir.parts[-4:] == ("reduced", "music", "sea64", "run")
    network = load_network(run_dir / "model_pruned.h5")
    assert [layer.filters for layer in graph.convolutions(network).values()] == counts
    assert network.output_shape == (None, 3)
    assert report["pruned"]["validation_mse"] is None
    assert report["pruned"]["macs"] < report["unpruned"]["macs"]
    # Nothing of the teacher changed, and what is left is a part of it.
    teacher = load_network(place.net)
    kernel = teacher.get_layer("conv_1").kernel.numpy()
    kept = np.sort(np.abs(kernel).sum(axis=(0, 1, 2)))[1:].sum()
    assert np.abs(network.get_layer("conv_1").kernel.numpy()).sum() == pytest.approx(kept)


@pytest.mark.slow
def test_filterwise_with_retraining(place, tmp_path, capsys):
    """Half the filters of all layers but the last: the embedding stays comparable."""
    line = place.line(
        tmp_path / "out",
        *("--filterwise", "--filter-ratio", "50", "--retrain", "-e", "3", "-lr", "1e-3"),
        *("-tbs", "4", "--batch-norm", "freeze", "--run-name", "run", "--quiet"),
    )
    assert prune(line) == 0
    run_dir = run_folder(tmp_path / "out", "reduced_kd")
    report = json.loads((run_dir / "report.json").read_text())
    assert 0 < report["retrained"]["validation_mse"] < report["pruned"]["validation_mse"]
    network = load_network(run_dir / "model_best_valid_loss.h5")
    assert [layer.filters for layer in graph.convolutions(network).values()] == [2] * 7 + [4]
    capsys.readouterr()
    assert prune([*line[:-3], "--quiet", "--continue-model-dir", str(run_dir)]) == 0


@pytest.mark.parametrize(
    ("options", "filters"),
    [
        (("--filter-ratio", "25"), [3] * 7 + [4]),
        (("--filter-ratio", "0", "25", "50", "75", "0", "25", "50", "75"), [4, 3, 2, 1] * 2),
        (("--filter-ratio", "25", "--round-to", "2"), [4] * 8),
        (("--filter-ratio", "70", "--criterion", "geometric_median"), [1] * 7 + [4]),
        (("--budget", "filters=25%"), None),
        (("--global-filter-ratio", "50", "--criterion", "bn_gamma"), None),
    ],
)
def test_ways_to_remove_filters(place, tmp_path, options, filters):
    run_dir, _ = pruned_by(place, tmp_path / "out", "--filterwise", *options)
    network = load_network(run_dir / "model_pruned.h5")
    found = [layer.filters for layer in graph.convolutions(network).values()]
    if filters is None:
        assert found[-1] == 4
        assert sum(found) in (24, 18)  # of 32, or 14 of 28 and the last 4
    else:
        assert found == filters


@pytest.mark.parametrize(
    ("options", "sparsity"),
    [
        (("--pattern", "1:4"), None),
        (("--layerwise", "--sparsity", "50", "--blocks", "2x2"), None),
        (("--budget", "sparsity=60"), 0.6),
        (("--budget", "sparsity=60", "--allocation", "erk"), 0.6),
    ],
)
def test_ways_to_zero_weights(place, tmp_path, options, sparsity):
    run_dir, report = pruned_by(place, tmp_path / "out", *options)
    assert run_dir.parts[-4] == "pruning"
    masks = graph.masks(load_network(run_dir / "model_pruned.h5"))
    if sparsity is not None:
        assert report["pruned"]["sparsity"] == pytest.approx(sparsity, abs=1e-3)
    elif "--pattern" in options:
        assert (masks["conv_3"].sum(axis=2) == 1).all()
    else:
        blocks = masks["conv_3"].reshape(3, 3, 2, 2, 2, 2).sum(axis=(3, 5))
        assert set(np.unique(blocks)) == {0, 4}


@pytest.mark.slow
def test_a_flag_sets_the_configs_choice_aside(place, tmp_path):
    config = tmp_path / "c.json"
    config.write_text('{"layerwise": true, "sparsity": [50], "num_epochs": 2}')
    options = ("--config", str(config), "--filterwise", "--filter-ratio", "50")
    run_dir, _ = pruned_by(place, tmp_path / "a", *options)
    assert run_dir.parts[-4] == "reduced"
    config.write_text('{"filterwise": true, "filter_ratio": [50]}')
    run_dir, _ = pruned_by(place, tmp_path / "b", "--config", str(config), "--pattern", "2:4")
    assert run_dir.parts[-4] == "pruning"
    run_dir, _ = pruned_by(place, tmp_path / "c", "--config", str(config))
    assert run_dir.parts[-4] == "reduced"


RATIO_FILE = {"filterwise": True, "filter_ratio": 50, "round_to": 2, "criterion": "l2"}
SCHEDULE_FILE = {
    "layerwise": True,
    "sparsity": 50,
    "retrain": True,
    "criterion": "random",
    "mask_schedule": "polynomial",
    "end_step": 9,
    "initial_sparsity": 10,
}
BUDGET_FILE = {"budget": "sparsity=60", "allocation": "sensitivity", "sensitivity": "scan"}
TAYLOR_FILE = {**RATIO_FILE, "criterion": "taylor", "criterion_windows": 8}


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        # What belongs to the choice that is set aside goes with it,
        (RATIO_FILE, ("--num_filters", *["3"] * 8), {"round_to": 1, "criterion": "l2"}),
        (
            RATIO_FILE,
            ("--layerwise", "--sparsity", "50"),
            {"round_to": 1, "criterion": None, "filterwise": False},
        ),
        (RATIO_FILE, ("--pattern", "2:4"), {"round_to": 1, "criterion": None}),
        (TAYLOR_FILE, ("--global-sparsity", "50"), {"criterion": None, "filter_ratio": None}),
        (TAYLOR_FILE, ("--criterion", "l1"), {"criterion": "l1", "round_to": 2}),
        (
            SCHEDULE_FILE,
            ("--filterwise", "--filter-ratio", "50"),
            {"mask_schedule": None, "end_step": None, "criterion": None, "retrain": True},
        ),
        (SCHEDULE_FILE, ("--pattern", "2:4"), {"mask_schedule": None, "criterion": "random"}),
        (
            SCHEDULE_FILE,
            ("--mask-schedule", "rigl"),
            {"mask_schedule": "rigl", "initial_sparsity": None, "sparsity": [50]},
        ),
        (BUDGET_FILE, ("--layerwise",), {"allocation": "uniform", "sensitivity": None}),
        (BUDGET_FILE, ("--allocation", "erk"), {"allocation": "erk", "sensitivity": None}),
        (
            {"retrain": True, "layerwise": True, "plateau_patience": 2},
            ("--schedule", "cosine"),
            {"schedule": "cosine"},
        ),
        # and what does not, stays.
        (RATIO_FILE, ("--filter-ratio", "25"), {"round_to": 2, "criterion": "l2"}),
        (RATIO_FILE, ("--filterwise", "--filter-ratio", "25"), {"round_to": 2}),
        (RATIO_FILE, ("--filterwise",), {"round_to": 2, "filter_ratio": [50]}),
        (
            SCHEDULE_FILE,
            ("--global-sparsity", "70"),
            {"mask_schedule": "polynomial", "end_step": 9, "criterion": "random"},
        ),
        (BUDGET_FILE, ("--budget", "sparsity=70"), {"allocation": "sensitivity"}),
        (BUDGET_FILE, ("--filterwise",), {"budget": "sparsity=60", "sensitivity": "scan"}),
        ({"criterion": "l1", "num_epochs": 3}, ("--filterwise", *NUMBERS), {"criterion": "l1"}),
        ({"layerwise": True, "num_epochs": 3}, (), {"num_epochs": 3}),
    ],
)
def test_what_a_flag_sets_aside_of_a_config(tmp_path, config, options, expected):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(config))
    args = parse(["w", "t", "v", "o", "--config", str(path), *options])
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layerwise": True, "allocation": "erk"}, "--allocation has no effect without --budget"),
        ({"layerwise": True, "round_to": 2}, "--round-to has no effect without --filter-ratio"),
        ({"layerwise": True, "end_step": 2}, "--end-step is for --mask-schedule"),
    ],
)
def test_a_config_that_contradicts_itself(tmp_path, config, message):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ParameterError, match=message):
        parse(["w", "t", "v", "o", "--config", str(path)])


def test_a_ratios_config_and_another_choice_run(place, tmp_path):
    config = tmp_path / "c.json"
    config.write_text(json.dumps(RATIO_FILE))
    given = ("--config", str(config))
    run_dir, _ = pruned_by(place, tmp_path / "a", *given, *NUMBERS)
    assert run_dir.parts[-4] == "reduced"
    run_dir, _ = pruned_by(place, tmp_path / "b", *given, "--layerwise", "--sparsity", "50")
    assert run_dir.parts[-4] == "pruning"


# Students: fewer layers, other networks, smaller embeddings.


STUDENT = (
    *("--retrain", "-e", "8", "-lr", "1e-2", "-tbs", "4", "--batch-norm", "freeze"),
    *("--run-name", "run", "--quiet"),
)


def test_depth_students_from_the_command_line(place, tmp_path):
    """Table III: EdgeL3's --include_layers, and the embedding of an earlier layer."""
    run_dir, report = pruned_by(place, tmp_path / "a", "--include_layers", *"10111111")
    assert run_dir.parts[-4:] == ("reduced", "music", "sea64", "run")
    network = load_network(run_dir / "model_pruned.h5")
    assert "conv_2" not in graph.convolutions(network)
    assert len(graph.convolutions(network)) == 7
    assert report["student"]["nonzero"] < report["unpruned"]["nonzero"]
    run_dir, report = pruned_by(place, tmp_path / "b", "--from-conv-layer", "7")
    network = load_network(run_dir / "model_pruned.h5")
    teacher = load_network(place.net)
    assert list(graph.convolutions(network))[-1] == "conv_7"
    for name, layer in graph.convolutions(network).items():
        np.testing.assert_array_equal(layer.kernel, teacher.get_layer(name).kernel)


@pytest.mark.slow
def test_a_depth_student_is_pruned_and_retrained(place, tmp_path):
    line = place.line(
        tmp_path, "--include_layers", *"11011111", "--layerwise", "--sparsity", "50", *STUDENT
    )
    assert prune(line) == 0
    run_dir = run_folder(tmp_path, "reduced_kd")
    report = json.loads((run_dir / "report.json").read_text())
    assert set(report) == {"unpruned", "pruned", "retrained"}
    assert report["retrained"]["validation_mse"] < report["pruned"]["validation_mse"]
    network = load_network(run_dir / "model_best_valid_loss.h5")
    assert len(graph.masks(network)) == 7
    assert report["retrained"]["sparsity"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pca", pytest.param("linear")])
def test_a_smaller_embedding_is_distilled(place, tmp_path, capsys, kind):
    counts = ("--filterwise", "--num_filters", *["3"] * 8)
    line = place.line(tmp_path, *counts, "--reduction", kind, *STUDENT)
    assert prune(line) == 0
    printed = capsys.readouterr().out
    run_dir = run_folder(tmp_path, "reduced_kd")
    report = json.loads((run_dir / "report.json").read_text())
    assert report["unpruned"]["validation_unexplained"] is None
    assert 0 < report["retrained"]["validation_unexplained"] < 1.5
    if kind == "pca":
        before = report["pruned"]["validation_unexplained"]
        assert report["retrained"]["validation_unexplained"] < before
    else:
        assert report["pruned"]["validation_unexplained"] is None
    assert "validation_unexplained" in printed
    assert load_network(run_dir / "model_best_valid_loss.h5").output_shape == (None, 3)
    # It goes on, with the map that it began with.
    before = (run_dir / "reduction.npz").read_bytes()
    assert prune([*line, "--continue-model-dir", str(run_dir)]) == 0
    assert (run_dir / "reduction.npz").read_bytes() == before
    capsys.readouterr()
    others = place.line(tmp_path, *counts, "--reduction", "linear", *STUDENT)
    if kind == "pca":
        assert prune([*others, "--continue-model-dir", str(run_dir)]) == 2
        assert "reduction" in capsys.readouterr().err


@pytest.mark.slow
def test_sea_from_the_command_line(place, tmp_path):
    """A fresh student at 8 kHz learns a wider teacher's components at 48 kHz."""
    teacher = create_network("mel128", filters=[1] * 7 + [70])
    save_network(teacher, tmp_path / "teacher.h5")
    line = words(tmp_path / "teacher.h5", place.train, place.valid, tmp_path / "out")
    options = ("--student", "sea64", "--filterwise", "--num_filters", *["2"] * 7, "64")
    assert prune([*line, *options, "--reduction", "pca", "--hop-size", "0.05", *STUDENT]) == 0
    run_dir = run_folder(tmp_path / "out", "reduced_kd")
    network = load_network(run_dir / "model_best_valid_loss.h5")
    assert network.input_shape == (None, 1, 8000)
    assert network.output_shape == (None, 64)
    first = load_network(run_dir / "model_pruned.h5")
    report = json.loads((run_dir / "report.json").read_text())
    assert report["student" if "student" in report else "pruned"]["validation_unexplained"] > 0
    again = [*line, *options, "--run-name", "again", "--quiet", "--hop-size", "0.05"]
    assert prune(again) == 0
    run_dir = run_folder(tmp_path / "out", "reduced", name="again")
    # The seed makes the fresh weights.
    for one, other in zip(
        first.get_weights(), load_network(run_dir / "model_pruned.h5").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    # Other front ends do not compare without a reduction.
    assert json.loads((run_dir / "report.json").read_text())["pruned"]["validation_mse"] is None


# Masks that change in retraining.


GRADUAL = (
    *("--retrain", "-lr", "1e-3", "-tbs", "4", "-tes", "3", "-e", "4", "--seed", "3"),
    *("--run-name", "run", "--quiet", "--checkpoint-interval", "1"),
)
EVERY_TWO = ("--frequency", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sparsities"),
    [
        (
            ("--layerwise", "--sparsity", *SPARSITY, "--mask-schedule", "polynomial", *EVERY_TWO),
            # Of steps 0, 2, 4, 6; an epoch has three.
            [0.7, 0.98, 1, 1],
        ),
        (
            ("--global-sparsity", "60", "--mask-schedule", "constant", "--begin-step", "4"),
            [0, 1, 1, 1],
        ),
        (
            (
                *("--layerwise", "--sparsity", *["0"] * 5, "50", "50", "50"),
                *("--mask-schedule", "layer-by-layer", "--epochs-per-layer", "1"),
            ),
            [1 / 3, 2 / 3, 1, 1],
        ),
        (("--budget", "sparsity=60", "--mask-schedule", "rigl", *EVERY_TWO), [1, 1, 1, 1]),
        # What is drawn, or changes in training, ends there too.
        pytest.param(
            (
                *("--global-sparsity", "50", "--criterion", "random"),
                *("--mask-schedule", "polynomial", *EVERY_TWO),
            ),
            [0.7, 0.98, 1, 1],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (
                *("--layerwise", "--sparsity", "60", "--criterion", "bn_gamma"),
                *("--mask-schedule", "constant", "--begin-step", "4"),
            ),
            [0, 1, 1, 1],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_masks_that_change(place, tmp_path, options, sparsities):
    assert prune(place.line(tmp_path, *options, *GRADUAL)) == 0
    run_dir = run_folder(tmp_path)
    rows = list(csv.DictReader((run_dir / "history.csv").open()))
    report = json.loads((run_dir / "report.json").read_text())
    final = report["retrained"]["sparsity"]
    found = [float(row["sparsity"]) / final for row in rows]
    assert found == pytest.approx(sparsities, abs=0.035)
    assert ("pruned" in report) == ("rigl" in options)
    # The plan of one shot has as many zeros.
    shot, once = pruned_by(place, tmp_path / "shot", *options[: options.index("--mask-schedule")])
    assert once["pruned"]["nonzero"] == report["retrained"]["nonzero"]
    network = load_network(run_dir / "model_best_valid_loss.h5")
    weights = graph.conv_weights(network)
    masks = graph.masks(network)
    assert all(not weights[name].kernel[~mask].any() for name, mask in masks.items())
    if "rigl" in options:
        begun = graph.masks(load_network(shot / "model_pruned.h5"))
        assert any((masks[name] != begun[name]).any() for name in masks)


@pytest.mark.slow
def test_a_gradual_run_goes_on_in_the_middle(place, tmp_path, monkeypatch):
    options = ("--layerwise", "--sparsity", *SPARSITY, "--mask-schedule", "polynomial")
    whole = place.line(tmp_path / "whole", *options, "--end-step", "7", *EVERY_TWO, *GRADUAL)
    assert prune(whole) == 0
    line = place.line(tmp_path / "cut", *options, "--end-step", "7", *EVERY_TWO, *GRADUAL)

    class Cut(GradualPruning):
        def _update(self, step):
            if step == 7:
                raise KeyboardInterrupt
            return super()._update(step)

    with monkeypatch.context() as patch:
        patch.setattr(l3prune.schedules, "GradualPruning", Cut)
        assert prune(line) == 130
    cut = run_folder(tmp_path / "cut")
    assert not (cut / "model_best_valid_loss.h5").exists()
    assert prune([*line, "--continue-model-dir", str(cut)]) == 0
    for name in ("latest", "best_valid_loss", "checkpoint.03"):
        assert_equal_weights(
            cut / f"model_{name}.h5", run_folder(tmp_path / "whole") / f"model_{name}.h5"
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pca", "linear"])
def test_a_gradual_run_with_a_reduction_begins_again(place, tmp_path, monkeypatch, kind):
    """Stopped before its first epoch has ended, by when it has a map."""
    options = (
        *("--layerwise", "--sparsity", "50", "--criterion", "bn_gamma", "--reduction", kind),
        *("--mask-schedule", "polynomial", "--end-step", "5", *EVERY_TWO, *GRADUAL),
    )
    assert prune(place.line(tmp_path / "whole", *options)) == 0
    line = place.line(tmp_path / "cut", *options)

    class Cut(GradualPruning):
        def _update(self, step):
            if step == 1:
                raise KeyboardInterrupt
            return super()._update(step)

    with monkeypatch.context() as patch:
        patch.setattr(l3prune.schedules, "GradualPruning", Cut)
        assert prune(line) == 130
    cut, whole = run_folder(tmp_path / "cut"), run_folder(tmp_path / "whole")
    assert prune([*line, "--continue-model-dir", str(cut)]) == 0
    for name in ("latest", "best_valid_loss"):
        assert_equal_weights(cut / f"model_{name}.h5", whole / f"model_{name}.h5")
    maps = [np.load(folder / "reduction.npz") for folder in (cut, whole)]
    for name in ("mean", "matrix"):
        np.testing.assert_array_equal(maps[0][name], maps[1][name])


@pytest.mark.slow
def test_fresh_layers_are_alike_by_the_seed(place, tmp_path):
    """A layer behind a gap that takes another number of channels, in a run that goes on."""
    save_network(create_network("sea64", filters=[2, 3, 4, 2, 2, 2, 2, 2]), tmp_path / "net.h5")
    line = words(tmp_path / "net.h5", place.train, place.valid, tmp_path)
    line += ["--include_layers", *"10111111", *STUDENT, "-e", "1", "--seed", "4"]
    assert prune(line) == 0
    run_dir = run_folder(tmp_path, "reduced_kd")
    assert prune([*line, "--continue-model-dir", str(run_dir), "-e", "2"]) == 0
    other = line.index("4", line.index("--seed"))
    line[other] = "5"
    assert prune([*line, "--continue-model-dir", str(run_dir), "-e", "2"]) == 2


def test_a_schedule_that_ends_after_the_run_leaves_no_folder(place, tmp_path, capsys):
    options = ("--layerwise", "--sparsity", "50", "--mask-schedule", "polynomial")
    assert prune(place.line(tmp_path / "out", *options, *GRADUAL, "--end-step", "12")) == 2
    assert "final sparsity after 12 steps and the run has 12" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Filters scored on data; budgets shared out by a scan.


@pytest.mark.parametrize("criterion", ["mean_activation", "apoz", "taylor"])
def test_filters_are_scored_on_training_windows(place, tmp_path, criterion):
    options = ("--filterwise", "--filter-ratio", "50", "--criterion", criterion)
    run_dir, _ = pruned_by(place, tmp_path / "a", *options, "--criterion-windows", "8")
    network = load_network(run_dir / "model_pruned.h5")
    assert [layer.filters for layer in graph.convolutions(network).values()] == [2] * 7 + [4]
    # The same filters as by the function on the same windows.
    teacher = load_network(place.net)
    source = open_windows(place.train, 8000, place.cache, quiet=True)
    windows = Spread(source, 8).read(np.arange(8))
    mean = inference(teacher)(windows).mean(axis=0, keepdims=True)
    batches = iter([(windows, np.repeat(mean, 8, axis=0))])
    scores = DATA_CRITERIA[criterion](teacher, batches)["conv_1"]
    assert scores.any()
    kept = np.sort(np.argsort(-scores, kind="stable")[:2])
    np.testing.assert_array_equal(
        network.get_layer("conv_1").kernel, teacher.get_layer("conv_1").kernel.numpy()[..., kept]
    )


def test_random_filters(place, tmp_path):
    options = ("--filterwise", "--filter-ratio", "50", "--criterion", "random")
    run_dir, _ = pruned_by(place, tmp_path, *options)
    network = load_network(run_dir / "model_pruned.h5")
    assert [layer.filters for layer in graph.convolutions(network).values()] == [2] * 7 + [4]


@pytest.mark.slow
def test_a_budget_is_shared_out_by_a_scan(place, tmp_path, capsys):
    scan = tmp_path / "scan"
    line = words(place.net, place.valid, scan, "--amounts", 50, 80, 90, "--quiet")
    budget = ("--budget", "sparsity=60")
    assert sensitivity([*line, *budget, "--allocation", "sensitivity"]) == 0
    lists = json.loads((scan / "lists.json").read_text())["lists"]
    options = (*budget, "--allocation", "sensitivity", "--sensitivity", str(scan))
    run_dir, report = pruned_by(place, tmp_path / "a", *options)
    assert report["pruned"]["sparsity"] == pytest.approx(0.6, abs=1e-3)
    other, _ = pruned_by(place, tmp_path / "b", *lists[0]["options"].split())
    assert_equal_weights(run_dir / "model_pruned.h5", other / "model_pruned.h5")
    capsys.readouterr()
    refuse(
        capsys,
        place.line(tmp_path / "c", *options, "--criterion", "random"),
        "is of another criterion: 'magnitude' there, 'random' here",
        tmp_path,
    )
    refuse(
        capsys,
        place.line(tmp_path / "c", *options, "--filterwise"),
        "is of another mode: 'layerwise' there, 'filterwise' here",
        tmp_path,
    )
