"""Write the lab's images, book/_static/lab/data.js, from MNIST-1D.

    python -m tools.lab

One printable character a value: tenths, from -4.5 ("#") to 4.5 ("}"), and beyond cut off. A script
and not a file to fetch, so that the page also works where it lies on a disk.
"""

import json
from pathlib import Path

import numpy as np
import torch

import normlib as nl

TARGET = Path(__file__).resolve().parent.parent / "book" / "_static" / "lab" / "data.js"
ZERO, MOST = ord("P"), 45


def text(images: torch.Tensor) -> str:
    """Images as characters.

    >>> text(torch.tensor([0.0, 0.12, -9.0]))
    'PQ#'
    """
    tenths = (10 * images.double()).round().clamp(-MOST, MOST).flatten()
    return "".join(chr(ZERO + int(value)) for value in tenths)


def read(path: Path = TARGET) -> tuple[np.ndarray, np.ndarray]:
    """What the page decodes: images (N, 40), the training images first, and labels."""
    stored = json.loads(path.read_text(encoding="utf-8").split("=", 1)[1].strip().rstrip(";"))
    images = (np.frombuffer(stored["x"].encode(), dtype=np.uint8) - float(ZERO)) / 10
    return images.reshape(-1, 40), np.array([int(label) for label in stored["y"]])


def main() -> None:
    data = nl.mnist1d()
    labels = "".join(str(int(y)) for y in torch.cat([data.y_train, data.y_test]))
    stored = {"x": text(torch.cat([data.x_train, data.x_test])), "y": labels}
    TARGET.write_text(f"const nlLabData = {json.dumps(stored)};\n", encoding="utf-8")


if __name__ == "__main__":
    main()
