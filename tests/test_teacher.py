"""The network in models/ on the synthetic corpus: what makes the demo worth looking at."""

from pathlib import Path

import numpy as np
import pytest

from classifier.features import Features
from classifier.train import cross_validate
from l3prune.audio import frame_audio, load_audio, log_spectrogram, to_mono
from l3prune.datasets import load_dataset
from l3prune.datasets.synthetic import make_corpus
from l3prune.networks import inference, l3
from l3prune.weights import load_network

MODEL = Path(__file__).parent.parent / "models" / "l3_synthetic.h5"


@pytest.mark.slow
def test_embedding_is_far_above_time_averaged_mel_bands(tmp_path):
    """Ten classes, recordings from a seed that the network was not trained on."""
    corpus = make_corpus(tmp_path / "corpus", folds=3, clips_per_class_per_fold=10, seed=4)
    dataset = load_dataset("us8k", corpus)
    network = load_network(MODEL)
    front_end = l3.front_end(network)
    embeddings, bands = [], []
    for clip in dataset.clips:
        audio, rate = load_audio(clip.path)
        mono = to_mono(audio, rate, front_end.sample_rate)
        windows = frame_audio(mono, front_end.sample_rate, hop_size=0.5, center=False)
        embeddings.append(inference(network)(windows[:, np.newaxis]))
        bands.append(log_spectrogram(windows, front_end).mean(axis=(2, 3)))
    accuracy = {}
    for name, frames in {"embedding": embeddings, "mel bands": bands}.items():
        features = Features(
            "us8k",
            dataset.labels,
            tuple(clip.path.stem for clip in dataset.clips),
            np.array([clip.fold for clip in dataset.clips]),
            np.array([clip.target for clip in dataset.clips]),
            tuple(frames),
        )
        results = cross_validate(features, tmp_path / name, quiet=True)
        accuracy[name] = results.accuracy
    assert accuracy["embedding"] > 0.75
    assert accuracy["embedding"] > accuracy["mel bands"] + 0.2
