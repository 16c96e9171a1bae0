"""python -m l3prune.sensitivity: rows against NumPy, resuming, lists for budgets, wrong input."""

import argparse
import csv
import itertools
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

import l3prune.sensitivity as command_module
from classifier.features import extract_features, read_features
from classifier.mlp import Recipe
from classifier.train import train_fold
from l3prune import graph, surgery
from l3prune.budget import parse_budget
from l3prune.curves import Row, curves, plot, read_rows, tidy, write_rows
from l3prune.datasets import load_dataset
from l3prune.errors import L3PruneError, ParameterError
from l3prune.layers import MaskedConv2D
from l3prune.networks import create_network, inference
from l3prune.plan import PruningPlan
from l3prune.pruning import main as prune_command
from l3prune.scan import Candidates, Spread, allocate, scan
from l3prune.sensitivity import main as sensitivity
from l3prune.weights import load_network, save_network
from tests.conftest import chirp, make_sounds, make_tiny

CONVOLUTIONS = (*(f"conv_{number}" for number in range(1, 8)), "audio_embedding_layer")
AMOUNTS = (50.0, 90.0)
HEAD = "layer,amount_percent,left,of,weights_left,mse,relative_mse,accuracy"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny network and sounds."""
    folder = tmp_path_factory.mktemp("place")
    save_network(make_tiny(), folder / "tiny.h5")
    make_sounds(folder / "sounds")
    return folder


def line(place, out, *more):
    """A command line, quiet, with a cache that tests share."""
    given = (place / "tiny.h5", place / "sounds", out, "--cache-dir", place / "cache", "--quiet")
    return [str(word) for word in (*given, *more)]


AMOUNT_WORDS = ("--amounts", *(f"{amount:g}" for amount in AMOUNTS))


@pytest.fixture(scope="module")
def finished(place):
    """A folder with the scan of the tiny network by both amounts."""
    assert sensitivity(line(place, place / "finished", *AMOUNT_WORDS)) == 0
    return place / "finished"


@pytest.fixture(scope="module")
def filterwise(place):
    words = ("--mode", "filterwise", "--amounts", "50")
    assert sensitivity(line(place, place / "filterwise", *words)) == 0
    return place / "filterwise"


def rows_of(folder):
    with (folder / "sensitivity.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def windows(place):
    """All windows of the sounds: 2 s each are windows at 0, 0.5 and 1 s, padded at the end."""
    found = []
    for path in sorted((place / "sounds").rglob("*.*")):
        audio, rate = soundfile.read(path, dtype="float32")
        assert rate == 8000
        found += [audio[start : start + 8000] for start in range(0, len(audio) - 7999, 4000)]
    return np.stack(found)[:, None]


def embed(network, windows):
    return inference(network)(windows).astype(np.float64)


def refuse(capsys, words, message):
    capsys.readouterr()
    assert sensitivity(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    return captured


# Rows.


def test_every_row_is_what_numpy_gives(finished, windows):
    network = make_tiny()
    whole = embed(network, windows)
    rows = rows_of(finished)
    names = [(row["layer"], float(row["amount_percent"])) for row in rows]
    assert names == [("unpruned", 0), *itertools.product(CONVOLUTIONS, AMOUNTS)]
    assert float(rows[0]["mse"]) == 0
    total = 36 + 7 * 144
    for row in rows[1:]:
        layer = network.get_layer(row["layer"])
        kernel = layer.kernel.numpy()
        unpruned = kernel.copy()
        # Nearest rank: of 36 weights at 50 %, round(35 * 0.5) = 18 and the one at that rank go.
        goes = round((kernel.size - 1) * float(row["amount_percent"]) / 100) + 1
        order = np.argsort(np.abs(kernel), axis=None)
        kernel.reshape(-1)[order[:goes]] = 0
        layer.kernel.assign(kernel)
        mse = np.square(embed(network, windows) - whole).mean()
        layer.kernel.assign(unpruned)
        assert float(row["mse"]) == pytest.approx(mse, rel=1e-5), row
        relative = mse / whole.var(axis=0).mean()
        assert float(row["relative_mse"]) == pytest.approx(relative, rel=1e-5)
        assert (int(row["left"]), int(row["of"])) == (kernel.size - goes, kernel.size)
        assert int(row["weights_left"]) == total - goes
        assert row["accuracy"] == ""


def test_the_first_layer_is_scanned(finished):
    first = [row for row in rows_of(finished) if row["layer"] == "conv_1"]
    assert [int(row["left"]) for row in first] == [17, 3]
    assert all(float(row["mse"]) > 0 for row in first)


def test_filterwise_rows_are_of_networks_without_the_filters(filterwise, windows):
    rows = rows_of(filterwise)
    # The last layer's filters are the embedding's values.
    assert {row["layer"] for row in rows} == {"unpruned", *CONVOLUTIONS[:-1]}
    network = make_tiny()
    whole = embed(network, windows)
    names = list(CONVOLUTIONS)
    for row in rows[1:]:
        goes = 2
        kernel = network.get_layer(row["layer"]).kernel.numpy()
        gone = np.argsort(np.abs(kernel).sum(axis=(0, 1, 2)))[:goes]
        reader = network.get_layer(names[names.index(row["layer"]) + 1])
        unpruned = reader.kernel.numpy()
        read = unpruned.copy()
        read[:, :, gone] = 0
        reader.kernel.assign(read)
        mse = np.square(embed(network, windows) - whole).mean()
        reader.kernel.assign(unpruned)
        assert float(row["mse"]) == pytest.approx(mse, rel=1e-4), row
        assert (int(row["left"]), int(row["of"])) == (4 - goes, 4)
        area = 9 * (1 if row["layer"] == "conv_1" else 4)
        assert int(row["weights_left"]) == 36 + 7 * 144 - goes * (area + 36)


def test_filterwise_says_what_it_leaves_out(place, filterwise, capsys):
    words = ("--mode", "filterwise", "--amounts", "50")
    assert sensitivity(line(place, filterwise, *words)) == 0
    printed = capsys.readouterr().out
    assert "left out, its filters are the embedding: audio_embedding_layer" in printed
    record = json.loads((filterwise / "sensitivity.json").read_text())
    assert record["left_out"] == ["audio_embedding_layer"]


def test_small_layers_are_judged_once_for_amounts_alike(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Candidates, "scanned", ("conv_1", "conv_2"))
    judged = []

    def judge(network):
        judged.append(graph.count_kernel_weights(network)[1])
        return {"mse": len(judged), "relative_mse": 1.0}

    candidates = Candidates(tiny, "filterwise")
    # Of four filters, 25 % and 30 % are one.
    rows = scan(candidates, [30, 50, 25], judge, tmp_path / "s.csv", quiet=True)
    assert len(judged) == 1 + 2 * 2
    assert [row.mse for row in rows[1:4]] == [2, 2, 3]


def test_files_beside_the_table(finished, windows):
    names = {path.name for path in finished.iterdir() if path.name != ".lock"}
    assert names == {"sensitivity.csv", "sensitivity.json", "sensitivity.png"}
    record = json.loads((finished / "sensitivity.json").read_text())
    assert (record["mode"], record["criterion"]) == ("layerwise", "magnitude")
    assert record["weights"] == "tiny.h5"
    assert record["windows"] == record["of_windows"] == len(windows)
    variance = embed(make_tiny(), windows).var(axis=0).mean()
    assert record["embedding_variance"] == pytest.approx(variance, rel=1e-5)
    assert (finished / "sensitivity.png").read_bytes()[:4] == b"\x89PNG"


def test_the_network_is_not_changed_and_every_candidate_has_one_layer_pruned(tiny):
    before = [weight.numpy() for weight in tiny.weights]
    candidates = Candidates(tiny)
    for layer in ("conv_3", "conv_1", "unpruned", "conv_3"):
        network = candidates.make(layer, 50)
        for name, weights in graph.conv_weights(network).items():
            whole = graph.conv_weights(tiny)[name].kernel
            assert (np.count_nonzero(weights.kernel) < whole.size) == (name == layer)
            same = weights.kernel != 0
            np.testing.assert_array_equal(weights.kernel[same], whole[same])
    for weight, value in zip(tiny.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_a_masked_network_keeps_its_masks(tiny):
    mask = np.ones((3, 3, 4, 4), bool)
    mask[0] = False
    masked = surgery.apply_masks(tiny, PruningPlan({"conv_2": mask}))
    candidates = Candidates(masked, criterion="random")
    made = candidates.make("conv_2", 50)
    kernel = graph.conv_weights(made)["conv_2"].kernel
    assert not kernel[0].any()
    left, of = candidates.count("conv_2", 50)
    assert (left, of) == (np.count_nonzero(kernel), 144)
    assert isinstance(made.get_layer("conv_2"), MaskedConv2D)
    # And of the next candidate all that was there comes back.
    back = graph.conv_weights(candidates.make("unpruned", 0))["conv_2"].kernel
    np.testing.assert_array_equal(back, graph.conv_weights(masked)["conv_2"].kernel)


class Ramp:
    sample_rate, fingerprint = 2, "ramp"

    def __init__(self, length, factor=1.0):
        self.length, self.factor = length, factor

    def __len__(self):
        return self.length

    def read(self, indices):
        return np.repeat(np.float32(indices * self.factor)[:, None, None], 2, axis=2)


def test_windows_are_spread_evenly():
    spread = Spread(Ramp(100), 4)
    assert spread.read(np.arange(4))[:, 0, 0].tolist() == [12, 37, 62, 87]
    assert len(Spread(Ramp(5), 8)) == len(Spread(Ramp(5), 0)) == 5
    assert Spread(Ramp(5), 0).fingerprint == Spread(Ramp(5), 7).fingerprint
    others = [Spread(Ramp(5, 2.0), 0), Spread(Ramp(5), 4), Spread(Ramp(6), 0)]
    assert len({each.fingerprint for each in [spread, Spread(Ramp(5), 0), *others]}) == 5
    assert sorted(spread.order(np.random.default_rng(0))) == [0, 1, 2, 3]
    with pytest.raises(ParameterError, match=r"max_windows=-1 is not a whole number from 0"):
        Spread(Ramp(5), -1)


# Resuming.


@pytest.mark.slow
def test_a_stopped_scan_goes_on_where_it_stopped(place, finished, tmp_path, monkeypatch):
    from l3prune import evaluation

    original = evaluation.embedding_mse
    calls = []

    def stopping(*args, **kwargs):
        if len(calls) == 6:
            raise KeyboardInterrupt
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(evaluation, "embedding_mse", stopping)
    assert sensitivity(line(place, tmp_path / "out", *AMOUNT_WORDS)) == 130
    table = tmp_path / "out" / "sensitivity.csv"
    whole = (finished / "sensitivity.csv").read_text()
    assert table.read_text() == "".join(whole.splitlines(keepends=True)[:7])
    # Rows that are there are neither measured again nor written otherwise.
    before = table.read_text().splitlines()
    before[3] = f"{before[3].rsplit(',', 2)[0]},0.125,"
    table.write_text("\n".join(before) + "\n")
    calls.clear()
    monkeypatch.setattr(
        evaluation, "embedding_mse", lambda *a, **k: (calls.append(a), original(*a, **k))[1]
    )
    assert sensitivity(line(place, tmp_path / "out", *AMOUNT_WORDS)) == 0
    assert len(calls) == 17 - 6
    after, expected = table.read_text().splitlines(), whole.splitlines()
    assert after[:7] == before
    assert after[7:] == expected[7:]
    assert after[3] != expected[3]
    calls.clear()
    assert sensitivity(line(place, tmp_path / "out", *AMOUNT_WORDS)) == 0
    assert not calls
    assert table.read_text().splitlines() == after


def copy_of(folder, target):
    target.mkdir()
    for name in ("sensitivity.csv", "sensitivity.json"):
        (target / name).write_text((folder / name).read_text())
    return target


def test_more_amounts_are_added(place, finished, tmp_path):
    out = copy_of(finished, tmp_path / "out")
    before = (out / "sensitivity.csv").read_text()
    assert sensitivity(line(place, out, "--amounts", "50", "70")) == 0
    assert (out / "sensitivity.csv").read_text().startswith(before)
    added = rows_of(out)[17:]
    assert [(row["layer"], row["amount_percent"]) for row in added] == [
        (name, "70") for name in CONVOLUTIONS
    ]


def test_the_same_recordings_elsewhere_are_the_same_data(place, finished, tmp_path, monkeypatch):
    from l3prune import evaluation

    monkeypatch.setattr(evaluation, "embedding_mse", None)  # nothing is measured
    out = copy_of(finished, tmp_path / "out")
    sounds = make_sounds(tmp_path / "elsewhere")
    words = line(place, out, *AMOUNT_WORDS)
    assert sensitivity([words[0], str(sounds), *words[2:]]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--mode", "filterwise"), "is of another mode: 'layerwise' there, 'filterwise' now"),
        (("--criterion", "random"), "is of another criterion: 'magnitude' there, 'random' now"),
        (("--hop-size", "0.25"), "is of another data: "),
        (("--max-windows", "5"), "is of another data: "),
        (("NETWORK",), "is of another network: "),
        (("SOUNDS",), "is of another data: "),
    ],
)
def test_the_table_of_something_else_is_refused(place, finished, tmp_path, capsys, more, message):
    out = copy_of(finished, tmp_path / "out")
    words = line(place, out, *AMOUNT_WORDS)
    if more == ("NETWORK",):
        other = make_tiny()
        other.get_layer("conv_5").bias.assign_add([0.01] * 4)
        save_network(other, tmp_path / "other.h5")
        words[0] = str(tmp_path / "other.h5")
    elif more == ("SOUNDS",):
        (tmp_path / "other").mkdir()
        soundfile.write(tmp_path / "other" / "a.wav", chirp(3, 8000), 8000)
        words[1] = str(tmp_path / "other")
    else:
        words += more
    before = [(path.name, path.read_text()) for path in sorted(out.iterdir())]
    refuse(capsys, words, message)
    assert [(path.name, path.read_text()) for path in sorted(out.iterdir())] == before


def test_two_processes_do_not_write_one_table(place, tmp_path, capsys):
    import filelock

    (tmp_path / "out").mkdir()
    with filelock.FileLock(tmp_path / "out" / ".lock"):
        refuse(capsys, line(place, tmp_path / "out"), "another run is at work in")


# Lists for budgets.


def recount(network, options):
    """Sparsity, MACs, bytes of what an option line leaves, counted in masks made by hand."""
    words = options.split()
    assert words[0] == "--layerwise"
    percents = [float(word) for word in words[words.index("--sparsity") + 1 :][:8]]
    left = macs = biases = total = 0
    places = [64 * 50] * 2 + [32 * 25] * 2 + [16 * 12] * 2 + [8 * 6] * 2
    for name, percent, positions in zip(CONVOLUTIONS, percents, places, strict=True):
        layer = network.get_layer(name)
        values = np.sort(np.abs(layer.kernel.numpy()), axis=None)
        goes = round((values.size - 1) * (percent / 100)) + 1 if percent else 0
        threshold = values[goes - 1] if goes else -1
        stays = int((values > threshold).sum())
        left += stays
        macs += stays * positions
        biases += len(layer.bias.numpy())
        total += values.size
    return {"sparsity": 1 - left / total, "macs": macs, "bytes": 4 * (left + biases)}


def test_budgets_are_met(place, finished, tmp_path, capsys):
    # To the weight of 1044, and within 1 % below the limits.
    ranges = {
        "sparsity=80%": ("sparsity", 0.8 - 0.5 / 1044, 0.8 + 0.5 / 1044),
        "macs<=200k": ("macs", 198_000, 200_000),
        "bytes<=1.2k": ("bytes", 1188, 1200),
    }
    out = copy_of(finished, tmp_path / "out")
    budgets = [word for text in ranges for word in ("--budget", text)]
    assert sensitivity(line(place, out, *budgets, "--lists-only")) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "lists.json").read_text())["lists"]
    assert [(each["budget"], each["allocation"]) for each in found] == list(
        itertools.product(ranges, ("uniform", "erk", "sensitivity"))
    )
    network = make_tiny()
    for each in found:
        assert each["options"] in printed
        counted = recount(network, each["options"])
        assert counted == pytest.approx(each["predicted"], abs=1e-9)
        kind, low, high = ranges[each["budget"]]
        assert low - 1e-9 <= counted[kind] <= high + 1e-9
        assert each["met"]
        assert each["near"]
        assert list(each["amounts"]) == list(CONVOLUTIONS)


def test_the_sensitive_layer_is_spared(tiny):
    candidates = Candidates(tiny)
    loss = dict.fromkeys(CONVOLUTIONS, 0.1) | {"conv_5": 10.0}
    found = allocate(
        candidates,
        parse_budget("sparsity=60"),
        "sensitivity",
        {name: [(0.0, 0.0), (0.95, loss[name])] for name in CONVOLUTIONS},
    )
    assert found["amounts"]["conv_5"] == 0
    others = [amount for name, amount in found["amounts"].items() if name != "conv_5"]
    assert max(others) > 90


def test_filterwise_lists_keep_the_embedding(place, filterwise, tmp_path, capsys):
    out = copy_of(filterwise, tmp_path / "out")
    words = ("--mode", "filterwise", "--budget", "filters=0.25", "--budget", "macs<=500k")
    assert sensitivity(line(place, out, *words, "--lists-only")) == 0
    found = json.loads((out / "lists.json").read_text())
    assert found["mode"] == "filterwise"
    assert len(found["lists"]) == 6
    for each in found["lists"]:
        counts = [int(word) for word in each["options"].split()[2:10]]
        assert each["options"].startswith("--filterwise --num_filters ")
        assert counts[-1] == 4
        assert list(each["amounts"].values()) == counts
        plan = {
            name: np.arange(4) < count for name, count in zip(CONVOLUTIONS, counts, strict=True)
        }
        smaller = surgery.remove_filters(make_tiny(), PruningPlan(plan))
        assert graph.count_macs(smaller)[0] == each["predicted"]["macs"]
        assert each["predicted"]["filters"] == 1 - sum(counts) / 32
        weights = graph.count_kernel_weights(smaller)[0]
        assert each["predicted"]["sparsity"] == pytest.approx(1 - weights / 1044)
        assert each["predicted"]["bytes"] == 4 * (weights + sum(counts))
        assert each["met"]
        if each["budget"] == "filters=0.25":
            assert sum(counts) == 24
        else:
            assert each["predicted"]["macs"] <= 500_000
    capsys.readouterr()


def test_filters_are_shared_out_by_loss_per_filter():
    network = create_network("sea64", filters=[4, 4, 8, 8, 8, 8, 4, 4])
    candidates = Candidates(network, "filterwise")
    # Equal losses: of wide layers a filter costs less, though it has as many weights or more.
    found = allocate(
        candidates,
        parse_budget(f"filters={4 / 48}"),
        "sensitivity",
        {name: [(0.0, 0.0), (0.5, 1.0)] for name in CONVOLUTIONS[:-1]}
        | {"audio_embedding_layer": [(0.0, 0.0)]},
    )
    assert list(found["amounts"].values()) == [4, 4, 4, 8, 8, 8, 4, 4]


def test_macs_are_shared_out_by_loss_per_mac(tiny):
    candidates = Candidates(tiny)
    line_of = {name: [(0.0, 0.0), (0.9, 1.0)] for name in CONVOLUTIONS}
    line_of["conv_3"] = [(0.0, 0.0), (0.9, 0.5)]  # the cheapest per weight
    found = allocate(candidates, parse_budget("macs<=700k"), "sensitivity", line_of)
    # 144 weights at 3200 places are by far the most of the 903,000.
    assert found["amounts"]["conv_2"] > 35
    assert sum(found["amounts"].values()) == found["amounts"]["conv_2"]


def test_weights_that_score_alike_are_counted_as_they_go(tiny):
    for name in CONVOLUTIONS:
        tiny.get_layer(name).kernel.assign(tiny.get_layer(name).kernel * 0 + 1)
        # One stands out, so that a layer keeps something.
        kernel = tiny.get_layer(name).kernel.numpy()
        kernel[0, 0, 0, 0] = 2
        tiny.get_layer(name).kernel.assign(kernel)
    found = allocate(Candidates(tiny), parse_budget("sparsity=50"), "uniform")
    assert found["predicted"]["sparsity"] == pytest.approx(1 - 8 / 1044)
    assert not found["met"]
    assert found["note"] == "sparsity is 99.23 % instead of 50 %"


def test_lists_say_where_they_miss_the_budget(place, filterwise, tmp_path, capsys):
    """Four filters a layer are coarse; the pruning command says the same of the same budget."""
    out = copy_of(filterwise, tmp_path / "out")
    words = ("--mode", "filterwise", "--budget", "sparsity=17", "--allocation", "erk")
    assert sensitivity(line(place, out, *words, "--lists-only")) == 0
    (found,) = json.loads((out / "lists.json").read_text())["lists"]
    assert not found["met"]
    assert f"; {found['note']}, the nearest that was found\n" in capsys.readouterr().out
    value = found["predicted"]["sparsity"]
    assert found["note"] == f"sparsity is {100 * value:.4g} % instead of 17 %"
    line_of = [str(each) for each in (place / "tiny.h5", *[place / "sounds"] * 2, tmp_path / "p")]
    options = ("--filterwise", "--budget", "sparsity=17", "--allocation", "erk", "--quiet")
    assert prune_command([*line_of, *options, "--run-name", "run"]) == 0
    assert capsys.readouterr().err == f"note: --budget sparsity=17%: {found['note']}\n"
    (config,) = (tmp_path / "p").glob("embedding/*/*/*/run/config.json")
    written = json.loads(config.read_text())["budget"]
    assert written == {
        "budget": "sparsity=17%",
        "value": pytest.approx(value),
        "met": False,
        "near": False,
        "note": found["note"],
    }


def test_a_layer_before_groups_is_scanned_whole_groups_at_a_time(tmp_path):
    import tf_keras as keras

    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(8, 3, padding="same", name="a")(inputs)
    maps = keras.layers.Conv2D(6, 3, padding="same", groups=2, name="b")(maps)
    maps = keras.layers.Conv2D(4, 1, name="c")(maps)
    network = keras.Model(inputs, keras.layers.Flatten()(maps))
    candidates = Candidates(network, "filterwise")
    assert candidates.count("a", 50) == (4, 8)
    assert candidates.make("a", 50).get_layer("b").kernel.shape == (3, 3, 2, 6)
    found = allocate(candidates, parse_budget("macs<=8k"), "uniform")
    assert [count % 2 for name, count in found["amounts"].items() if name != "c"] == [0, 0]
    plan = PruningPlan(
        {"a": np.arange(8) % 4 < found["amounts"]["a"] // 2}
        | {"b": np.arange(6) % 3 < found["amounts"]["b"] // 2}
    )
    smaller = surgery.remove_filters(network, plan)
    assert graph.count_macs(smaller)[0] == found["predicted"]["macs"] <= 8000


def test_a_network_that_is_pruned_already_gets_lists_for_what_is_left(tiny):
    plan = PruningPlan({"conv_3": np.random.default_rng(1).random((3, 3, 4, 4)) < 0.1})
    for network in (surgery.apply_masks(tiny, plan), surgery.strip_masks(tiny)):
        layer = network.get_layer("conv_3")
        layer.kernel.assign(np.where(plan["conv_3"], layer.kernel.numpy(), 0))
        found = allocate(Candidates(network), parse_budget("sparsity=50"), "uniform")
        assert found["met"]
        assert found["predicted"]["sparsity"] == pytest.approx(0.5, abs=1 / 1044)
        # As many weights go of the others as are missing, and none of it.
        stay = plan["conv_3"].sum()
        assert found["amounts"]["conv_3"] == pytest.approx(100 * (1 - stay / 144), abs=1)
        assert found["amounts"]["conv_4"] < 50


def test_the_rows_decide(place, finished, tmp_path):
    # With all other layers' losses multiplied, the list takes from the first layer what it can.
    out = copy_of(finished, tmp_path / "out")
    rows = [
        row if row.layer in ("conv_2", "unpruned") else Row(**{**vars(row), "relative_mse": 1e6})
        for row in read_rows(out / "sensitivity.csv")
    ]
    write_rows(out / "sensitivity.csv", rows)
    words = ("--budget", "sparsity=12", "--allocation", "sensitivity", "--lists-only")
    assert sensitivity(line(place, out, *words)) == 0
    (found,) = json.loads((out / "lists.json").read_text())["lists"]
    amounts = found["amounts"]
    assert amounts.pop("conv_2") == pytest.approx(87.5, abs=0.8)
    assert not any(amounts.values())


def test_curves():
    def row(layer, left, relative, accuracy=None):
        return Row(layer, 50.0, left, 4, 9, 1.0, relative, accuracy)

    rows = [row("a", 3, 0.5), row("a", 1, 0.75), row("b", 4, 0.0)]
    assert curves(rows, ["a", "b", "c"], ["c"]) == {
        "a": [(0, 0), (0.25, 0.5), (0.75, 0.75)],
        "b": [(0, 0)],
        "c": [(0, 0)],
    }
    judged = [Row("unpruned", 0.0, 4, 4, 9, 0.0, 0.0, 0.75), row("a", 2, 0.5, 0.25)]
    assert curves(judged, ["a"]) == {"a": [(0, 0), (0.5, 0.5)]}
    with pytest.raises(L3PruneError, match="there are no rows of layer c; measure it first"):
        curves(rows, ["a", "b", "c"])
    with pytest.raises(L3PruneError, match="some rows have an accuracy and others have none"):
        curves([*judged, row("b", 2, 0.5)], ["a", "b"])


def test_a_figure_with_accuracies(tmp_path):
    rows = [Row("unpruned", 0.0, 4, 4, 9, 0.0, 0.0, 0.75), Row("a", 50.0, 2, 4, 7, 1.0, 0.5, 0.5)]
    plot(rows, tmp_path / "a.png", "title")
    plot(rows[1:], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


# Accuracy.


def corpus(folder):
    """ESC-50's layout: 2 classes, 2 clips each in 3 folds."""
    (folder / "meta").mkdir(parents=True)
    (folder / "audio").mkdir()
    rng = np.random.default_rng(3)
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold, number, target in itertools.product((1, 2, 3), (1, 2), (0, 1)):
        name = f"{fold}-{number}-A-{target}.wav"
        noise = rng.uniform(-0.5, 0.5, 12000)
        soundfile.write(folder / "audio" / name, noise if target else chirp(1.5, 8000), 8000)
        lines.append(f"{name},{fold},{target},{'noise' if target else 'chirp'},True,{number},A")
    (folder / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_accuracy_is_that_of_the_classifier(place, tmp_path):
    data = corpus(tmp_path / "esc")
    args = argparse.Namespace(
        dataset="esc50",
        data_dir=str(data),
        hop_size=0.5,
        classifier_args=["--fold", "1", "--epochs", "3"],
    )
    network = Candidates(load_network(place / "tiny.h5")).make("conv_1", 90)
    accuracy = command_module._accuracy(args, network, tmp_path / "candidate")
    assert not (tmp_path / "candidate").exists()
    # By hand.
    extract_features(load_dataset("esc50", data), network, tmp_path / "f", hop_size=0.5, quiet=True)
    result = train_fold(
        read_features(tmp_path / "f"), 1, tmp_path / "r", recipe=Recipe(epochs=3), quiet=True
    )
    assert accuracy == result.accuracy


def test_accuracies_in_the_table(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Candidates, "scanned", ("conv_1", "conv_2"))
    commands = []

    def classifier(*words):
        commands.append([str(word) for word in words])
        if words[0] == "cv":
            saved = json.loads((words[1].parent / "network.json").read_text())
            mean = saved["nonzero_kernel_weights"] / 2000
            (words[2]).mkdir()
            summary = [{"metric": "other", "mean": 9}, {"metric": "clip accuracy", "mean": mean}]
            (words[2] / "cv.json").write_text(json.dumps({"summary": summary}))

    monkeypatch.setattr(command_module, "_classifier", classifier)
    data = corpus(tmp_path / "esc")
    words = ("--metric", "accuracy", "--dataset", "esc50", "--data-dir", data, "--amounts", "90")
    given = line(place, tmp_path / "out", *words, "--classifier-args", "--fold 1 --epochs 2")
    assert sensitivity(given) == 0
    rows = rows_of(tmp_path / "out")
    assert [row["layer"] for row in rows] == ["unpruned", "conv_1", "conv_2"]
    assert [float(row["accuracy"]) for row in rows] == [1044 / 2000, 1011 / 2000, 914 / 2000]
    assert all(float(row["mse"]) > 0 for row in rows[1:])
    assert [words[0] for words in commands] == ["features", "cv"] * 3
    assert commands[0][1:3] == ["esc50", str(data)]
    assert commands[1][3:] == ["--quiet", "--fold", "1", "--epochs", "2"]
    assert "clip accuracy, %" in capsys.readouterr().out
    # Another classifier or another metric is another table.
    refuse(capsys, [*given[:-1], "--fold 2"], "is of another classifier args: ")
    refuse(capsys, line(place, tmp_path / "out", "--amounts", "90"), "is of another metric: ")
    soundfile.write(data / "audio" / "1-3-A-0.wav", chirp(1, 8000), 8000)
    with (data / "meta" / "esc50.csv").open("a") as file:
        file.write("1-3-A-0.wav,1,0,chirp,True,3,A\n")
    refuse(capsys, given, "is of another dataset: ")


def test_what_the_classifier_refuses_is_told(place, tmp_path, capsys, monkeypatch):
    def run(words, **_):
        assert words[:4] == [sys.executable, "-m", "classifier", "features"]
        assert all(isinstance(word, str) for word in words)
        return subprocess.CompletedProcess(words, 2, "", "a warning\nerror: bad clip\n")

    monkeypatch.setattr(subprocess, "run", run)
    data = corpus(tmp_path / "esc")
    words = ("--metric", "accuracy", "--dataset", "esc50", "--data-dir", data)
    given = line(place, tmp_path / "out", *words)
    captured = refuse(capsys, given, "python -m classifier features: bad clip")
    assert "warning" not in captured.err
    assert not (tmp_path / "out" / "candidate").exists()
    assert not (tmp_path / "out" / "sensitivity.csv").exists()


# Wrong input.


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--metric", "loss"), "--metric loss is unknown; known: mse, accuracy, avc"),
        (("--metric", "accuracy"), "--metric accuracy needs --dataset NAME and --data-dir DIR"),
        (("--dataset", "esc50"), "--dataset without effect; give --metric accuracy"),
        (
            ("--metric", "accuracy", "--dataset", "esc51", "--data-dir", "x"),
            "dataset 'esc51' is unknown; known: ",
        ),
        (
            ("--metric", "accuracy", "--dataset", "esc50", "--data-dir", "/nowhere"),
            "no such folder: /nowhere",
        ),
        (
            (
                *("--metric", "accuracy", "--dataset", "esc50", "--data-dir", "x"),
                *("--classifier-args", 'a "b'),
            ),
            "No closing quotation",
        ),
        (("--mode", "filter"), "--mode filter is unknown; known: layerwise, filterwise"),
        (("--criterion", "l3"), "criterion 'l3' is unknown; known: "),
        (("--criterion", "l1"), "criterion l1 scores filters, which mode layerwise does not prune"),
        (
            ("--mode", "filterwise", "--criterion", "magnitude"),
            "criterion magnitude scores weights, which mode filterwise does not prune; take l1",
        ),
        (("--amounts", "0"), "amount 0 is not in percent, above 0 and below 100"),
        (("--amounts", "50", "100"), "amount 100 is not in percent"),
        (("--amounts", "nan"), "amount nan is not in percent"),
        (("--amounts", "99.9"), "layer conv_1 would lose all its weights"),
        (("--max-windows", "-1"), "--max-windows -1 is negative; 0 takes all"),
        (("--batch-size", "0"), "--batch-size 0 is not a positive number"),
        (("--hop-size", "0"), "hop_size=0.0 is not a positive number"),
        (("--budget", "size=3"), "budget of 'size' is unknown"),
        (("--budget", "filters=0.5"), "is of filters: give --mode filterwise"),
        (("--budget", "sparsity=99"), "allocation sensitivity: sparsity=99% cannot be met"),
        (("--budget", "sparsity=50", "--allocation", "all"), "--allocation all is unknown; known:"),
        (("--lists-only",), "--lists-only has nothing to do; give --budget"),
        (("--lists-only", "--budget", "sparsity=50"), "cannot read "),
    ],
)
def test_wrong_arguments(place, tmp_path, capsys, more, message):
    captured = refuse(capsys, line(place, tmp_path / "out", *more), message)
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_wrong_files(place, tmp_path, capsys):
    words = line(place, tmp_path / "out")
    refuse(capsys, ["/nowhere/net.h5", *words[1:]], "no such weight file: /nowhere/net.h5")
    refuse(capsys, [words[0], "/nowhere", *words[2:]], "no such folder: /nowhere")
    (tmp_path / "empty").mkdir()
    refuse(capsys, [words[0], str(tmp_path / "empty"), *words[2:]], "holds no audio files")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("text")
    refuse(capsys, [*words[:2], str(tmp_path / "file"), *words[3:]], "cannot make the folder")


