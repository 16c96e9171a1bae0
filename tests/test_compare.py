"""python -m l3prune.compare: figures by hand, tables, files, timing in turns, wrong input."""

import json
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import l3prune.compare as command_module
from l3prune import comparison, graph, plan, pruning, sizes, surgery, timing, training
from l3prune.compare import main as compare_command
from l3prune.compare import short_names
from l3prune.comparison import FIGURES, compare, layer_figures, merge_orders
from l3prune.errors import L3PruneError, ParameterError
from l3prune.layers import MaskedConv2D
from l3prune.networks import create_network, inference
from l3prune.plan import PruningPlan
from l3prune.pruner import Wish, prune
from l3prune.timing import latency
from l3prune.weights import fingerprint, load_network, save_network
from tests.conftest import make_tiny

SYNTHETIC = Path(__file__).parent.parent / "models" / "l3_synthetic.h5"
CONVOLUTIONS = [*(f"conv_{number}" for number in range(1, 8)), "audio_embedding_layer"]


def small():
    """Conv a, 54 weights of which 10 are zero; BatchNorm; ReLU; dense b, 120 of which 20 are."""
    inputs = keras.Input((4, 5, 2))
    x = layers.Conv2D(3, 3, padding="same", name="a")(inputs)
    # Named, since Keras's own names depend on what was built before.
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.Flatten(name="flat")(x)
    network = keras.Model(inputs, layers.Dense(2, name="b")(x), name="small")
    for name, zeros in (("a", 10), ("b", 20)):
        kernel = np.ones(network.get_layer(name).kernel.shape, np.float32)
        kernel.flat[:zeros] = 0
        network.get_layer(name).kernel.assign(kernel)
    return network


def half_of(network):
    """Half of the filters of all layers but the last, the embedding's."""
    return prune(network, Wish(filterwise=True, amount=0.5))[0]


def table_rows(markdown, title):
    """The cells of the table below a heading, header first, and of the line under it."""
    lines = markdown.split(f"## {title}\n")[1].strip().splitlines()
    table = lines[: [*lines, ""].index("")]
    cells = [[c.strip() for c in line.replace("\\|", "¦").split("|")[1:-1]] for line in table]
    return [cells[0], *cells[2:]], cells[1]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig

    def saving(figure, *args, **kwargs):
        figures.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", saving)
    return figures


# Figures.


def test_totals_by_hand():
    found = compare({"small": small()})
    packed = {
        name: found.totals["small"].pop(name) for name in ("packed_bytes", "packed_int8_bytes")
    }
    # 44 and 100 weights of four bytes, biases, and what tells where they are.
    assert 4 * 144 < packed["packed_bytes"] < 4 * 144 + 300
    assert packed["packed_int8_bytes"] < packed["packed_bytes"] - 2 * 144
    assert found.totals["small"] == {
        "parameters": 54 + 3 + 4 * 3 + 120 + 2,
        "trainable": 54 + 3 + 2 * 3 + 120 + 2,
        "weights": 54,
        "nonzero": 44,
        "sparsity": pytest.approx(10 / 54),
        "macs": 20 * 54 + 120,
        "nonzero_macs": 20 * 44 + 100,
        # conv with biases, BatchNorm, ReLU, dense
        "thop_2019": 20 * (54 + 3 * 2) + 4 * 60 + 60 + 2 * (2 * 60 - 1),
        "thop": 20 * 54 + 4 * 60 + 120,
        "peak_activation_bytes": 4 * (40 + 60),
        # Only networks that l3prune made have a checkpoint.
        "bytes": None,
    }
    rows = {row.name: row for row in found.layers["small"]}
    assert (rows["a"].filters, rows["a"].weights, rows["a"].nonzero) == (3, 54, 44)
    assert (rows["b"].filters, rows["b"].weights, rows["b"].nonzero) == (2, 120, 100)
    assert (rows["a"].nonzero_macs, rows["b"].nonzero_macs) == (880, 100)
    assert sum(row.weights for row in rows.values()) == 174


