"""Embed a recording by a packed file: l3prune[sparse], without TensorFlow.

    python -m l3prune.export WEIGHTS exported --format sparse-float32
    python examples/embed_sparse.py exported/NAME-waveform.float32.l3p clip.wav clip.npz

Any sample rate will do: l3prune resamples. `python -m l3prune` does the same for many files.
"""

import argparse
import sys

import numpy as np
import soundfile

import l3prune


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a packed file that takes waveforms")
    parser.add_argument("audio")
    parser.add_argument("output", help=".npz with embedding and timestamps")
    parser.add_argument("--hop-size", type=float, default=0.1, help="seconds (%(default)s)")
    args = parser.parse_args()

    try:
        audio, sample_rate = soundfile.read(args.audio, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise SystemExit(str(error)) from None
    try:
        embedding, timestamps = l3prune.get_embedding(
            audio, sample_rate, args.model, hop_size=args.hop_size
        )
    except l3prune.L3PruneError as error:
        raise SystemExit(str(error)) from None
    np.savez(args.output, embedding=embedding, timestamps=timestamps)
    assert "tensorflow" not in sys.modules
    print(f"{len(embedding)} windows of {embedding.shape[1]} values")


if __name__ == "__main__":
    main()
