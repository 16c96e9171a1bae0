"""Training on labels: splits, statistics, what is cached, the best epoch, resumption, figures."""

from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
from sklearn.metrics import accuracy_score
from sklearn.metrics import log_loss as sklearn_log_loss

from l3prune import metrics
from l3prune.checkpoints import BEST
from l3prune.classification import (
    evaluate,
    network_for,
    objective_of,
    open_maps,
    part_for,
    predict,
    train_on_labels,
    trained_part,
)
from l3prune.corpus import Corpus
from l3prune.datasets import Clip, Dataset, load_dataset
from l3prune.datasets.splits import split_dataset
from l3prune.errors import L3PruneError, ParameterError
from l3prune.evaluation import Report
from l3prune.labelled import ClipAudio, LabelledMaps, fitted
from l3prune.layers import ClipLogMel, LogMelSpectrogram
from l3prune.networks import attach_config, create_network, inference, network_config
from l3prune.networks.dcase2021 import SceneLogMel
from l3prune.recipes import Recipe
from l3prune.weights import load_network
from tests.label_corpora import SMALL, make_corpus

# Splits.


def scenes(seed=0, places=12, test=True):
    """Clips of three classes at places of one class each, some at places of two; fold 2 tests."""
    rng = np.random.default_rng(seed)
    clips = []
    for target in range(3):
        for place in range(places):
            name = f"mall-{place}" if place < 2 else f"{target}-{place}"
            for number in range(int(rng.integers(1, 30))):
                path = Path(f"{target}-{place}-{number}.wav")
                clips.append(Clip(path, 1, target, group=name))
    if test:
        clips += [Clip(Path(f"test-{n}.wav"), 2, n, group=f"elsewhere-{n}") for n in range(3)]
    return Dataset("scenes", tuple(clips), ("a", "b", "c"))


@pytest.mark.parametrize("seed", range(5))
def test_places_validate_as_a_whole_and_in_every_class(seed):
    dataset = scenes(seed)
    split = split_dataset(dataset, seed=seed)
    parts = [
        [dataset.clips[n] for n in part] for part in (split.train, split.validation, split.test)
    ]
    assert sum(map(len, parts)) == len(dataset.clips)
    assert {clip.fold for clip in parts[2]} == {2}
    assert {clip.fold for clip in (*parts[0], *parts[1])} == {1}
    train, validation = ({clip.group for clip in part} for part in parts[:2])
    assert not train & validation
    for target in range(3):
        inside, held = (sum(clip.target == target for clip in part) for part in parts[:2])
        # To half of the largest place.
        assert abs(held - 0.3 * (inside + held)) <= 15
        assert held
    assert split_dataset(dataset, seed=seed) == split
    assert split_dataset(dataset, seed=seed + 1) != split


def test_of_a_class_at_one_place_nothing_validates():
    clips = [Clip(Path(f"{n}.wav"), 1, 0, group="a") for n in range(4)]
    clips += [Clip(Path(f"b{n}.wav"), 1, 1, group=f"b{n}") for n in range(4)]
    clips.append(Clip(Path("t.wav"), 2, 0, group="t"))
    split = split_dataset(Dataset("one", tuple(clips), ("x", "y")))
    assert {0, 1, 2, 3} <= set(split.train)
    assert len(split.validation) == 1


def test_folds_validate_where_there_are_no_places():
    clips = tuple(Clip(Path(f"{n}.wav"), 1 + n % 4, 0) for n in range(12))
    split = split_dataset(Dataset("folds", clips, ("x",)), 1)
    assert [
        {clips[n].fold for n in part} for part in (split.train, split.validation, split.test)
    ] == [
        {2, 3},
        {4},
        {1},
    ]


def test_copies_of_what_is_held_out_train_nothing():
    official = [Clip(Path(f"{n}.wav"), 1 + n % 3, 0) for n in range(6)]
    copies = [Clip(Path(f"{n}_x.wav"), 1 + n % 3, 0, original=str(n)) for n in range(6)]
    dataset = Dataset("copies", (*official, *copies), ("x",))
    split = split_dataset(dataset, 1)
    for part in (split.validation, split.test):
        assert all(dataset.clips[n].original is None for n in part)
    assert {dataset.clips[n].path.stem for n in split.train} == {"1", "4", "1_x", "4_x"}


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (scenes(), {"test_fold": 3}, "fold 3 does not exist; folds: 1, 2"),
        (scenes(test=False), {}, "scenes has fold 1 only"),
        (scenes(), {"ratio": 0.7}, r"ratio=0.7 is not above 0 and at most 0.5; 0.3 is usual"),
        (scenes(places=1), {}, "no clip of scenes is left to validate on when fold 2 is tested"),
    ],
)
def test_splits_that_cannot_be(dataset, arguments, message):
    with pytest.raises(ParameterError, match=message):
        split_dataset(dataset, **arguments)