@pytest.mark.parametrize(
    ("layer", "shape", "zero", "expected"),
    [
        # What is zero: the number of the weight, and where in it. Expected: weights, nonzero, MACs,
        # MACs of weights that are not zero.
        (layers.Conv2D(6, 3, groups=2), (5, 5, 4), (0, np.s_[..., 0]), (108, 90, 972, 810)),
        (
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            (5, 5, 2),
            (0, np.s_[:, :, 0]),
            (36, 18, 324, 162),
        ),
        (
            layers.SeparableConv2D(5, 3, use_bias=False),
            (5, 5, 2),
            (1, np.s_[:]),
            (28, 18, 252, 162),
        ),
        (
            layers.Conv2DTranspose(3, 2, strides=2),
            (4, 4, 5),
            (0, np.s_[:, :, 0]),
            (60, 40, 960, 640),
        ),
        (layers.Conv1D(3, 4), (9, 2), (0, np.s_[0]), (24, 18, 144, 108)),
        (layers.Dense(7), (3, 4), (0, np.s_[:1]), (28, 21, 84, 63)),
    ],
)
def test_kinds_of_layers_by_hand(layer, shape, zero, expected):
    inputs = keras.Input(shape)
    network = keras.Model(inputs, layer(inputs))
    weight, where = zero
    kernel = np.ones(layer.weights[weight].shape, np.float32)
    kernel[where] = 0
    layer.weights[weight].assign(kernel)
    (row,) = layer_figures(network)
    assert (row.weights, row.nonzero, row.macs, row.nonzero_macs) == expected


def test_a_shared_layer_weighs_once_and_computes_twice(drawn, tmp_path):
    inputs, inner_in = keras.Input((4, 4, 2)), keras.Input((4, 4, 2))
    conv = layers.Conv2D(2, 3, padding="same", name="conv")
    inner = keras.Model(inner_in, conv(inner_in), name="inner")
    found = compare({"twice": keras.Model(inputs, inner(inner(inputs)))})
    assert [(row.weights, row.nonzero) for row in found.layers["twice"]] == [(36, 36), (0, 0)]
    assert found.totals["twice"]["nonzero_macs"] == 2 * 16 * 36
    tables = found.tables()
    assert list(tables["MACs"].index) == ["inner/conv"]
    assert tables["MACs"].loc["inner/conv", "twice"] == "1,152"
    assert tables["Kernel weights that are not zero"].loc["inner/conv", "twice"] == "36"
    found.plot(tmp_path / "compare.png")
    weights, macs = ([bar.get_width() for bar in axes.patches] for axes in drawn[0].axes)
    assert (weights, macs) == ([36, 36], [1152, 1152])


@pytest.mark.slow
def test_filters_removed_beside_weights_masked_by_hand():
    network = make_tiny()  # 4 filters a layer: 36 + 7 * 144 weights
    mask = np.zeros((3, 3, 4, 4), bool)
    mask[1] = True  # 48 of 144
    masked = surgery.apply_masks(network, PruningPlan({"conv_5": mask}))
    found = compare({"whole": network, "half": half_of(network), "masked": masked})
    positions = [3200, 3200, 800, 800, 192, 192, 48, 48]
    whole, half = [36, *[144] * 7], [18, *[36] * 6, 72]
    for name, weights in (("whole", whole), ("half", half), ("masked", whole)):
        rows = {row.name: row for row in found.layers[name]}
        assert [rows[layer].weights for layer in CONVOLUTIONS] == weights
        assert [rows[layer].macs for layer in CONVOLUTIONS] == [
            places * count for places, count in zip(positions, weights, strict=True)
        ]
    assert [row.filters for row in found.layers["half"] if row.weights] == [*[2] * 7, 4]
    left = found.tables()["Kernel weights that are not zero"].loc["conv_5"]
    assert left.tolist() == ["144", "36", "48 of 144"]
    assert found.totals["masked"]["nonzero"] == 1044 - 96
    assert found.totals["masked"]["nonzero_macs"] == found.totals["whole"]["macs"] - 192 * 96
    assert found.totals["masked"]["parameters"] == found.totals["whole"]["parameters"]
    assert found.ratio("half", "nonzero") == 306 / 1044
    assert found.ratio("masked", "nonzero") == 948 / 1044
    assert found.ratio("whole", "macs") == 1
    assert found.ratio("half", "sparsity") is None
    assert found.ratio("half", "peak_activation_bytes") == 0.5


