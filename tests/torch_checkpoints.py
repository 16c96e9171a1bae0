"""State dictionaries as PANNs' networks have them, without PyTorch, and their files with it."""

from __future__ import annotations

import numpy as np

#: Filters of a tiny pruned network, all different where they can be.
FILTERS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)


def make_state(filters=FILTERS, units=7, classes=5, front_end=True):
    """The 84 entries in their order, with weights that are not trivial."""
    rng = np.random.default_rng(11)
    state = {}
    if front_end:
        angles = 2 * np.pi / 1024 * np.outer(np.arange(513), np.arange(1024))
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
        for part, wave in (("real", np.cos(angles)), ("imag", -np.sin(angles))):
            name = f"spectrogram_extractor.stft.conv_{part}.weight"
            state[name] = (wave * hann)[:, None].astype(np.float32)
        import librosa

        mel = librosa.filters.mel(sr=32000, n_fft=1024, n_mels=64, fmin=50, fmax=14000)
        state["logmel_extractor.melW"] = mel.T

    def norm(name, count, mean=0.0, variance=1.0):
        state[f"{name}.weight"] = rng.uniform(0.5, 1.5, count)
        state[f"{name}.bias"] = rng.normal(0, 0.1, count)
        state[f"{name}.running_mean"] = rng.normal(mean, 0.1, count)
        state[f"{name}.running_var"] = variance * rng.uniform(0.5, 1.5, count)
        state[f"{name}.num_batches_tracked"] = np.array(1000)

    norm("bn0", 64, -20, 100)
    width = 1
    for block in range(6):
        convs = filters[2 * block : 2 * block + 2]
        for place, count in enumerate(convs, start=1):
            scale = np.sqrt(2 / (9 * width))
            name = f"conv_block{block + 1}.conv{place}.weight"
            state[name] = rng.normal(0, scale, (count, width, 3, 3))
            width = count
        for place, count in enumerate(convs, start=1):
            norm(f"conv_block{block + 1}.bn{place}", count)
    for name, outputs in (("fc1", units), ("fc_audioset", classes)):
        state[f"{name}.weight"] = rng.normal(0, np.sqrt(1 / width), (outputs, width))
        state[f"{name}.bias"] = rng.normal(0, 0.1, outputs)
        width = outputs
    return {
        name: array if array.dtype == np.int64 else np.asarray(array, np.float32)
        for name, array in state.items()
    }


def torch_forward(state, clips, detection=False):
    """What PANNs' PyTorch networks compute: clipwise and embedding, or clipwise and framewise."""
    import torch
    from torch.nn import functional as F

    with torch.no_grad():
        given = {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}

        def norm(maps, name):
            mean, variance = given[f"{name}.running_mean"], given[f"{name}.running_var"]
            scale, shift = given[f"{name}.weight"], given[f"{name}.bias"]
            return F.batch_norm(maps, mean, variance, scale, shift, False, 0.1, 1e-5)

        window = torch.hann_window(1024, periodic=True)
        bins = torch.stft(torch.from_numpy(clips), 1024, 320, 1024, window, return_complex=True)
        power = bins.abs().square().transpose(1, 2)
        maps = 10 * torch.log10(torch.clamp(power @ given["logmel_extractor.melW"], min=1e-10))
        frames = maps.shape[1]
        maps = norm(maps.transpose(1, 2), "bn0").transpose(1, 2)[:, None]
        for block in range(1, 7):
            for place in (1, 2):
                kernel = given[f"conv_block{block}.conv{place}.weight"]
                maps = F.conv2d(maps, kernel, padding=1)
                maps = F.relu(norm(maps, f"conv_block{block}.bn{place}"))
            maps = F.avg_pool2d(maps, 2 if block < 6 else 1)
        maps = maps.mean(dim=3)

        def dense(maps, name):
            return F.linear(maps, given[f"{name}.weight"], given[f"{name}.bias"])

        if not detection:
            embedding = F.relu(dense(maps.max(dim=2)[0] + maps.mean(dim=2), "fc1"))
            return torch.sigmoid(dense(embedding, "fc_audioset")).numpy(), embedding.numpy()
        maps = F.max_pool1d(maps, 3, 1, 1) + F.avg_pool1d(maps, 3, 1, 1)
        segments = F.relu(dense(maps.transpose(1, 2), "fc1"))
        segments = torch.sigmoid(dense(segments, "fc_audioset"))
        framewise = segments.repeat_interleave(32, dim=1)
        rest = framewise[:, -1:].expand(-1, frames - framewise.shape[1], -1)
        return segments.max(dim=1)[0].numpy(), torch.cat([framewise, rest], 1).numpy()


def torch_save(state, path, legacy=False, **around):
    """The state in a file of PyTorch, within other entries if there are any."""
    import torch

    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}
    content = {**around, "model": tensors} if around else tensors
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