# Clips and maps.


def test_short_clips_are_filled():
    audio = np.arange(1.0, 4.0)
    assert fitted(audio, 7).tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert fitted(audio, 7, "zeros").tolist() == [1, 2, 3, 0, 0, 0, 0]
    assert fitted(audio, 2).tolist() == fitted(audio, 2, "zeros").tolist() == [1, 2]
    with pytest.raises(ParameterError, match="fill='silence'; allowed: repeat, zeros"):
        fitted(audio, 2, "silence")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    corpus = Corpus("esc50", str(make_corpus(folder / "data")), 1)
    network = network_for("dcase2021", corpus.dataset.labels, **SMALL)
    corpus.open(network, folder / "cache", quiet=True)
    return corpus


def small(corpus):
    """A network with the statistics of the training clips and always the same weights."""
    keras.utils.set_random_seed(1)
    network = network_for("dcase2021", corpus.dataset.labels, corpus.train, **SMALL)
    corpus.normalise_for(network)
    return network


def test_statistics_are_of_training_clips_alone(corpus):
    layer = small(corpus).get_layer("log_mel")
    paths = [corpus.dataset.clips[n].path for n in corpus.split.train]
    audio = ClipAudio(paths, 44100, 441_000).read(np.arange(len(paths)))
    maps = layer.unnormalised()(audio).numpy().astype(float)
    np.testing.assert_allclose(layer.mean, maps.mean(axis=(0, 2, 3)), rtol=1e-5)
    frames = maps[..., 0].transpose(1, 0, 2).reshape(40, -1)
    np.testing.assert_allclose(layer.std, frames.std(axis=1, ddof=1), rtol=1e-5)


def test_the_network_computes_what_it_was_trained_on(corpus):
    network = small(corpus)
    paths = [corpus.dataset.clips[n].path for n in corpus.split.test]
    audio = ClipAudio(paths, 44100, 441_000).read(np.arange(len(paths)))
    found, _ = predict(network, corpus.test, quiet=True)
    np.testing.assert_allclose(inference(network)(audio), found, atol=1e-5)


def test_maps_are_computed_once(corpus, tmp_path, monkeypatch):
    network = small(corpus)
    dataset = corpus.dataset
    first = open_maps(network, dataset, tmp_path, quiet=True)
    monkeypatch.setattr(ClipAudio, "read", None)
    # Whatever the network normalises by.
    again = open_maps(create_network("dcase2021", classes=2), dataset, tmp_path, quiet=True)
    np.testing.assert_array_equal(first.maps, again.maps)
    with pytest.raises(TypeError):
        open_maps(create_network("dcase2021", classes=2, padding="zeros"), dataset, tmp_path)
    # Nor are maps taken that other code computed.
    monkeypatch.setattr(SceneLogMel, "version", SceneLogMel.version + 1)
    with pytest.raises(TypeError):
        open_maps(network, dataset, tmp_path, quiet=True)


#: Of a sound: the version of a front end, and mean, deviation and one value of its maps.
FRONT_ENDS = (
    (LogMelSpectrogram(8000, 1024, 160, 64), 1, (-55.07, 22.6574, -35.9885)),
    (ClipLogMel(), 1, (-69.6598, 34.0264, -73.0181)),
    (SceneLogMel(), 1, (-4.7898, 1.8925, -5.065)),
)


@pytest.mark.parametrize(
    ("layer", "version", "values"), FRONT_ENDS, ids=lambda each: type(each).__name__
)
def test_front_ends_that_change_have_another_version(layer, version, values):
    """Whoever mends a front end raises its `version`, or old maps would be taken from caches, and
    writes what it gives now here."""
    times = np.arange(layer.sample_rate if layer.sample_rate == 8000 else 22050)
    sound = (0.5 * np.sin(1e-5 * times**2) + 0.1 * np.sin(times)).astype(np.float32)
    maps = layer(sound[np.newaxis, np.newaxis]).numpy()[0, ..., 0].astype(float)
    assert layer.version == version
    assert (maps.mean(), maps.std(), maps[7, 20]) == pytest.approx(values, abs=2e-3)


