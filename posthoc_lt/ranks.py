"""This process among those that were started together, as torchrun does: its share, and what all of them agree on.

Started alone, every function is the identity. The pattern is torch's own (single program, multiple data): all
processes run the same lines in the same order, so that a function below must be reached by all of them or by none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from posthoc_lt.errors import PosthocError, show

PATIENCE = timedelta(hours=6)
"""How long a process waits for one that is still busy with its share; one that has died ends all of them at once."""

_group: Any = None
"""The processes that work together now; a group that the user's own code made is none of ours until it is joined."""

_here = 1
"""How many of them share this machine."""

_store: Any = None
"""What they can all write to, even when one has failed."""


def started_together() -> bool:
    """Whether this process is one of several: what torchrun and accelerate launch leave in the environment says so."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that were started together while the block lasts; nothing where there are no others.

    Each takes the CUDA device of its rank on its machine; more of them than devices share these.

    Raises:
        PosthocError: the others cannot be reached.
    """
    global _group, _here, _store
    if _group is not None or not started_together():
        yield
        return
    _here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if dist.is_initialized():
        _group = dist.new_group(timeout=PATIENCE, backend=_backend())
    else:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        with _reaching_others():
            _store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]  # all of them public
            own = dist.PrefixStore("group", _store)  # type: ignore[attr-defined]
            dist.init_process_group(_backend(), store=own, rank=rank, world_size=size, timeout=PATIENCE)
        _group = dist.group.WORLD
    try:
        yield
    finally:
        group, _group, _here, _store = _group, None, 1, None
        gloo = group._get_backend(torch.device("cpu"))
        dist.destroy_process_group(group)
        # In older torch (2.6) a group waits for its threads with the interpreter held, which they may want, to let go
        # of a tensor; a backend waits without, and lives until the last of its names is gone.
        del group
        del gloo


def _backend() -> str:
    """NCCL moves what is on CUDA, but wants a device for each process."""
    return "cpu:gloo,cuda:nccl" if _here <= torch.cuda.device_count() else "gloo"


@contextmanager
def alone() -> Iterator[None]:
    """Act as if there were no others while the block lasts: for work on this process's own share."""
    global _group
    group, _group = _group, None
    try:
        yield
    finally:
        _group = group


def world() -> int:
    """How many processes there are."""
    return 1 if _group is None else dist.get_world_size(_group)


def rank() -> int:
    """Which of them this one is, from 0."""
    return 0 if _group is None else dist.get_rank(_group)


def neighbours() -> int:
    """How many of them share this machine, this one among them, even while it works `alone`."""
    return _here


def share(items: int) -> range:
    """The items of this process: consecutive, in the order of the ranks, as many as any other's or one more."""
    return range(items * rank() // world(), items * (rank() + 1) // world())


def total(tensor: Tensor) -> Tensor:
    """The sum over the processes, the same bits in each of them."""
    if world() == 1:
        return tensor
    tensor = tensor.clone()
    with _reaching_others():
        dist.all_reduce(tensor, group=_group)
    return tensor


def gathered(rows: Tensor) -> Tensor:
    """Every process's rows, one after another in the order of the ranks; they may differ in number, not in shape."""
    if world() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world())]
    with _reaching_others():
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device), group=_group)
        longest = max(int(count) for count in counts)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=_group)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def added(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """The sum of every process's parts one after another, in the order of the ranks.

    The same bits however consecutive parts were shared out; `like` says what a part looks like, for who has none.
    """
    whole = torch.zeros_like(like)
    for part in gathered(torch.stack([*parts]) if parts else like.new_empty(0, *like.shape)):
        whole += part
    return whole


def wait() -> None:
    """Go on when every process has come this far."""
    total(torch.zeros(1))  # a barrier of NCCL's would wait for the devices, where nothing of ours is going on


def first(what: str) -> bool:
    """Whether this process is the first of all to come here; alone of all, others need not come at all."""
    if _store is None:
        return True
    try:
        return int(_store.add(what, 1)) == 1
    except RuntimeError:  # the first process kept it, and has come here and gone
        return False


@contextmanager
def _reaching_others() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise PosthocError(
            f"{os.environ['WORLD_SIZE']} processes, of which one cannot be reached ({show(error)})",
            "all of them, from beginning to end",
            "see what the others said, then type the same command again",
        ) from None
