"""The published network on real recordings, through the same calls that the experiments make."""

import numpy as np
import pytest

from l3prune import edgel3, graph, surgery
from l3prune.datasets import load_dataset
from l3prune.distillation import distill
from l3prune.evaluation import embedding_mse
from l3prune.plan import plan_global
from l3prune.recipes import Recipe
from l3prune.windows import AudioFiles

pytestmark = pytest.mark.shared


@pytest.mark.slow
def test_distillation_recovers_the_published_network_at_95_percent(shared, sea64, tmp_path):
    dataset = load_dataset("esc50", shared / "data" / "esc10")
    # Three clips a class to train on, one to stop on, one from another fold to judge by.
    chosen = {1: 3, 2: 1, 3: 1}
    sources = {}
    for fold, count in chosen.items():
        paths = [
            clip.path
            for target in range(10)
            for clip in [c for c in dataset.clips if (c.fold, c.target) == (fold, target)][:count]
        ]
        sources[fold] = AudioFiles(paths, 8000, tmp_path / "cache", quiet=True)
    plan = plan_global(graph.conv_weights(sea64), 0.95)
    pruned = surgery.apply_masks(sea64, plan)
    student = surgery.apply_masks(sea64, plan)
    recipe = Recipe(epochs=4, learning_rate=1e-3, schedule="cosine", batch_norm="freeze")
    distill(
        student,
        sea64,
        sources[1],
        sources[2],
        tmp_path / "run",
        recipe=recipe,
        batch_size=16,
        cache_dir=tmp_path / "cache",
        quiet=True,
    )
    before, after = (
        embedding_mse(network, sea64, sources[3], tmp_path / "cache", quiet=True)
        for network in (pruned, student)
    )
    # Some 70 steps; experiments/esc10_layerwise.py takes more and leaves less.
    assert after < before / 4
    for name, weights in graph.conv_weights(student).items():
        assert not np.any(weights.kernel[~plan[name]].view(np.uint32))
    total, nonzero = graph.count_kernel_weights(student)
    assert nonzero == sum(int(mask.sum()) for mask in plan.values())
    assert 1 - nonzero / total == pytest.approx(0.95, abs=1e-4)


def test_published_weights_by_name_give_the_reference_embedding(shared, reference, monkeypatch):
    """As a script for edgel3 calls it, with the weights in a folder of files."""
    monkeypatch.setenv("L3PRUNE_WEIGHTS_DIR", str(shared / "models"))
    windows = list(reference["waveform"].astype(np.float64))
    loud = [i for i, window in enumerate(windows) if window.any()]
    embeddings, _ = edgel3.get_embedding(
        [windows[i] for i in loud], 8000, model_type="sea", emb_dim=64, center=False
    )
    np.testing.assert_allclose(np.concatenate(embeddings), reference["embedding"][loud], atol=1e-3)
    assert len(loud) > 10
