"""The processes of one run: which one this is, and what they tell one another.

torchrun, `accelerate launch` and launch.num_processes say by the environment who is who (RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT). torch is imported only where there are several processes.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, TypeVar

from gemma_tune.errors import EndedByOthers, FailedTogether, RunError, UserError, first_line

T = TypeVar("T")
R = TypeVar("R")
# Keys of the store: rank and message of the first process that failed; whether one was asked to end
FAILED, STOPPED = "failed", "stopped"
NO_ANSWER = "another process did not answer within launch.timeout_minutes: it hangs, takes longer, or can't be reached."


def rank() -> int:
    """The number of this process among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world())))


def was_started() -> bool:
    """Whether torchrun, `accelerate launch` or launch.num_processes has started this process, perhaps with others."""
    return "WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ


def is_main_process() -> bool:
    """True on the one process that writes and speaks (rank 0)."""
    return rank() == 0


class _Failed(NamedTuple):
    message: str


class Group:
    """What this process holds of the others, from `join` on."""

    def __init__(self) -> None:
        self.joined = self.alone = False
        self.store: Any = None
        self.calls, self.timeout = 0, 0.0

    def go_alone(self, alone: bool) -> None:
        """From here on the first process does alone what comes, or no longer."""
        self.alone = alone


group = Group()


def several() -> bool:
    """Whether there are other processes, which take part in what comes now."""
    return group.joined and not group.alone


def join(cpu: bool, timeout_minutes: float) -> None:
    """Takes this process's device and joins the others, before anything is loaded; only the first one speaks.

    Args:
        cpu: Whether the run computes on the CPU.
        timeout_minutes: That a collective operation may take.

    Raises:
        UserError: The others can't be reached.
    """
    if world() == 1:
        return
    if group.joined:  # for an earlier run of these processes, which the first one may have ended alone
        group.go_alone(False)
        barrier()
        return
    from accelerate import PartialState

    try:
        PartialState(cpu=cpu, timeout=timedelta(minutes=timeout_minutes))
        group.store = connect()
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(f"launch: the other processes can't be reached at {place} ({first_line(error)}).") from error
    group.joined, group.alone, group.timeout = True, False, timeout_minutes * 60