def test_silent_clips_cannot_be_normalised():
    maps = LabelledMaps(np.full((2, 40, 500, 1), -36, np.float32), np.eye(2), ("a", "b"), "silent")
    with pytest.raises(L3PruneError, match="band 0 of the training clips is the same everywhere"):
        maps.statistics()


def tags(monkeypatch, classes):
    """A corpus whose clips have these classes: folds of two clips, none of which exists."""
    clips = tuple(
        Clip(Path(f"{number}.wav"), 1 + number // 2, own[0], further=tuple(own[1:]))
        for number, own in enumerate(classes)
    )
    dataset = Dataset("toy", clips, ("a", "b", "c"), multi_label=True)
    monkeypatch.setattr("l3prune.corpus.load_dataset", lambda *_: dataset)
    return Corpus("toy", ".")


def test_classes_that_will_have_no_figures_are_told_first(monkeypatch, tmp_path):
    with pytest.warns(UserWarning, match=r"^test: 1 of 3 classes are in no clip or in all .*: c$"):
        tags(monkeypatch, [[0], [1], [0], [1, 2], [0, 2], [1, 2]])
    with pytest.raises(ParameterError, match="in none or in all of the 2 validation clips, so"):
        tags(monkeypatch, [[0], [1], [0, 2], [0, 2], [0, 2], [1, 2]])


def test_reports_tell_classes_that_have_no_figures(tmp_path):
    found = {"classes_left_out": list("abcdef"), "classes_scored": 2}
    Corpus.write_report(tmp_path, Report().with_row("x", map=1.0), {"x": {"test": found}})
    text = (tmp_path / "report.md").read_text()
    assert "test: 6 of 8 classes are in no clip or in all" in text
    assert "d_prime: a, b, c, d, e …\n" in text


# Training.


def test_training_learns_and_keeps_the_best_epoch(corpus, tmp_path):
    network = small(corpus)
    recipe = Recipe(
        epochs=12, learning_rate=1e-2, schedule="constant", best_by="accuracy", best_from=2
    )
    history = train_on_labels(
        network, corpus.train, corpus.validation, tmp_path, recipe=recipe, batch_size=4, quiet=True
    )
    assert history[-1]["loss"] < history[0]["loss"]
    best = max(row["val_accuracy"] for row in history[2:])
    found = evaluate(network, corpus.validation, quiet=True)
    assert found["accuracy"] == pytest.approx(best)
    loaded = load_network(tmp_path / BEST)
    assert loaded.input_shape == (None, 1, 441_000)
    assert network_config(loaded).labels == ("low", "high")
    expected, _ = predict(network, corpus.test, quiet=True)
    np.testing.assert_array_equal(predict(loaded, corpus.test, quiet=True)[0], expected)


class Scores:
    """Hands out validation figures, whatever the network computes."""

    def __init__(self, monkeypatch, rows):
        rows = iter(rows)
        monkeypatch.setattr(
            keras.Model, "evaluate", lambda *args, **kwargs: dict(next(rows)), raising=True
        )


def weights_by_epoch(corpus, folder, monkeypatch, recipe, rows):
    """After which epoch the weights were taken."""
    Scores(monkeypatch, rows)
    network = small(corpus)
    train_on_labels(
        network, corpus.train, corpus.validation, folder, recipe=recipe, batch_size=4, quiet=True
    )
    final = network.get_layer("dense_2").kernel.numpy()
    numbers = range(1, recipe.epochs + 1)
    kept = [load_network(folder / f"model_checkpoint.{n:02d}.h5") for n in numbers]
    return [
        n
        for n, each in zip(numbers, kept, strict=True)
        if (each.get_layer("dense_2").kernel.numpy() == final).all()
    ]


@pytest.mark.parametrize(
    ("best_by", "best_from", "epoch"),
    [("loss", 0, 2), ("accuracy", 0, 1), ("accuracy", 1, 3), ("loss", 2, 3), ("accuracy", 3, 4)],
)
def test_which_epoch_is_best(corpus, tmp_path, monkeypatch, best_by, best_from, epoch):
    rows = [
        {"loss": 0.9, "accuracy": 0.8},
        {"loss": 0.1, "accuracy": 0.3},
        {"loss": 0.4, "accuracy": 0.6},
        {"loss": 0.5, "accuracy": 0.6},
    ]
    recipe = Recipe(
        epochs=4,
        learning_rate=1e-3,
        best_by=best_by,
        best_from=best_from,
        checkpoint_interval=1,
        schedule="constant",
    )
    assert weights_by_epoch(corpus, tmp_path, monkeypatch, recipe, rows) == [epoch]


def test_best_figures_that_cannot_be(corpus, tmp_path):
    network = small(corpus)
    for given, message in (
        ({"best_by": "mse"}, "best_by='mse'; this training has loss, accuracy"),
        ({"best_from": 3, "epochs": 3}, "best_from=3 leaves none of 3 epochs to be the best"),
        ({"schedule": "steps"}, "schedule='steps'; allowed: 'plateau', 'cosine', 'constant'"),
    ):
        with pytest.raises(ParameterError, match=message):
            train_on_labels(
                network,
                corpus.train,
                corpus.validation,
                tmp_path / "run",
                recipe=Recipe(**given),
                batch_size=2,
            )
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_ends_alike(corpus, tmp_path):
    def run(folder, epochs, resume=False):
        network = small(corpus)
        history = train_on_labels(
            network,
            corpus.train,
            corpus.validation,
            folder,
            recipe=Recipe(epochs=epochs, learning_rate=1e-2, schedule="constant"),
            batch_size=3,
            augment=shifted,
            resume=resume,
            quiet=True,
        )
        return network, history

    whole, history = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 1)
    parts, resumed = run(tmp_path / "parts", 3, resume=True)
    assert history == resumed
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    network = small(corpus)
    with pytest.raises(L3PruneError, match="with augment=shifted, not other_augmentation"):
        train_on_labels(
            network,
            corpus.train,
            corpus.validation,
            tmp_path / "parts",
            recipe=Recipe(epochs=4, learning_rate=1e-2, schedule="constant"),
            batch_size=3,
            augment=other_augmentation,
            resume=True,
            quiet=True,
        )


