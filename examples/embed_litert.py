"""Embed a recording by a LiteRT file: NumPy, soundfile and ai-edge-litert, nothing else.

    python -m l3prune.export WEIGHTS exported --format litert-dynamic --calibration recordings
    python examples/embed_litert.py exported/NAME-waveform.dynamic.tflite clip.wav clip.npz

The file takes sound; its front end is inside.
"""

import argparse

import numpy as np
import soundfile
from ai_edge_litert.interpreter import Interpreter


def windows(audio, rate, hop):
    """One-second windows (n, rate), the first centred on the first sample, the last padded."""
    audio = np.concatenate([np.zeros(rate // 2, np.float32), audio])
    count = max(1, 1 - (rate - len(audio)) // hop)
    audio = np.pad(audio, (0, max(0, (count - 1) * hop + rate - len(audio))))
    return np.lib.stride_tricks.sliding_window_view(audio, rate)[::hop][:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a LiteRT file that takes waveforms")
    parser.add_argument("audio", help="at the model's sample rate")
    parser.add_argument("output", help=".npz with embedding and timestamps")
    parser.add_argument("--hop-size", type=float, default=0.1, help="seconds (%(default)s)")
    args = parser.parse_args()

    model = Interpreter(args.model)
    model.allocate_tensors()
    (given,), (made,) = model.get_input_details(), model.get_output_details()
    if len(given["shape"]) != 3:
        raise SystemExit(f"{args.model} takes spectrograms; export it with --input waveform")
    rate = int(given["shape"][-1])
    hop = int(args.hop_size * rate) if 0 < args.hop_size <= 1 else 0
    if not hop:
        raise SystemExit(f"--hop-size {args.hop_size} is not above 0 and up to 1 second")
    try:
        audio, sample_rate = soundfile.read(args.audio, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise SystemExit(str(error)) from None
    if sample_rate != rate:
        raise SystemExit(f"{args.audio} has {sample_rate} Hz; resample it to {rate} Hz")
    embedding = []
    for window in windows(audio.mean(axis=1), rate, hop):
        model.set_tensor(given["index"], window[np.newaxis, np.newaxis])
        model.invoke()
        embedding.append(model.get_tensor(made["index"])[0].copy())
    np.savez(args.output, embedding=embedding, timestamps=np.arange(len(embedding)) * args.hop_size)
    print(f"{len(embedding)} windows of {len(embedding[0])} values")


if __name__ == "__main__":
    main()
