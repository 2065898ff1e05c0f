"""Make a long-tailed Fashion-MNIST: PNG folders train/ val/ test/, and one archive of them.

The class sizes fall exponentially from 500 to 5 in the classes' natural order (Cui et al. 2019, 1901.05555: imbalance
factor 100); val and test are balanced, so that accuracy there is already balanced accuracy.
"""

import argparse
import gzip
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# The number in front makes the folders sort into the label order of the network.
CLASSES = (
    "0-t-shirt",
    "1-trouser",
    "2-pullover",
    "3-dress",
    "4-coat",
    "5-sandal",
    "6-shirt",
    "7-sneaker",
    "8-bag",
    "9-ankle-boot",
)
HEAD_SIZE = 500
IMBALANCE = 100
VAL_SIZE = 20
TEST_SIZE = 100

# Travels as the archive's comment: the licence asks that every substantial portion carries it.
NOTICE = """\
A subset of Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist).
The MIT License (MIT). Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

Images = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
Labels = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Member(NamedTuple):
    """One image of the archive: its path and its PNG bytes."""

    path: str
    png: bytes


def train_size(label: int) -> int:
    """Return n_c = 500 · (1/100)^(c/9), cut to an integer.

    >>> [train_size(label) for label in (0, 9)]
    [500, 5]
    """
    return int(HEAD_SIZE * (1 / IMBALANCE) ** (label / (len(CLASSES) - 1)))


def read_idx(folder: Path, stem: str) -> tuple[Images, Labels]:
    """Read the images (N, 28, 28) and labels (N,) of one idx pair, `train` or `t10k`."""
    pixels = gzip.decompress((folder / f"{stem}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{stem}-labels-idx1-ubyte.gz").read_bytes())
    return (
        np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28),
        np.frombuffer(labels, np.uint8, offset=8),
    )


def encode_png(image: Images) -> bytes:
    """Return the smallest of Pillow's encodings of one 8-bit grey image."""
    picture = Image.fromarray(image)
    encodings = []
    for strategy in range(5):  # zlib's default, filtered, Huffman only, run-length, fixed codes
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True, compress_level=9, compress_type=strategy)
        encodings.append(buffer.getvalue())
    return min(encodings, key=len)


def draw(images: Images, labels: Labels, label: int, seen: set[bytes], rng: np.random.Generator, size: int) -> Images:
    """Return `size` images of one class, none in `seen`, and add them to `seen`.

    Fashion-MNIST repeats some images, even across its own train and test sets, so distinct indices are not enough.
    """
    chosen: list[int] = []
    for index in rng.permutation(np.flatnonzero(labels == label)):
        pixels = images[index].tobytes()
        if pixels not in seen:
            seen.add(pixels)
            chosen.append(int(index))
            if len(chosen) == size:
                return images[chosen]
    raise SystemExit(f"only {len(chosen)} distinct images of class {CLASSES[label]}, {size} wanted")


def make_members(source: Path, seed: int) -> list[Member]:
    """Draw train and val from the 60k set and test from the 10k set; return all images sorted by path."""
    rng = np.random.default_rng(seed)
    seen: set[bytes] = set()
    train, test = read_idx(source, "train"), read_idx(source, "t10k")
    members = []
    for label, name in enumerate(CLASSES):
        wanted = {"test": (test, TEST_SIZE), "val": (train, VAL_SIZE), "train": (train, train_size(label))}
        for split, ((images, labels), size) in wanted.items():
            drawn = draw(images, labels, label, seen, rng, size)
            members += [Member(f"{split}/{name}/{i:05d}.png", encode_png(image)) for i, image in enumerate(drawn, 1)]
    return sorted(members)


def write_archive(path: Path, members: list[Member]) -> None:
    """Write the images below `data/`, byte-identical at every run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Stored: PNGs are deflated already, and a wheel deflates the archive's own directory again.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = NOTICE.encode()
        for name, png in members:
            info = zipfile.ZipInfo(f"data/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # else the archive would differ between Windows and Unix
            info.external_attr = 0o644 << 16
            archive.writestr(info, png)


def write_folders(path: Path, members: list[Member]) -> None:
    """Write the images as folders `train/ val/ test/` below `path`."""
    for name, png in members:
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png)


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="the idx files")
    parser.add_argument("--data", type=Path, default=root / "build/fashion_lt", help="the PNG folders to write")
    parser.add_argument("--archive", type=Path, default=root / "posthoc_lt/demo/fashion_lt.zip")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.source.is_dir():
        parser.error(f"no folder {args.source}: apt install dataset-fashion-mnist, or give --source")
    if args.data.exists() and any(args.data.iterdir()):
        parser.error(f"{args.data} is not empty: remove it, or give another --data, so that no old image stays")

    members = make_members(args.source, args.seed)
    write_archive(args.archive, members)
    write_folders(args.data, members)
    print("train", *(train_size(label) for label in range(len(CLASSES))))
    print(f"{len(members)} images, {sum(len(m.png) for m in members):,} bytes of PNG")
    print(f"{args.archive.name} {args.archive.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