def shifted(inputs, targets, generator):
    return inputs + generator.normal(size=(len(inputs), 1, 1, 1)).astype(np.float32), targets


def other_augmentation(inputs, targets, generator):
    return inputs, targets


def test_augmentation_sees_training_batches_alone(corpus, tmp_path):
    seen = []

    def watched(inputs, targets, generator):
        seen.append((inputs.shape, targets.sum(), generator.random()))
        return inputs, targets

    network = small(corpus)
    recipe = Recipe(epochs=2, learning_rate=1e-3, schedule="constant")
    train_on_labels(
        network,
        corpus.train,
        corpus.validation,
        tmp_path,
        recipe=recipe,
        batch_size=2,
        augment=watched,
        quiet=True,
    )
    assert len(seen) >= 4  # two steps an epoch; batches are made ahead
    assert {shape for shape, _, _ in seen} == {(2, 40, 500, 1)}
    assert {total for _, total, _ in seen} == {2}
    assert len({draw for _, _, draw in seen}) > 2


def test_what_does_not_fit_is_refused(corpus, tmp_path):
    network = small(corpus)
    with pytest.raises(ParameterError, match="training batches of 99 are more than the 4 training"):
        train_on_labels(network, corpus.train, corpus.validation, tmp_path, batch_size=99)
    with pytest.raises(ParameterError, match="gives 10 values an input, the labels have 2 classes"):
        part_for(create_network("dcase2021"), corpus.train)
    with pytest.raises(ParameterError, match="network sea64 gives embeddings, not classes"):
        network_for("sea64", ("a", "b"))
    with pytest.raises(ParameterError, match="network 'sea65' is unknown; known: mel256"):
        network_for("sea65", ("a", "b"))
    with pytest.raises(ParameterError, match="dcase2021 gives 10 values, esc50 has 2 classes here"):
        corpus.check(create_network("dcase2021"))
    named = network_for("dcase2021", ("high", "low"))
    with pytest.raises(ParameterError, match="class 'high' of network dcase2021 is 'low' in esc50"):
        corpus.check(named)


# Outputs of other kinds.


def ending_in(activation, classes=3):
    inputs = keras.Input((2, 2, 1))
    values = keras.layers.Dense(classes, activation, name="out")(keras.layers.Flatten()(inputs))
    network = keras.Model(inputs, values)
    return attach_config(network, network_config(create_network("dcase2021")))


def toy(multi_label=False):
    rng = np.random.default_rng(0)
    targets = np.float32([[1, 0, 1], [0, 0, 0], [0, 1, 0]] if multi_label else np.eye(3))
    maps = rng.normal(size=(3, 2, 2, 1)).astype(np.float32)
    return LabelledMaps(maps, targets, ("a", "b", "c"), "toy", multi_label=multi_label)


