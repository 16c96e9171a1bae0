"""Train the small L3 network that the project carries in models/, from nothing.

    python experiments/train_teacher.py --work DIR --output models/l3_synthetic.h5

A SEA-64 network with a softmax layer learns the ten classes of a synthetic corpus
(`l3prune.datasets.synthetic`); the softmax layer is then dropped. The corpus's seed is used nowhere
else, so demo and tests judge the network on recordings that it has not heard.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from l3prune.audio import FrontEnd, frame_audio, load_audio, log_spectrogram, to_mono
from l3prune.datasets import Clip, load_dataset
from l3prune.datasets.synthetic import make_corpus
from l3prune.errors import command
from l3prune.quiet import load_tensorflow


def examples(clips: Sequence[Clip], front_end: FrontEnd) -> tuple[np.ndarray, np.ndarray]:
    """Log-mels of every half second of the clips, and their targets."""
    maps, targets = [], []
    for clip in clips:
        audio, rate = load_audio(clip.path)
        mono = to_mono(audio, rate, front_end.sample_rate)
        windows = frame_audio(mono, front_end.sample_rate, hop_size=0.5, center=False)
        maps.append(log_spectrogram(windows, front_end))
        targets += [clip.target] * len(windows)
    return np.concatenate(maps), np.array(targets)


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", required=True, help="receives the corpus")
    parser.add_argument("--output", required=True, help="the network (.h5)")
    parser.add_argument("--seed", type=int, default=1009, help="(%(default)s)")
    parser.add_argument("--clips", type=int, default=12, help="per class and fold (%(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="(%(default)s)")
    args = parser.parse_args(argv)

    load_tensorflow()
    import tf_keras as keras

    from l3prune.batch_norm import measure_batch_norm
    from l3prune.networks import create_network, l3
    from l3prune.training import environment
    from l3prune.weights import load_network, save_network

    corpus = make_corpus(
        Path(args.work) / f"corpus-{args.seed}", clips_per_class_per_fold=args.clips, seed=args.seed
    )
    dataset = load_dataset("us8k", corpus)
    network = create_network("sea64", input="log_mel")
    front_end = l3.front_end(network)
    train = examples([clip for clip in dataset.clips if clip.fold != 10], front_end)
    held_out = examples([clip for clip in dataset.clips if clip.fold == 10], front_end)

    keras.utils.set_random_seed(args.seed)
    network = create_network("sea64", input="log_mel")
    outputs = keras.layers.Dense(len(dataset.labels), "softmax")(network.output)
    classifier = keras.Model(network.input, outputs)
    steps = args.epochs * -(-len(train[0]) // 32)
    classifier.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        "sparse_categorical_crossentropy",
        ["accuracy"],
    )
    classifier.fit(*train, batch_size=32, epochs=args.epochs, verbose=2)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = np.random.default_rng(args.seed).permutation(len(train[0]))
        for start in range(0, len(order), 64):
            yield train[0][order[start : start + 64]], train[1][order[start : start + 64]]

    # A few hundred steps are too few for Keras's moving statistics, which start at 0 and 1.
    measure_batch_norm(network, batches(), len(train[0]) // 64)
    accuracy = float(classifier.evaluate(*held_out, verbose=0)[1])

    output = Path(args.output)
    save_network(network, output)
    # Carried with the waveform as its input, as published networks are.
    save_network(
        load_network(output, input="waveform"),
        output,
        origin={
            "origin": "trained by this project on its own synthetic corpus, from random weights",
            "licence": "MIT",
            "command": "python experiments/train_teacher.py --work DIR --output models/"
            f"{output.name} --seed {args.seed} --clips {args.clips} --epochs {args.epochs}",
            "seed": args.seed,
            "held_out_window_accuracy": accuracy,
            "versions": environment(),
        },
    )
    print(f"window accuracy on the fold held out: {accuracy:.3f}")


if __name__ == "__main__":
    sys.exit(main())
