"""Gradual pruning in runs with checkpoints: resumed, reported, distilled."""

import itertools
import json
import shutil

import numpy as np
import pytest

from l3prune import graph, surgery
from l3prune.batch_norm import measure_batch_norm
from l3prune.checkpoints import BEST, HISTORY, LATEST, Keeper
from l3prune.distillation import distill
from l3prune.errors import L3PruneError, ParameterError
from l3prune.gradual import GradualPruning, layer_by_layer, prunable, sparsity_schedule
from l3prune.networks import create_network, inference
from l3prune.plan import PruningPlan
from l3prune.recipes import Recipe
from l3prune.rigl import RigL
from l3prune.training import fit
from l3prune.weights import load_network
from tests.masked_training import sparse_mask

CONVS = [*(f"conv_{number}" for number in range(1, 8)), "audio_embedding_layer"]
STEPS, EPOCHS, CUT = 3, 6, 3


def student():
    network = create_network("sea64", input="log_mel", filters=[4] * 8)
    rng = np.random.default_rng(4)
    for layer in graph.convolutions(network).values():
        layer.kernel.assign(rng.normal(0, 0.3, layer.kernel.shape))
    return prunable(network)


def noise(first=0):
    while True:
        rng = np.random.default_rng(first)
        x = rng.uniform(-80, 0, (2, 64, 50, 1)).astype(np.float32)
        yield x, rng.normal(size=(2, 4)).astype(np.float32)
        first += 1


def validation():
    yield next(noise(1000))


def polynomial():
    # Pruning steps 2, 5, 8, 11, 14: the last of each epoch.
    schedule = sparsity_schedule("polynomial", 0.7, begin_step=2, end_step=14, frequency=3)
    return student(), GradualPruning(schedule), {}


def sequence():
    # At the begin of the first, third and fifth epoch: steps 0, 6, 12.
    sparsities = dict(zip(CONVS, [0, 0.5, 0, 0, 0.6, 0, 0.7, 0], strict=True))
    pruner = GradualPruning(layer_by_layer(sparsities, 2, STEPS))
    return student(), pruner, {"batch_norm": "freeze"}


def regrown():
    # At steps 3, 6, 9, 12, 15: where epochs meet, and where the run is cut.
    network = student()
    convs = graph.convolutions(network)
    plan = {name: sparse_mask(convs[name].kernel.shape, 0.5) for name in CONVS[1:]}
    return surgery.apply_masks(network, PruningPlan(plan)), RigL(17, frequency=3, alpha=1.0), {}


