"""A small labelled corpus, and a network that is trained on it in seconds."""

import numpy as np
import soundfile

#: Of `dcase2021`.
SMALL = {"filters": [4, 4, 6], "dense_units": 8}


def make_corpus(root, folds=(1, 2, 3), each=2):
    """ESC-50's layout: two classes, low noise and high; `each` clips of each class a fold."""
    rng = np.random.default_rng(3)
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    lines = ["filename,fold,target,category"]
    for fold in folds:
        for target, label in enumerate(("low", "high")):
            for number in range(each):
                noise = np.convolve(rng.normal(size=8900), [0.5, 0.5 - target])[:8820]
                name = f"{fold}-{number}-{target}.wav"
                soundfile.write(root / "audio" / name, (0.2 * noise).astype(np.float32), 44100)
                lines.append(f"{name},{fold},{target},{label}")
    (root / "meta/esc50.csv").write_text("\n".join(lines) + "\n")
    return root