@pytest.mark.slow
def test_recordings_that_are_all_alike(place, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    soundfile.write(tmp_path / "one" / "a.wav", np.zeros(8000), 8000)
    words = line(place, tmp_path / "out")
    refuse(
        capsys,
        [words[0], str(tmp_path / "one"), *words[2:]],
        "the network's embedding is the same in all 1 windows",
    )
    assert not (tmp_path / "out").exists()


ROW = "conv_1,50,17,36,1025,0.5,0.25,"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not have the columns layer,amount_percent"),
        ("layer,amount\nconv_1,50\n", "does not have the columns"),
        (f"{HEAD},more\n", "does not have the columns"),
        (f"{HEAD}\n{ROW}1,2\n", "line 2: 9 values instead of 8"),
        (f"{HEAD}\n{ROW[:-9]}\n", "line 2: 6 values instead of 8"),
        (f"{HEAD}\n{ROW}\n{ROW}\n", "line 3: conv_1 at 50 % stands there twice"),
        (f"{HEAD}\nconv_1,half,17,36,1025,0.5,0.25,\n", "line 2: could not convert string"),
        (f"{HEAD}\nconv_1,50,17.5,36,1025,0.5,0.25,\n", "line 2: invalid literal for int()"),
        (f"{HEAD}\nconv_1,50,17,36,1025,nan,0.25,\n", "line 2: conv_1,50,17,36,1025,nan,0.25, is"),
        (f"{HEAD}\nconv_1,50,17,36,1025,-1,0.25,\n", "is out of range; delete the line"),
        (f"{HEAD}\nconv_1,50,17,36,1025,0.5,0.25,7\n", "is out of range"),
        (f"{HEAD}\nconv_1,0,17,36,1025,0.5,0.25,\n", "is out of range"),
        (f"{HEAD}\nconv_1,50,37,36,1025,0.5,0.25,\n", "is out of range"),
        (f'{HEAD}\n"conv_1,50\n', "is not a CSV file"),
        (b"\xff\xfe\x00", "is not a CSV file"),
    ],
)
def test_damaged_tables(tmp_path, text, message):
    table = tmp_path / "sensitivity.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(L3PruneError, match=re.escape(message)):
        read_rows(table)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("conv_1,50,17,36,1025,0.5,0.25", "line 2: 7 values instead of 8"),
        ("conv_9,50,17,36,1025,0.5,0.25,", "of layer conv_9 at 50 % is not of this network"),
        ("conv_1,50,16,36,1025,0.5,0.25,", "of layer conv_1 at 50 % is not of this network"),
    ],
)
def test_the_command_refuses_damaged_tables(place, finished, tmp_path, capsys, row, message):
    out = copy_of(finished, tmp_path / "out")
    table = out / "sensitivity.csv"
    table.write_text(f"{HEAD}\n{row}\n")
    refuse(capsys, line(place, out, *AMOUNT_WORDS), message)
    assert table.read_text() == f"{HEAD}\n{row}\n"


