"""Log-mel spectrograms of one-second windows: l3prune's, librosa's, and kapre's convolution.

    python benchmarks/frontend.py [--rounds N] [--output FILE.json]

All take turns in one process and make the spectrogram that an L3 network takes, in [-80, 0].
"numpy" is `audio.log_spectrogram` (FFT in float64, mel bands as a sparse matrix), "layer" the
network's own front end in TensorFlow, "librosa" `librosa.feature.melspectrogram` with the same
constants, "convolution" what kapre 0.1 does: the DFT as two strided convolutions with fixed
kernels. Quote the ratios of medians. The largest difference from "numpy" tells that they compute
the same; librosa's frames and bands are others, so there it is not given.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from l3prune.checks import check_whole
from l3prune.errors import command
from l3prune.files import write_json
from l3prune.quiet import load_tensorflow


def convolution(front_end) -> Callable[[np.ndarray], np.ndarray]:
    """kapre 0.1's way, in float32: (n, samples) -> (n, bands, frames, 1)."""
    import tensorflow as tf

    angles = np.outer(np.arange(front_end.n_dft), np.arange(front_end.n_dft // 2 + 1))
    waves = np.exp(-2j * np.pi / front_end.n_dft * angles)
    kernels = [
        tf.constant((front_end.analysis_window()[:, None] * part)[:, None], tf.float32)
        for part in (waves.real, waves.imag)
    ]
    mel = tf.constant(front_end.mel_matrix(), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((None, front_end.sample_rate), tf.float32)])
    def forward(windows):
        padded = tf.pad(windows, [[0, 0], front_end.edge_padding])[..., None]
        real, imaginary = (
            tf.nn.conv1d(padded, kernel, front_end.hop_length, "VALID") for kernel in kernels
        )
        amplitude = tf.sqrt(tf.matmul(real**2 + imaginary**2, mel))
        level = 10 / np.log(10) * tf.math.log(tf.maximum(amplitude, 1e-10))
        level = tf.maximum(level - tf.reduce_max(level, axis=[1, 2], keepdims=True), -80)
        return tf.transpose(level, [0, 2, 1])[..., None]

    return lambda windows: forward(tf.constant(windows)).numpy()


def with_librosa(front_end) -> Callable[[np.ndarray], np.ndarray]:
    """`librosa.feature.melspectrogram` of amplitudes, window by window."""
    import librosa

    def forward(windows: np.ndarray) -> np.ndarray:
        results = []
        for window in windows:
            amplitude = librosa.feature.melspectrogram(
                y=window,
                sr=front_end.sample_rate,
                n_fft=front_end.n_dft,
                hop_length=front_end.hop_length,
                n_mels=front_end.n_mels,
                power=1.0,
            )
            level = 10 * np.log10(np.maximum(amplitude, 1e-10))
            results.append(np.maximum(level - level.max(), -80)[..., np.newaxis])
        return np.stack(results)

    return forward


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", default=["mel256", "sea64"], help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="(%(default)s)")
    parser.add_argument("--output", help="JSON file for the figures")
    args = parser.parse_args(argv)
    check_whole("--rounds", args.rounds, 1)
    check_whole("--batch-size", args.batch_size, 1)

    load_tensorflow()
    import tf_keras as keras

    from l3prune.audio import log_spectrogram
    from l3prune.networks import create_network, inference, l3
    from l3prune.training import environment

    rows = []
    print(f"{'':10}{'front end':14}{'median ms':>11}{'min ms':>9}{'ratio':>8}{'difference':>12}")
    for name in args.networks:
        network = create_network(name)
        front_end = l3.front_end(network)
        flat = keras.Input((front_end.sample_rate,))
        log_mel = keras.Sequential([keras.layers.Reshape((1, -1)), network.get_layer("log_mel")])
        ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "numpy": functools.partial(log_spectrogram, front_end=front_end),
            "layer": inference(keras.Model(flat, log_mel(flat))),
            "convolution": convolution(front_end),
            "librosa": with_librosa(front_end),
        }
        rng = np.random.default_rng(0)
        windows = rng.uniform(-0.5, 0.5, (args.batch_size, front_end.sample_rate))
        windows = windows.astype(np.float32)
        times: dict[str, list[float]] = {way: [] for way in ways}
        results: dict[str, np.ndarray] = {}
        for number in range(args.rounds + 1):
            for way, compute in ways.items():
                time.sleep(0.03)  # threads of the last wait busily for a while
                start = time.perf_counter()
                results[way] = compute(windows)
                if number:  # the first round compiles
                    times[way].append(1000 * (time.perf_counter() - start) / len(windows))
        base = np.median(times["numpy"])
        for way, each in times.items():
            apart = None if way == "librosa" else float(abs(results[way] - results["numpy"]).max())
            rows.append(
                {"network": name, "front_end": way, "milliseconds": each, "difference": apart}
            )
            told = "" if apart is None else f"{apart:12.2g}"
            print(
                f"{name:10}{way:14}{np.median(each):11.2f}{min(each):9.2f}"
                f"{np.median(each) / base:8.2f}{told}"
            )
    if args.output:
        record = {"settings": vars(args), "environment": environment(), "rows": rows}
        write_json(args.output, record)


if __name__ == "__main__":
    sys.exit(main())