def run(made, folder, resume=False, **changes):
    network, pruner, recipe = made
    recipe = {"epochs": EPOCHS, "learning_rate": 1e-2, "checkpoint_interval": 1, **recipe}
    recipe |= changes
    return fit(
        network,
        *(noise, validation, STEPS, folder, Recipe(**recipe)),
        pruner=pruner,
        resume=resume,
        quiet=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Finished runs: the network, its history, its folder, and the folder as a process leaves it
    that is killed in the fourth epoch."""
    done = {}

    def get(make):
        if make not in done:
            folder = tmp_path_factory.mktemp(make.__name__)
            made = make()
            original = Keeper.on_epoch_begin

            def copied(self, epoch, logs=None):
                if epoch == CUT:
                    shutil.copytree(folder / "run", folder / "killed")
                original(self, epoch, logs)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Keeper, "on_epoch_begin", copied)
                history = run(made, folder / "run")
            done[make] = made[0], history, folder
        return done[make]

    return get


def saved_masks(folder):
    return [
        PruningPlan.load(folder / "run" / f"model_checkpoint.{epoch:02d}.plan.npz")
        for epoch in range(1, EPOCHS + 1)
    ]


def assert_zeros(network):
    for name, layer in graph.convolutions(network).items():
        assert not layer.kernel.numpy()[~layer.mask.numpy()].view(np.uint32).any(), name


def assert_same_runs(made, other, folder, other_folder):
    for name in (LATEST, BEST, f"model_checkpoint.{EPOCHS:02d}.h5"):
        one, two = ((each / name).read_bytes() for each in (folder, other_folder))
        assert one == two, name
    for one, two in zip(made.weights, other.weights, strict=True):
        assert one.numpy().tobytes() == two.numpy().tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("make", [sequence, regrown])
def test_resume_in_the_middle_of_a_schedule(make, whole, tmp_path):
    network, history, folder = whole(make)
    masks = saved_masks(folder)
    assert masks[1] != masks[2]  # masks change before the cut and after it
    assert masks[2] != masks[-1]
    for earlier, later in itertools.pairwise(masks):
        for name in earlier:
            if make is regrown:
                assert later[name].sum() == earlier[name].sum()
            else:
                assert not (later[name] & ~earlier[name]).any()
    for name in (LATEST, BEST, "model_checkpoint.02.h5"):
        assert_zeros(load_network(folder / "run" / name))

    shutil.copytree(folder / "killed", tmp_path / "run")
    made = make()
    assert run(made, tmp_path / "run", resume=True) == history
    assert_same_runs(network, made[0], folder / "run", tmp_path / "run")


@pytest.mark.slow
def test_resume_of_a_run_that_was_interrupted_within_an_epoch(whole, tmp_path):
    """Ctrl-C right after a pruning that no checkpoint holds."""
    network, history, folder = whole(polynomial)
    stopped, pruner, _ = polynomial()

    class Interrupted(GradualPruning):
        def on_train_batch_begin(self, batch, logs=None):
            super().on_train_batch_begin(batch, logs)
            if int(self.model.optimizer.iterations) == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run((stopped, Interrupted(pruner.schedules), {}), tmp_path / "run")
    masks = saved_masks(folder)
    assert graph.masks(stopped) == masks[1]
    latest = load_network(tmp_path / "run" / LATEST)
    assert graph.masks(latest) == masks[0]
    assert_zeros(latest)
    assert not (tmp_path / "run" / BEST).exists()
    made = polynomial()
    assert run(made, tmp_path / "run", resume=True) == history
    assert_same_runs(network, made[0], folder / "run", tmp_path / "run")
    assert_zeros(made[0])


@pytest.mark.slow
def test_masks_of_each_epoch(whole):
    _, history, folder = whole(polynomial)
    # Of the last prunings before the epochs' ends: steps 2, 5, 8, 11, 14, 14.
    sparsities = [0.7 - 0.7 * (1 - past / 12) ** 3 for past in (0, 3, 6, 9, 12, 12)]
    for plan, sparsity, row in zip(saved_masks(folder), sparsities, history, strict=True):
        for mask in plan.values():
            kept = mask.size - 1 - round((mask.size - 1) * sparsity) if sparsity else mask.size
            assert mask.sum() == kept
        total = sum(mask.size for mask in plan.values())
        pruned = total - sum(mask.sum() for mask in plan.values())
        assert row["sparsity"] == pruned / total
    _, history, folder = whole(sequence)
    pruned = [
        [name for name, mask in plan.items() if not mask.all()] for plan in saved_masks(folder)
    ]
    first, second, third = ["conv_2"], ["conv_2", "conv_5"], ["conv_2", "conv_5", "conv_7"]
    assert pruned == [first, first, second, second, third, third]
    assert "sparsity" in (folder / "run" / HISTORY).read_text()


@pytest.mark.slow
def test_frozen_statistics_are_those_of_the_pruned_network(whole):
    _, _, folder = whole(sequence)
    # The third epoch began with a pruning, and trained on with what was measured then.
    network, later = (
        load_network(folder / "run" / f"model_checkpoint.{epoch:02d}.h5") for epoch in (2, 3)
    )
    network = surgery.apply_masks(network, graph.masks(later))
    measure_batch_norm(network, noise(2 * STEPS), STEPS)
    for number in (1, 6, 8):
        name = f"batch_normalization_{number}"
        measured, stored = (each.get_layer(name).weights[2:] for each in (network, later))
        for one, other in zip(measured, stored, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4)


def test_the_best_epoch_is_one_of_the_final_sparsity(tmp_path):
    """Validation wants what the network gives unpruned, so the first epochs have the least loss;
    they are no candidates, stop nothing, and lower no learning rate."""
    network, pruner, _ = polynomial()
    x = next(noise(1000))[0]
    target = inference(network)(x)
    history = fit(
        network,
        *(noise, lambda: iter([(x, target)]), STEPS, tmp_path),
        Recipe(
            epochs=9,
            learning_rate=1e-7,
            batch_norm="freeze",
            min_delta=1e9,
            early_stopping_patience=2,
            plateau_patience=1,
        ),
        pruner=pruner,
        quiet=True,
    )
    losses = [row["val_loss"] for row in history]
    assert min(losses) < min(losses[4:])
    best = json.loads((tmp_path / BEST).with_suffix(".json").read_text())
    assert best["val_loss"] == min(losses[4:])
    assert best["epoch"] >= 5
    assert graph.masks(network) == graph.masks(load_network(tmp_path / LATEST))
    # The fifth epoch is the first to be looked at: patience counts from there.
    assert len(history) == 7
    rates = [row["learning_rate"] for row in history]
    assert rates == pytest.approx([1e-7] * 6 + [1e-8])


def test_schedules_that_do_not_fit_the_run(tmp_path):
    with pytest.raises(ParameterError, match=r"after 14 steps and the run has 12 \(4 epochs of 3"):
        run(polynomial(), tmp_path / "run", epochs=4)
    assert not (tmp_path / "run").exists()
    network = create_network("sea64", input="log_mel", filters=[4] * 8)
    with pytest.raises(ParameterError, match="layers are: none"):
        run((network, polynomial()[1], {}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # tfmot's own end: none is needed where the sparsity does not change.
    assert GradualPruning(sparsity_schedule("constant", 0.5, end_step=100)).epochs(10, 2) == (0, 0)
    assert RigL(40).epochs(10, 5) == (4, 0)
    last = GradualPruning(sparsity_schedule("polynomial", 0.5, end_step=20))
    assert last.epochs(7, 3) == (2, 2)
    with pytest.raises(ParameterError, match=r"after 20 steps and the run has 20"):
        last.epochs(10, 2)  # there would be no training after the last pruning


@pytest.mark.slow
def test_resume_by_another_rule(whole, tmp_path):
    folder = whole(polynomial)[2] / "killed"
    network, pruner, _ = polynomial()
    other = GradualPruning(sparsity_schedule("polynomial", 0.6, end_step=13))
    for rule in (other, None):
        with pytest.raises(
            L3PruneError, match=r"changed its masks by .*gradual.* its own schedule"
        ):
            run((network, rule, {}), folder, resume=True)
    # The same rule, but the run had weights that this network has lost already.
    fewer = surgery.apply_masks(
        network, PruningPlan({"conv_3": sparse_mask((3, 3, 4, 4), keep=0.2)})
    )
    with pytest.raises(L3PruneError, match="or one with other masks"):
        run((fewer, pruner, {}), folder, resume=True)
    network, pruner, _ = regrown()
    more = surgery.apply_masks(
        network, PruningPlan({"conv_3": np.array([False, True, True, True])})
    )
    with pytest.raises(L3PruneError, match="or one with other masks"):
        run((more, pruner, {}), whole(regrown)[2] / "killed", resume=True)


@pytest.mark.parametrize("reduction", [None, "linear"])
def test_distillation_hands_its_pruner_on(tiny, sounds, tmp_path, reduction):
    pruner = GradualPruning(sparsity_schedule("constant", 0.5, begin_step=1))
    network = prunable(tiny)
    history = distill(
        network,
        tiny,
        *(sounds, sounds, tmp_path / "run"),
        reduction=reduction,
        recipe=Recipe(epochs=2, learning_rate=1e-3),
        batch_size=4,
        train_epoch_size=2,
        validation_epoch_size=1,
        pruner=pruner,
        quiet=True,
    )
    assert history[-1]["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert all(0.4 < mask.mean() < 0.51 for mask in graph.masks(network).values())
    assert_zeros(network)
