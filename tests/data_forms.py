"""One set of images written in every form that data comes in."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from posthoc_lt.data import DataSpec

SPLITS = {"train": 3, "val": 2, "test": 1}

Row = tuple[str, str, int, Path]


def table(path: Path, header: list[str], lines: list[list[object]], delimiter: str = ",") -> str:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *lines])
    return str(path)


def lists(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    for split in SPLITS:
        lines = [f"{path.relative_to(root)} {label}\n" for name, _, label, path in rows if name == split]
        (folder / f"{split}.txt").write_text("".join(lines) + "\n")
    train, val, test = (str(folder / f"{split}.txt") for split in SPLITS)
    return DataSpec(str(root), train, val, test)


def one_table(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    lines: list[list[object]] = [[split, name, path] for split, name, _, path in rows]
    return DataSpec(table(folder / "all.csv", ["split", "label", "path"], lines))


def tables(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    lines: list[list[object]] = [[path.relative_to(root), label, split] for split, _, label, path in rows]
    given = table(folder / "all.tsv", ["path", "label", "split"], lines, "\t")
    return DataSpec(str(root), given, given, given)


def parquet(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    pytest.importorskip("pyarrow")
    import pandas as pd

    frame = pd.DataFrame([(split, label, str(path)) for split, _, label, path in rows])
    frame.set_axis(["split", "label", "path"], axis=1).to_parquet(folder / "all.parquet")
    return DataSpec(str(folder / "all.parquet"))


def shards(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    """Two shards a split, labels before and after their images, and members that are neither."""
    for split in SPLITS:
        mine = [row for row in rows if row[0] == split]
        for number, part in enumerate((mine[::2], mine[1::2])):
            with tarfile.open(folder / f"fashion-{split}-{number:03}.tar", "w") as tar:
                for index, (_, _, label, path) in enumerate(part):
                    key = f"./{label}/{number}{index:04}"
                    members = [
                        (f"{key}.png", path.read_bytes()),
                        (f"{key}.cls", b"%d\n" % label),
                        (f"{key}.json", b"{}"),
                    ]
                    for name, content in members if index % 2 else reversed(members):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
    return DataSpec(str(folder / "fashion-{train,val,test}-{000..001}.tar"))


def shard_folder(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    shards(rows, root, folder)
    return DataSpec(str(folder))


def shard_folders(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    shards(rows, root, folder)
    for path in list(folder.glob("*.tar")):
        split = path.name.split("-")[1]
        (folder / split).mkdir(exist_ok=True)
        path.rename(folder / split / path.name[-7:])
    return DataSpec(str(folder))


def compressed(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    shards(rows, root, folder)
    for number, path in enumerate(sorted(folder.glob("*.tar"))):
        with (
            path.open("rb") as tar,
            gzip.open(f"{path}.gz" if number % 2 else path.with_suffix(".tgz"), "wb") as packed,
        ):
            packed.write(tar.read())
        path.unlink()
    return DataSpec(str(folder))


def parquet_shards(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    """As a data set on the Hugging Face hub: two files a split, images within, class names in the file's notes."""
    arrow, write = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet").write_table
    names = sorted({name for _, name, _, _ in rows})
    notes = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}}}
    (folder / "hub" / "data").mkdir(parents=True)
    for split in SPLITS:
        mine = [row for row in rows if row[0] == split]
        for number, part in enumerate((mine[::2], mine[1::2])):
            image = [{"bytes": path.read_bytes(), "path": path.name} for _, _, _, path in part]
            table = arrow.table({"image": image, "label": [label for _, _, label, _ in part]})
            table = table.replace_schema_metadata({"huggingface": json.dumps(notes)})
            write(table, folder / "hub" / "data" / f"{split}-{number:05}-of-00002.parquet", row_group_size=4)
    return DataSpec(str(folder / "hub"))


def parquet_bytes(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    """One table of all splits, its images bare bytes."""
    arrow, write = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet").write_table
    cells = [path.read_bytes() for *_, path in rows]
    told = {"labels": [label for _, _, label, _ in rows], "split": [split for split, *_ in rows]}
    write(arrow.table({"jpg": cells, **told}), folder / "all.parquet", row_group_size=7)
    return DataSpec(str(folder / "all.parquet"))


def parquet_paths(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    arrow, write = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet").write_table
    for split in SPLITS:
        mine = [row for row in rows if row[0] == split]
        kind = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
        paths = [{"bytes": None, "path": str(path.relative_to(root))} for *_, path in mine]
        table = {"picture": arrow.array(paths, kind), "label": [name for _, name, _, _ in mine]}
        write(arrow.table(table), folder / f"{split}.parquet")
    train, val, test = (str(folder / f"{split}*.parquet") for split in SPLITS)
    return DataSpec(str(root), train, val, test)


def hugging_face_bytes(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    datasets = pytest.importorskip("datasets")
    for split in SPLITS:
        mine = [row for row in rows if row[0] == split]
        columns = {"image": [path.read_bytes() for *_, path in mine], "label": [label for _, _, label, _ in mine]}
        datasets.Dataset.from_dict(columns).save_to_disk(str(folder / split))
    train, val, test = (str(folder / split) for split in SPLITS)
    return DataSpec(None, train, val, test)


def hugging_face(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    datasets = pytest.importorskip("datasets")
    names = sorted({name for _, name, _, _ in rows})
    features = datasets.Features({"label": datasets.ClassLabel(names=names), "image": datasets.Image()})
    called = {"train": "train", "val": "validation", "test": "test"}
    datasets.DatasetDict(
        {
            called[split]: datasets.Dataset.from_dict(
                {
                    "label": [label for name, _, label, _ in rows if name == split],
                    "image": [{"bytes": path.read_bytes(), "path": None} for name, _, _, path in rows if name == split],
                },
                features,
            )
            for split in SPLITS
        }
    ).save_to_disk(str(folder / "saved"))
    return DataSpec(str(folder / "saved"))


def own(rows: list[Row], root: Path, folder: Path) -> DataSpec:
    code = f"""
from pathlib import Path
from PIL import Image
from torch.utils.data import Dataset

class Images(Dataset):
    def __init__(self, split):
        self.paths = sorted(Path({str(root)!r}, split).glob("*/*.png"))
        self.names = sorted({{path.parent.name for path in self.paths}})
        self.targets = [self.names.index(path.parent.name) for path in self.paths]
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        return Image.open(self.paths[index]), self.targets[index]
"""
    module = f"own_images_{folder.name.replace('-', '_')}"
    (folder / f"{module}.py").write_text(code)
    return DataSpec(f"{module}:Images")


FORMS: list[Callable[[list[Row], Path, Path], DataSpec]] = [
    lists, one_table, tables, parquet, parquet_shards, parquet_bytes, parquet_paths, shards, shard_folder,
    shard_folders, compressed, hugging_face, hugging_face_bytes, own,
]  # fmt: skip