@pytest.mark.slow
def test_a_table_without_its_record(place, finished, tmp_path, capsys):
    out = copy_of(finished, tmp_path / "out")
    (out / "sensitivity.json").write_text("[]")
    refuse(capsys, line(place, out), "does not tell what sensitivity.csv is of")
    (out / "sensitivity.json").write_text("{")
    refuse(capsys, line(place, out), "is not JSON")
    (out / "sensitivity.json").unlink()
    refuse(capsys, line(place, out), "has no sensitivity.json beside it")


@pytest.mark.slow
def test_lists_need_rows_of_every_layer(place, finished, tmp_path, capsys):
    out = copy_of(finished, tmp_path / "out")
    table = out / "sensitivity.csv"
    lines = [each for each in table.read_text().splitlines() if not each.startswith("conv_4")]
    table.write_text("\n".join(lines) + "\n")
    words = line(place, out, "--budget", "sparsity=50", "--lists-only")
    refuse(capsys, words, "there are no rows of layer conv_4; measure it first")
    table.write_text(f"{HEAD}\n")
    refuse(capsys, words, "there are no rows of layer conv_1")
    # What needs no rows takes none.
    assert sensitivity([*words, "--allocation", "uniform", "erk"]) == 0
    # The largest amount limits what the curves can give.
    refuse(
        capsys,
        line(place, copy_of(finished, tmp_path / "b"), "--budget", "sparsity=95", "--lists-only"),
        "allocation sensitivity: sparsity=95% cannot be met layerwise",
    )


