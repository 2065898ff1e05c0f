"""What each of several processes does in `test_ranks`: each function once, its results to a file of the rank's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError
from posthoc_lt.files import replacing


def main(folder: Path) -> None:
    with ranks.joined():
        rank = ranks.rank()
        rows = torch.arange(rank * 4, dtype=torch.float64).reshape(-1, 2) + rank  # 0, 2, 4 … rows of two
        found = {
            "world": [rank, ranks.world(), ranks.neighbours()],
            "shares": [list(ranks.share(items)) for items in (0, 1, 7)],
            "total": ranks.total(torch.tensor([0.1, 10.0**rank], dtype=torch.float64)).tolist(),
            "gathered": ranks.gathered(rows).tolist(),
            "mask": ranks.gathered(torch.tensor([rank == 0])).tolist(),
            "first": ranks.first("any"),
        }
        with ranks.alone():
            found["alone"] = [ranks.rank(), ranks.world(), ranks.total(torch.tensor(1)).item()]
        with replacing(folder / "shared") as temporary:
            temporary.write_text(f"by {rank}")
        found["read"] = (folder / "shared").read_text()
        (folder / f"{rank}.json").write_text(json.dumps(found))
        ranks.wait()
        if rank == 1:
            return
        try:
            ranks.wait()
        except PosthocError as error:
            (folder / "left").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