def connect(host: str = "", port: int = 0, seconds: float = 300.0) -> Any:
    """A connection to the store of the group; each thread needs its own.

    Args:
        host: Where the store is, and its `port`; none: what the environment of a process of the group says.
        port: See `host`.
        seconds: That the store may take to answer.
    """
    from torch.distributed import PrefixStore, TCPStore

    host, port = host or os.environ["MASTER_ADDR"], port or int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))
    return PrefixStore(f"gemma_tune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def first_failure(store: Any) -> tuple[int, str] | None:
    """Rank and message of the first process that failed; None where none has."""
    if not store.check([FAILED]):
        return None
    first, _, message = store.get(FAILED).decode().partition(" ")
    return int(first), message


def failure_of_others(wait_seconds: float = 0.0) -> str | None:
    """The message of another process that has failed first; None where none has.

    Args:
        wait_seconds: How long to wait for one: a broken connection is seen before its reason.
    """
    end = time.monotonic() + wait_seconds
    while group.joined:
        try:
            if failure := first_failure(group.store):
                first, message = failure
                return None if first == rank() else f"rank {first}: {message}"
        except RuntimeError:
            return None
        if time.monotonic() >= end:
            break
        time.sleep(0.1)
    return None


def _end_with_others() -> None:
    if message := failure_of_others():
        raise EndedByOthers(message)
    if group.store.check([STOPPED]):
        raise KeyboardInterrupt


def barrier() -> None:
    """Waits until all processes are here; ends where one of them fails."""
    if several():
        gathered(None)


def from_main(make: Callable[[], T]) -> T:
    """What the main process makes, on all of them; what it raises, too. The others wait as long as it takes."""
    if not several():
        return make()
    import torch.distributed as dist

    key, made, box = _next_key(), None, [b""]
    if is_main_process():
        made = _outcome(make)
        box = [pickle.dumps(made)]
        group.store.set(key, b"1")
    else:
        _wait_for(key)
    dist.broadcast_object_list(box)
    value, error = made or _unpickled(box[0])
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def once_per_node(make: Callable[[], T]) -> T:
    """What the first process of each machine makes, on all processes of this machine; what it raises, too."""
    if not several():
        return make()
    machine, place = divmod(rank(), local_world())
    key = f"{_next_key()}/{machine}"
    if place:
        _wait_for(key)
        value, error = _unpickled(group.store.get(key))
    else:
        value, error = _outcome(make)
        group.store.set(key, pickle.dumps((value, error)))
    for problem in gathered(error):
        if problem is not None:
            raise problem
    return value  # type: ignore[no-any-return]


def _outcome(make: Callable[[], T]) -> tuple[T | None, UserError | RunError | None]:
    """What was made, or why it couldn't be: both can be handed to other processes."""
    try:
        return make(), None
    except (UserError, RunError) as error:
        return None, error


def _unpickled(content: bytes) -> Any:
    """What the first process has made. Rows stand in a file of that process."""
    try:
        return pickle.loads(content)
    except OSError as error:
        raise UserError(
            f"{error.filename or error}: this file of the first process can't be read here; with several machines set "
            "HF_DATASETS_CACHE to a folder that all of them share."
        ) from error


def gathered(mine: T) -> list[T]:
    """What every process has, in the order of their ranks.

    Raises:
        FailedTogether: One of them has failed, and said so by `fail_together`.
        EndedByOthers: One has ended, or did not come within launch.timeout_minutes.
    """
    if not several():
        return [mine]
    import torch.distributed as dist

    key, limit = _next_key(), time.monotonic() + group.timeout
    group.store.add(f"{key}/here", 1)
    while group.store.add(f"{key}/here", 0) < world():
        _end_with_others()
        if time.monotonic() > limit:
            raise EndedByOthers(NO_ANSWER)
        time.sleep(0.01)
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, mine)
    for part in found:
        if isinstance(part, _Failed):
            raise FailedTogether(part.message)
    return found


def fail_together(error: Exception) -> NoReturn:
    """Makes what the others gather next fail, with this error; they may be at another place than this process."""
    ours = isinstance(error, UserError | RunError)
    gathered(_Failed(str(error) if ours else f"{type(error).__name__}: {first_line(error)}"))
    raise error


def share(items: Sequence[T], equal: bool = False) -> list[T]:
    """What this process computes of items that are the same on all: every n-th one; `equal` as in `in_shares`."""
    if not several():
        return list(items)
    more = -len(items) % world() if equal else 0
    return [*items, *[*items[:1]] * more][rank() :: world()]


def in_shares(items: Sequence[T], of_share: Callable[[list[T]], Iterable[R]]) -> list[R]:
    """What is computed of each item, in the items' order; each process computes its share, and as many as the others.

    Args:
        items: The same on all processes; each takes every n-th, so that what is sorted by length is spread evenly.
            Those that have one less compute the first one once more, since sharded weights are gathered by all.
        of_share: Computes one result for each item of a share.

    Raises:
        FailedTogether: It failed on one of them.
    """
    if not several():
        return list(of_share(share(items)))
    try:
        mine = list(of_share(share(items, equal=True)))
    except Exception as error:
        fail_together(error)
    parts = gathered(mine)
    return [parts[i % world()][i // world()] for i in range(len(items))]


def highest(value: float) -> float:
    """The highest value of all processes; a collective, so that all must be at the same place."""
    if not several():
        return value
    import torch
    import torch.distributed as dist

    device = "cpu" if dist.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())
    found = torch.tensor([value], dtype=torch.float32, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return float(found.item())


def _next_key() -> str:
    """A key of the store for one thing that all do: the same on all, since they do the same things in one order."""
    group.calls += 1
    return f"call/{group.calls}"


def _wait_for(key: str) -> None:
    while not group.store.check([key]):
        _end_with_others()
        time.sleep(0.05)