def test_scan_refuses_what_is_not_finite(tiny, tmp_path):
    judge = lambda network: {"mse": np.nan, "relative_mse": 1.0}  # noqa: E731
    with pytest.raises(L3PruneError, match="layer unpruned pruned by 0 %: the embedding is not"):
        scan(Candidates(tiny), [50], judge, tmp_path / "s.csv", quiet=True)
    with pytest.raises(ParameterError, match="no amounts to prune by"):
        tidy([])
    with pytest.raises(ParameterError, match="mode='both' is unknown"):
        Candidates(tiny, "both")


def test_layers_that_lose_filters_together_are_refused():
    import tf_keras as keras

    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(4, 3, padding="same", name="a")(inputs)
    maps = keras.layers.Add()([maps, keras.layers.Conv2D(4, 1, name="b")(maps)])
    maps = keras.layers.Conv2D(4, 1, name="c")(maps)
    network = keras.Model(inputs, keras.layers.Flatten()(maps))
    assert Candidates(network).scanned == ("a", "b", "c")
    with pytest.raises(ParameterError, match=r"layers a and b lose filters together, .* layerwise"):
        Candidates(network, "filterwise")


@pytest.mark.slow
def test_progress_unless_quiet(place, finished, tmp_path, capsys, monkeypatch):
    out = copy_of(finished, tmp_path / "out")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    words = line(place, out, *AMOUNT_WORDS)
    words.remove("--quiet")
    assert sensitivity(words) == 0
    captured = capsys.readouterr()
    assert "17/17" in captured.err
    assert "squared error / variance" in captured.out
    assert captured.out.splitlines()[-1] == str(out)
    assert sensitivity([*words, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_help_is_quick():
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "l3prune.sensitivity", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert "tensorflow" not in ended.stderr
    assert "VALIDATION_DATA" in ended.stdout
    assert time.monotonic() - start < 10  # a second where nothing else runs
