"""Embed sound while it comes in: a ring buffer of one second, an embedding every 0.1 s.

    python -m l3prune.export WEIGHTS exported --format litert-dynamic --calibration recordings
    python examples/stream.py exported/NAME-waveform.dynamic.tflite clip.wav [clip.npz]

A recording stands for the microphone: it is given in blocks of one hop, as fast as they can be
taken. The real-time factor is the time that this took over the recording's length; below 1 the
machine keeps up. NumPy, soundfile and ai-edge-litert, nothing else.
"""

import argparse
import time

import numpy as np
import soundfile
from ai_edge_litert.interpreter import Interpreter


class RingBuffer:
    """The last samples that came in, in their order."""

    def __init__(self, size):
        self.samples = np.zeros(size, np.float32)
        self.end = 0  # where the next sample goes: the oldest one is there
        self.count = 0

    def write(self, block):
        """Put a block, not longer than the buffer, in the place of the oldest samples."""
        places = (self.end + np.arange(len(block))) % len(self.samples)
        self.samples[places] = block
        self.end = (self.end + len(block)) % len(self.samples)
        self.count += len(block)

    def read(self):
        """All of it, the oldest sample first."""
        return np.concatenate([self.samples[self.end :], self.samples[: self.end]])

    @property
    def full(self):
        return self.count >= len(self.samples)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a LiteRT file that takes waveforms")
    parser.add_argument("audio", help="at the model's sample rate")
    parser.add_argument("output", nargs="?", help=".npz with embedding and timestamps")
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
    ring, embedding, timestamps = RingBuffer(rate), [], []
    try:
        opened = soundfile.SoundFile(args.audio)
    except soundfile.LibsndfileError as error:
        raise SystemExit(str(error)) from None
    with opened as file:
        if file.samplerate != rate:
            raise SystemExit(f"{args.audio} has {file.samplerate} Hz; resample it to {rate} Hz")
        start = time.perf_counter()
        # The first block completes a second after whole hops.
        length = rate % hop or hop
        while len(block := file.read(length, dtype="float32", always_2d=True)):
            ring.write(block.mean(axis=1))
            length = hop
            if ring.full and (ring.count - rate) % hop == 0:
                model.set_tensor(given["index"], ring.read()[np.newaxis, np.newaxis])
                model.invoke()
                embedding.append(model.get_tensor(made["index"])[0].copy())
                timestamps.append((ring.count - rate) / rate)
        seconds = time.perf_counter() - start
    print(f"{len(embedding)} embeddings of {ring.count / rate:.1f} s")
    print(f"real-time factor {seconds * rate / max(ring.count, 1):.4f}")
    if args.output:
        np.savez(args.output, embedding=embedding, timestamps=timestamps)


if __name__ == "__main__":
    main()