def test_the_checkpoint_is_what_save_network_writes(tmp_path):
    network = half_of(make_tiny())
    save_network(network, tmp_path / "half.h5")
    found = compare({"half": network})
    assert found.totals["half"]["bytes"] == (tmp_path / "half.h5").stat().st_size


def test_networks_without_2d_convolutions():
    inputs = keras.Input((4,))
    dense = keras.Model(inputs, layers.Dense(3, name="dense")(inputs))
    found = compare({"dense": dense, "small": small()})
    assert found.ratio("small", "weights") is None
    assert found.ratio("small", "macs") == 1200 / 12
    assert found.totals["dense"]["weights"] == 0
    assert found.totals["dense"]["sparsity"] is None
    assert found.tables()["Totals"].loc["sparsity", "dense"] == "–"
    assert list(found.tables()["MACs"]["dense"]) == ["–", "–", "12"]


def test_layers_that_one_network_lacks():
    whole = create_network("sea64", filters=[4] * 8)
    student = create_network("sea64", filters=[4] * 7, include_layers=[1, 3, 4, 5, 6, 7, 8])
    found = compare({"student": student, "whole": whole})
    macs = found.tables()["MACs"]
    # conv 2 stands where it is computed, though the first network has none.
    assert list(macs.index) == CONVOLUTIONS
    assert macs.loc["conv_2"].tolist() == ["–", f"{3200 * 144:,}"]
    # Without layer 2 there is no pooling before layer 3.
    assert macs.loc["conv_3"].tolist() == [f"{3200 * 144:,}", f"{800 * 144:,}"]
    kinds = found.tables()["Output of each layer, its filters last"]
    assert kinds.loc["conv_2"].tolist() == ["Conv2D", "–", "64×50×4"]


def test_networks_of_different_families():
    found = compare({"audio": make_tiny(), "small": small()})
    assert list(found.tables()["MACs"].index) == ["a", "b", *CONVOLUTIONS]
    assert list(found.tables()["MACs"]["audio"])[:2] == ["–", "–"]
    assert found.tables()["Totals"].loc["checkpoint, bytes", "small"] == "–"
    assert found.ratio("small", "bytes") is None


@pytest.mark.parametrize(
    ("orders", "merged"),
    [
        ([["a", "c"], ["a", "b", "c"]], ["a", "b", "c"]),
        ([["a", "b"], ["b", "a", "c"]], ["a", "c", "b"]),
        ([["a"], ["x", "a", "y"], ["z"]], ["z", "x", "a", "y"]),
        ([[], ["a", "b"]], ["a", "b"]),
    ],
)
def test_merged_orders(orders, merged):
    assert merge_orders(orders) == merged


@pytest.mark.slow
def test_the_l3_network():
    found = compare({"L3": create_network("mel256", embedding_point="activated")})
    totals = found.totals["L3"]
    assert totals["macs"] == 10_202_628_096
    assert totals["trainable"] == 4_688_066
    assert totals["weights"] == 4_682_304
    assert totals["peak_activation_bytes"] == 24.875 * 2**20


# Tables and files.


@pytest.fixture(scope="module")
def pair():
    network = make_tiny()
    return compare({"a|b": network, "half": half_of(network)}, rounds=2)


@pytest.mark.parametrize(
    ("title", "columns", "rows"),
    [
        ("Totals", ["", "a¦b", "half", "of a¦b"], 15),
        ("Output of each layer, its filters last", ["", "kind", "a¦b", "half"], 8),
        ("Kernel weights that are not zero", ["", "a¦b", "half"], 8),
        ("MACs", ["", "a¦b", "half"], 8),
    ],
)
def test_markdown_tables(pair, title, columns, rows):
    table, rule = table_rows(pair.markdown(), title)
    assert table[0] == columns
    assert len(table) == rows + 1
    assert {len(row) for row in [*table, rule]} == {len(columns)}
    assert set(rule) <= {"---", "---:"}


