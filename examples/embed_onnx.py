"""Embed a recording by an ONNX file: NumPy, soundfile and onnxruntime, nothing else.

    python -m l3prune.export WEIGHTS exported --format onnx
    python examples/embed_onnx.py exported/NAME-waveform.onnx clip.wav clip.npz

The file takes sound; its front end is inside.
"""

import argparse

import numpy as np
import onnxruntime
import soundfile

#: Windows at once.
BATCH = 16


def windows(audio, rate, hop):
    """One-second windows (n, rate), the first centred on the first sample, the last padded."""
    audio = np.concatenate([np.zeros(rate // 2, np.float32), audio])
    count = max(1, 1 - (rate - len(audio)) // hop)
    audio = np.pad(audio, (0, max(0, (count - 1) * hop + rate - len(audio))))
    return np.lib.stride_tricks.sliding_window_view(audio, rate)[::hop][:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="an ONNX file that takes waveforms")
    parser.add_argument("audio", help="at the model's sample rate")
    parser.add_argument("output", help=".npz with embedding and timestamps")
    parser.add_argument("--hop-size", type=float, default=0.1, help="seconds (%(default)s)")
    args = parser.parse_args()

    session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    if len(given.shape) != 3:
        raise SystemExit(f"{args.model} takes spectrograms; export it with --input waveform")
    rate = given.shape[-1]
    hop = int(args.hop_size * rate) if 0 < args.hop_size <= 1 else 0
    if not hop:
        raise SystemExit(f"--hop-size {args.hop_size} is not above 0 and up to 1 second")
    try:
        audio, sample_rate = soundfile.read(args.audio, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise SystemExit(str(error)) from None
    if sample_rate != rate:
        raise SystemExit(f"{args.audio} has {sample_rate} Hz; resample it to {rate} Hz")
    every = windows(audio.mean(axis=1), rate, hop)
    parts = [
        session.run(None, {given.name: every[start : start + BATCH, np.newaxis]})[0]
        for start in range(0, len(every), BATCH)
    ]
    embedding = np.concatenate(parts)
    np.savez(args.output, embedding=embedding, timestamps=np.arange(len(embedding)) * args.hop_size)
    print(f"{len(embedding)} windows of {embedding.shape[1]} values")


if __name__ == "__main__":
    main()