@pytest.mark.parametrize(
    ("activation", "multi_label", "expected"),
    [
        ("softmax", False, lambda t, p: -np.log((p * t).sum(axis=1)).mean()),
        (None, False, lambda t, p: -np.log((softmax(p) * t).sum(axis=1)).mean()),
        ("sigmoid", False, lambda t, p: binary(t, p)),
        ("sigmoid", True, lambda t, p: binary(t, p)),
        (None, True, lambda t, p: binary(t, 1 / (1 + np.exp(-p)))),
    ],
)
def test_the_loss_is_the_cross_entropy_of_the_output(activation, multi_label, expected):
    network, data = ending_in(activation), toy(multi_label)
    objective = objective_of(network, multi_label)
    inputs, targets = data.read(np.arange(3))
    outputs = network(inputs).numpy()
    loss = keras.losses.get(objective.loss)(targets, outputs).numpy()
    assert loss == pytest.approx(expected(targets, outputs.astype(float)), rel=1e-5)
    assert objective.metrics == (("lwlrap",) if multi_label else ("accuracy",))
    probabilities, _ = predict(network, data, quiet=True)
    if activation is None:
        wanted = 1 / (1 + np.exp(-outputs)) if multi_label else softmax(outputs)
        np.testing.assert_allclose(probabilities, wanted, rtol=1e-5)
    if multi_label:
        found = evaluate(network, data, quiet=True)["log_loss"]
        assert found == pytest.approx(binary(targets, probabilities.astype(float)), rel=1e-5)


def softmax(values):
    return np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)


def binary(targets, given):
    return -np.where(targets > 0.5, np.log(given), np.log(1 - given)).mean()


def test_a_softmax_is_not_for_several_classes():
    with pytest.raises(ParameterError, match=r"ends in a softmax, .* that ends in a sigmoid"):
        objective_of(ending_in("softmax"), True)


def test_what_is_behind_the_front_end_is_saved_as_the_whole(tmp_path):
    network = create_network("dcase2021", filters=[1, 1, 1])
    assert network_config(trained_part(network)) == network_config(network)


# Figures.


def test_report_by_hand():
    probabilities = np.array([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5], [0.1, 0.9]])
    targets = np.eye(2)[[0, 0, 1, 1]]
    report = metrics.class_report(probabilities, targets, ["x", "y"], {"device": list("abab")})
    assert report["accuracy"] == 0.5  # the third is a tie, which the first class wins
    assert report["log_loss"] == pytest.approx(-np.log([0.8, 0.4, 0.5, 0.9]).mean())
    assert report["by_class"]["y"]["accuracy"] == 0.5
    assert report["by_device"]["b"] == {
        "clips": 2,
        "accuracy": 0.5,
        "log_loss": pytest.approx(-np.log([0.4, 0.9]).mean()),
    }


def test_macro_accuracy_weighs_classes_alike():
    probabilities = np.array([[0.9, 0.1, 0]] * 3 + [[0.8, 0.2, 0]])
    targets = np.eye(3)[[0, 0, 0, 1]]
    report = metrics.class_report(probabilities, targets, ["x", "y", "z"])
    assert (report["accuracy"], report["macro_accuracy"]) == (0.75, 0.5)
    assert "z" not in report["by_class"]
    # A probability of zero costs as much as Keras lets it.
    assert metrics.log_loss(np.array([[1.0, 0.0]]), np.array([[0, 1]])) == -np.log(1e-7)


def test_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(9)
    probabilities = rng.dirichlet(np.ones(5), 200)
    classes = rng.integers(0, 5, 200)
    targets = np.eye(5)[classes]
    assert metrics.accuracy(probabilities, targets) == pytest.approx(
        accuracy_score(classes, probabilities.argmax(axis=1))
    )
    assert metrics.log_loss(probabilities, targets) == pytest.approx(
        sklearn_log_loss(classes, probabilities, labels=range(5))
    )


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2)), r"scores of shape \(2, 3\) and targets of shape"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "of at least one clip"),
        (np.full((1, 2), np.nan), np.eye(2)[:1], "scores have NaN or infinite values"),
    ],
)
def test_figures_of_what_cannot_be(scores, targets, message):
    with pytest.raises(ParameterError, match=message):
        metrics.accuracy(scores, targets)


def test_corpora_are_opened_by_name(tmp_path):
    dataset = load_dataset("esc50", make_corpus(tmp_path / "data"))
    assert dataset.labels == ("low", "high")
    assert len(dataset.clips) == 12