def test_markdown_of_several_networks():
    network = make_tiny()
    found = compare({"one": network, "two": network, "three": network})
    table, _ = table_rows(found.markdown(), "Totals")
    assert table[0] == ["", "one", "two", "of one", "three", "of one"]
    # Nothing was timed, or converted to LiteRT.
    shown = [FIGURES[name] for name in FIGURES if "ms" not in name and "litert" not in name]
    assert [row[0] for row in table[1:]] == shown
    assert "Milliseconds" not in found.markdown()
    assert "Milliseconds" not in str(found)
    table, _ = table_rows(compare({"one": network}).markdown(), "Totals")
    assert table[0] == ["", "one"]


def test_the_same_cells_are_printed(pair):
    text = str(pair)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["convolution weights, not zero"].split()[-4:] == ["1.0k", "306", "29.3", "%"]
    assert "2 rounds, in each of which every network makes 5 calls with batches of 1" in text
    assert text.count("audio_embedding_layer") == 3


def test_json_has_everything_unrounded(pair, tmp_path):
    pair.to_json(tmp_path / "compare.json", {"files": {"half": "half.h5"}})
    record = json.loads((tmp_path / "compare.json").read_text())
    assert list(record["networks"]) == ["a|b", "half"]
    assert record["baseline"] == "a|b"
    assert record["files"] == {"half": "half.h5"}
    assert record["versions"] == training.environment()
    assert record["timing"] == pair.timing
    assert record["timing"]["rounds"] == 2
    for name, network in record["networks"].items():
        assert network["totals"] == pair.totals[name]
        assert network["milliseconds"] == pair.milliseconds[name].tolist()
        assert network["totals"]["ms"] == np.median(network["milliseconds"])
        assert network["totals"]["ms_min"] == min(network["milliseconds"])
        rows = [{**vars(row), "output_shape": list(row.output_shape)} for row in pair.layers[name]]
        assert network["layers"] == rows
    assert record["networks"]["half"]["ratios"]["nonzero"] == 306 / 1044
    assert record["networks"]["half"]["ratios"]["sparsity"] is None


def test_json_without_timing(tmp_path):
    compare({"small": small()}).to_json(tmp_path / "compare.json")
    record = json.loads((tmp_path / "compare.json").read_text())
    assert record["timing"] is None
    assert record["networks"]["small"]["milliseconds"] is None
    assert "ms" not in record["networks"]["small"]["totals"]


def test_the_figure_shows_the_figures(drawn, tmp_path):
    inputs = keras.Input((4, 5, 2))
    other = keras.Model(inputs, layers.Conv2D(1, 1, use_bias=False, name="a")(inputs))
    other.get_layer("a").kernel.assign(np.ones((1, 1, 2, 1)))
    found = compare({"_$small$": small(), "other": other})
    found.plot(tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    weights, macs, totals = drawn[0].axes
    labels = [text.get_text() for text in weights.get_yticklabels()]
    assert labels == ["a", "b"]
    # Network after network: all weights of a layer, and over them those that are not zero.
    assert [bar.get_width() for bar in weights.patches] == [54, 44, 120, 100, 2, 2, 0, 0]
    assert [bar.get_width() for bar in macs.patches] == [1080, 880, 120, 100, 40, 40, 0, 0]
    texts = [text.get_text() for text in weights.texts]
    assert texts == ["44 of 54", "100 of 120", "2", "–"]
    compared = [text.get_text() for text in totals.get_yticklabels()]
    assert compared == [
        FIGURES[f] for f in FIGURES if found.totals["other"].get(f) and f != "sparsity"
    ]
    assert totals.patches[0].get_width() == pytest.approx(100 * 2 / 191)
    assert totals.texts[0].get_text() == "1 %"
    # Neither taken for a formula, nor left out for its first character.
    (legend,) = drawn[0].legends
    assert [t.get_text() for t in legend.get_texts()] == ["\u200b_\\$small\\$", "\u200bother"]


def test_the_figure_of_one_network_has_no_totals(drawn, tmp_path):
    compare({"small": small()}).plot(tmp_path / "compare.png")
    assert len(drawn[0].axes) == 2


# Timing.


class Clock:
    """Time that passes only when networks compute: 3 ms a call of the first, 1 ms of others."""

    def __init__(self):
        self.now = 0.0
        self.networks = []
        self.calls = []

    def inference(self, network):
        number = len(self.networks)
        self.networks.append(network)

        def call(batch):
            self.calls.append((number, batch.shape))
            # Compilation, in the first round.
            first = sum(each == number for each, _ in self.calls) <= timing.CALLS
            self.now += 1000 if first else (0.001 if number else 0.003)

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "inference", clock.inference)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_networks_take_turns(clock):
    found = latency({"tiny": make_tiny(), "small": small()}, rounds=3, batch_size=2)
    assert found["tiny"] == pytest.approx([1.5] * 3)
    assert found["small"] == pytest.approx([0.5] * 3)
    turns = [number for number, _ in clock.calls[:: timing.CALLS]]
    assert turns == [0, 1, 1, 0, 0, 1, 1, 0]
    assert len(clock.calls) == 8 * timing.CALLS
    # Log-mels, where the network has a front end.
    assert set(clock.calls) == {(0, (2, 64, 50, 1)), (1, (2, 4, 5, 2))}


def test_median_and_least_of_the_rounds(monkeypatch):
    values = {
        "small": np.array([5.0, 1.0, 2.0]),
        "small by the sparse engine": np.array([4.0, 9.0, 7.0]),
    }
    monkeypatch.setattr(comparison, "latency", lambda *args, **kwargs: values)
    found = compare({"small": small()}, rounds=3)
    assert found.totals["small"]["ms"] == 2
    assert found.totals["small"]["ms_min"] == 1
    assert found.totals["small"]["sparse_ms"] == 7
    assert found.totals["small"]["sparse_ms_min"] == 4


def test_what_is_timed_computes_the_same_without_masks(clock):
    network = make_tiny()
    mask = np.arange(144).reshape(3, 3, 4, 4) % 3 == 0
    masked = surgery.apply_masks(network, PruningPlan({"conv_5": mask}))
    before = fingerprint(masked)
    latency({"masked": masked}, rounds=1)
    (timed,) = clock.networks
    assert not any(isinstance(layer, MaskedConv2D) for layer in timed.layers)
    audio = np.random.default_rng(1).uniform(-1, 1, (2, 1, 8000)).astype(np.float32)
    log_mel = keras.Model(network.inputs, network.get_layer("log_mel").output)(audio)
    np.testing.assert_array_equal(inference(timed)(log_mel), inference(masked)(audio))
    # And the network is as it was.
    assert fingerprint(masked) == before
    assert isinstance(masked.get_layer("conv_5"), MaskedConv2D)
    assert masked.get_layer("conv_5").output is not None


def test_real_times_are_positive():
    found = latency({"small": small()}, rounds=2)
    assert found["small"].shape == (2,)
    assert (found["small"] > 0).all()


# Wrong input.


def two_inputs():
    inputs = [keras.Input((4, 4, 1)), keras.Input((4, 4, 1))]
    return keras.Model(inputs, layers.Conv2D(1, 1)(layers.Add()(inputs)))


def unknown_size():
    inputs = keras.Input((None, 8, 1))
    return keras.Model(inputs, layers.Conv2D(1, 1)(inputs))


def without_kernels():
    inputs = keras.Input((4, 4, 1))
    return keras.Model(inputs, layers.ReLU()(inputs))


@pytest.mark.parametrize(
    ("networks", "options", "message"),
    [
        (dict, {}, "no networks to compare"),
        (lambda: {"n": small()}, {"rounds": -1}, "rounds=-1 is not a whole number from 0 on"),
        (lambda: {"n": small()}, {"rounds": 1.5}, "rounds=1.5 is not a whole number"),
        (lambda: {"n": small()}, {"batch_size": 0}, "batch_size=0 is not a whole number from 1"),
        (lambda: {"n": keras.Model(name="mine")}, {}, "network mine is not functional"),
        (lambda: {"n": unknown_size()}, {}, r"network n has an input of shape \(None, None, 8, 1"),
        (lambda: {"n": without_kernels()}, {}, "network n has no layer with a kernel"),
        (lambda: {"n": two_inputs()}, {"rounds": 1}, "network n has 2 inputs"),
    ],
)
def test_compare_refuses(networks, options, message):
    with pytest.raises(ParameterError, match=message):
        compare(networks(), **options)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (small, {"rounds": 0}, "rounds=0 is not a whole number from 1 on"),
        (small, {"rounds": True}, "rounds=True is not"),
        (small, {"batch_size": 0.5}, "batch_size=0.5 is not"),
        (unknown_size, {}, "network n has an input of shape"),
    ],
)
def test_latency_refuses(network, options, message):
    with pytest.raises(ParameterError, match=message):
        latency({"n": network()}, **options)


def test_two_inputs_compare_without_timing():
    assert compare({"n": two_inputs()}).totals["n"]["macs"] == 16


# The command.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Weight files of a tiny network and two pruned ones, and of a run."""
    folder = tmp_path_factory.mktemp("place")
    network = make_tiny()
    save_network(network, folder / "tiny.h5")
    save_network(half_of(network), folder / "half.h5")
    (folder / "run").mkdir()
    save_network(network, folder / "run" / "model_pruned.h5")
    (folder / "text.h5").write_text("text")
    (folder / "empty").mkdir()
    return folder


def tree(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(*words):
    return compare_command([str(word) for word in words])


@pytest.mark.slow
def test_end_to_end(tmp_path, capsys):
    masked = tmp_path / "masked.h5"
    save_network(prune(load_network(SYNTHETIC), Wish(overall=0.95))[0], masked)
    out = tmp_path / "deep" / "out"
    assert run(SYNTHETIC, masked, "--output-dir", out, "--rounds", "1", "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[:2] == [f"l3_synthetic  {SYNTHETIC}", f"masked        {masked}"]
    assert lines[-1] == str(out)
    assert {path.name for path in out.iterdir()} == {"compare.json", "compare.md", "compare.png"}
    record = json.loads((out / "compare.json").read_text())
    totals = {name: each["totals"] for name, each in record["networks"].items()}
    assert [totals[name]["macs"] for name in totals] == [122_425_344, 122_425_344]
    # 5 % of the weights, rounded up, are above the threshold.
    assert [totals[name]["nonzero"] for name in totals] == [396_576, 19_829]
    assert totals["masked"]["bytes"] == masked.stat().st_size
    assert record["files"] == {"l3_synthetic": "l3_synthetic.h5", "masked": "masked.h5"}
    assert record["architectures"] == dict.fromkeys(totals, "sea64")
    assert record["fingerprints"]["masked"] == fingerprint(load_network(masked))
    # Where files lie on this machine is not told.
    assert str(tmp_path) not in (out / "compare.json").read_text()
    rows, _ = table_rows((out / "compare.md").read_text(), "Totals")
    assert ["convolution weights, not zero", "396.6k", "19.8k", "5.0 %"] in rows
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_only_print(place, capsys):
    before = tree(place)
    assert run(place / "tiny.h5", "--rounds", "0") == 0
    assert "audio_embedding_layer" in capsys.readouterr().out
    assert tree(place) == before


@pytest.mark.slow
def test_a_folder_of_a_run(place, tmp_path, capsys):
    assert command_module.OF_A_RUN == (training.BEST, pruning.PRUNED)
    words = (place / "run", "--rounds", "0")
    assert run(*words) == 0
    pruned = place / "run" / pruning.PRUNED
    assert capsys.readouterr().out.splitlines()[0] == f"run  {pruned}"
    best = tmp_path / "run"
    best.mkdir()
    (best / pruning.PRUNED).write_bytes(pruned.read_bytes())
    save_network(half_of(make_tiny()), best / training.BEST)
    assert run(best, "--rounds", "0", "--output-dir", tmp_path / "out") == 0
    assert capsys.readouterr().out.splitlines()[0] == f"run  {best / training.BEST}"
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert record["networks"]["run"]["totals"]["weights"] == 306
    assert record["files"] == {"run": training.BEST}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["net.h5"], ["net"]),
        (["a/net.h5", "b/net.h5.gz", "b/other.h5"], ["a/net", "b/net", "other"]),
        (["x/a/net.h5", "y/a/net.h5"], ["x/a/net", "y/a/net"]),
        (["runs/first/", "runs/../runs/second"], ["first", "second"]),
        (["edgel3:sparse-95.45-ft", "sub/v1.5.h5"], ["edgel3:sparse-95.45-ft", "v1.5"]),
    ],
)
def test_names_of_files(paths, names):
    assert short_names(paths) == names


def test_a_folder_without_a_name_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert short_names([".", "..", "../other.h5"]) == ["run", tmp_path.name, "other"]


def test_names_that_are_given(place, capsys):
    files = (place / "tiny.h5", place / "tiny.h5")
    assert run(*files, "--names", "one", "the other", "--rounds", "0") == 0
    assert "the other" in capsys.readouterr().out.splitlines()[3]


@pytest.mark.slow
def test_the_same_networks_again_replace_the_files_others_do_not(place, tmp_path, capsys):
    out = tmp_path / "out"
    line = (place / "tiny.h5", "--output-dir", out)
    assert run(*line, "--rounds", "1") == 0
    assert json.loads((out / "compare.json").read_text())["timing"]["rounds"] == 1
    assert run(*line, "--rounds", "0") == 0
    assert json.loads((out / "compare.json").read_text())["timing"] is None
    before = tree(out)
    capsys.readouterr()
    assert run(place / "half.h5", "--output-dir", out) == 2
    assert "compare.json is of other networks (tiny)" in capsys.readouterr().err
    assert tree(out) == before
    (out / "compare.json").write_text("[]")
    assert run(*line) == 2
    assert "does not tell what it is of" in capsys.readouterr().err
    (out / "compare.json").write_text("{")
    assert run(*line) == 2
    assert "is not JSON" in capsys.readouterr().err


@pytest.mark.slow
def test_threads_are_set_before_a_network_is_loaded(place, monkeypatch, tmp_path, capsys):
    import tensorflow as tf

    known = {}
    config = tf.config.threading
    for kind in ("intra", "inter"):
        name = f"{kind}_op_parallelism_threads"
        monkeypatch.setattr(config, f"set_{name}", lambda n, kind=kind: known.update({kind: n}))
    monkeypatch.setattr(config, "get_intra_op_parallelism_threads", lambda: known.get("intra", 0))
    line = (place / "tiny.h5", "--rounds", "1", "--output-dir", tmp_path / "out")
    assert run(*line, "--threads", "3") == 0
    assert known == {"intra": 3, "inter": 3}
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["timing"]["threads"] == 3
    assert "threads: 3" in capsys.readouterr().out
    known.clear()
    assert run(*line) == 0
    assert known == {}
    assert "threads: as TensorFlow chooses" in capsys.readouterr().out

    def late(number):
        raise RuntimeError("cannot be modified after initialization")

    monkeypatch.setattr(config, "set_intra_op_parallelism_threads", late)
    assert run(*line, "--threads", "2") == 2
    assert "--threads 2: TensorFlow runs already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.h5"], "no such weight file: missing.h5"),
        (["TINY", "nothing:at-all"], "no published weights 'nothing:at-all'"),
        (["TINY", "PLACE/text.h5"], "text.h5 is not an HDF5 weight file"),
        (["PLACE/empty"], "empty has no model_best_valid_loss.h5 and no model_pruned.h5"),
        (["TINY", "TINY"], "/tiny; leave one out, or give each its own by --names"),
        (["TINY", "PLACE/half.h5", "--names", "a", "a"], "two networks are called a;"),
        (["TINY", "--names", "a", "b"], "2 --names for 1 networks"),
        (["TINY", "--names", " "], "--names ' ' is not a name that can be shown"),
        (["TINY", "--names", "a\nb"], "is not a name that can be shown"),
        (["TINY", "--rounds", "-1"], "--rounds -1 is negative"),
        (["TINY", "--batch-size", "0"], "--batch-size 0 is not a positive number"),
        (["TINY", "--threads", "0"], "--threads 0 is not a positive number"),
        (["TINY", "--output-dir", "PLACE/text.h5"], "cannot make the folder"),
        (["TINY", "--output-dir", "PLACE/text.h5/out"], "cannot make the folder"),
    ],
)
def test_bad_arguments(place, tmp_path, capsys, words, message):
    given = [w.replace("TINY", str(place / "tiny.h5")).replace("PLACE", str(place)) for w in words]
    if "--output-dir" not in words:
        given += ["--output-dir", str(tmp_path / "out")]
    before = tree(place)
    assert compare_command(given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert tree(place) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", [[], ["a.h5", "--rounds", "x"], ["a.h5", "--roun", "3"]])
def test_usage(line, capsys):
    with pytest.raises(SystemExit) as end:
        compare_command(line)
    assert end.value.code == 2
    assert "usage: python -m l3prune.compare NETWORK" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_shows_before_the_timing(place, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "latency", lambda *args, **kwargs: pytest.fail("timed"))
    assert run(place / "tiny.h5", "--output-dir", place / "text.h5") == 2
    assert "cannot make the folder" in capsys.readouterr().err


def test_a_failure_leaves_no_folder(place, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise L3PruneError("no more")

    monkeypatch.setattr(comparison, "latency", fail)
    assert run(place / "tiny.h5", "--output-dir", tmp_path / "deep" / "out") == 2
    assert capsys.readouterr().err == "error: no more\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["shapes", "nan", "float16"])
def test_networks_that_a_packed_file_cannot_hold(what):
    inputs = keras.Input((8, 8, 2))
    middle = layers.Conv2D(4, 3, name="conv")(inputs)
    if what == "shapes":  # the engine knows the layers, but not in this order
        middle = layers.Dense(3)(middle)
    network = keras.Model(inputs, layers.Flatten()(middle))
    kernel = network.get_layer("conv").kernel.numpy()
    kernel[0, 0, 0] = [0, 1, 2, {"nan": np.nan, "float16": 1e30}.get(what, 3)]
    network.get_layer("conv").kernel.assign(kernel)
    for values in ("float32", "int8", "float16"):
        size = sizes.packed_bytes(network, values)
        if what == "float16" and values != "float16":
            assert size > 72
        else:
            assert size is None
    found = compare({"network": network}, rounds=1)
    assert found.totals["network"]["ms"] > 0
    assert ("sparse_ms" in found.totals["network"]) == (what != "shapes")


@pytest.mark.slow
def test_the_sparse_engine_takes_turns_with_tensorflow(tmp_path):
    networks = {"dense": create_network("sea64", filters=[4] * 8)}
    weights = graph.conv_weights(networks["dense"])
    networks["sparse"] = surgery.apply_masks(networks["dense"], plan.plan_layerwise(weights, 0.8))
    found = compare(networks, rounds=2)
    assert list(found.milliseconds) == ["dense", "sparse", "sparse by the sparse engine"]
    total = found.totals["sparse"]
    assert total["sparse_ms"] == np.median(found.milliseconds["sparse by the sparse engine"]) > 0
    assert total["sparse_ms_min"] == found.milliseconds["sparse by the sparse engine"].min()
    # Compared with the unpruned network in TensorFlow.
    assert found.ratio("sparse", "sparse_ms") == total["sparse_ms"] / found.totals["dense"]["ms"]
    assert "sparse_ms" not in found.totals["dense"]
    assert "milliseconds of the sparse engine, median" in found.markdown()
    found.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_files_as_litert():
    network = create_network("sea64", filters=[2] * 8)
    total = compare({"small": network}, litert=True).totals["small"]
    weights = sum(4 * w.shape.num_elements() for w in network.weights if "kernel" in w.name)
    assert weights < total["litert_bytes"] < weights + 20_000
    assert total["litert_gzip_bytes"] < total["litert_bytes"]
    assert "litert_bytes" not in compare({"small": network}).totals["small"]
