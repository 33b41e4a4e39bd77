"""Several processes of one run, started by `torchrun --nproc_per_node N methods/vppo.py ...`.

Every process runs the same script with the same seeds on the same prompts and so takes the same decisions. Shared out
is only the heavy work: decoding (`own_part`), scoring and the micro-batches of the update (`share`), and the
optimiser's states (sharding.py). Process 0 alone writes files and prints. Without torchrun, or with one process,
nothing here does anything. docs/distributed.md has the commands and the limits.

`torch` is imported inside the functions, because errors.py needs this file before anything slow.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # for one collective: process 0 may write a large checkpoint meanwhile
LOOK_EVERY = 1.0  # seconds between looks at the other processes
PARTING = 30.0  # most seconds that processes wait for one another when all work is done
SPEAK_FIRST = 10.0  # seconds that process 0 has to print an error which all processes share
SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

_rank, _world_size = 0, 1
_ending = threading.Event()
_watchers: list[threading.Thread] = []


# ---------------------------------------------------------------- start and end


def launched() -> bool:
    """torchrun started several processes (they need not have met yet)."""
    return all(name in os.environ for name in SET_BY_TORCHRUN) and int(os.environ["WORLD_SIZE"]) > 1


def start(device: str = "auto") -> None:
    """Meet the other processes; nccl for GPUs, gloo for the CPU. Nothing with one process or a second time.

    device: the option of that name. Raises SightRLError when it names one GPU, or a machine has too few of them.
    """
    global _rank, _world_size
    if not launched() or _world_size > 1:
        return
    import torch
    import torch.distributed as dist
    from transformers.utils import logging

    from common.errors import SightRLError

    if device not in ("auto", "cpu", "cuda"):
        raise SightRLError(f"--device {device} is one device for several processes; use auto, cuda or cpu.")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        gpus, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
        if local >= gpus:
            raise SightRLError(f"more processes than the {gpus} GPU(s) here; use --nproc_per_node {gpus}.")
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    _rank, _world_size = dist.get_rank(), dist.get_world_size()
    if _rank:
        logging.disable_progress_bar()
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)


def finish() -> None:
    """Part from the other processes at the end of a run that went well.

    No connection is closed before all have left their last collective: a process that still reads from one that is
    gone fails, or is aborted by its library. They meet for that in torchrun's key-value store.
    """
    if _world_size > 1:
        import torch.distributed as dist

        agree(False)  # until here the others are missed when they end
        _ending.set()
        with suppress(RuntimeError):  # the store went down with the first machine, whose processes are done
            store, key = key_value_store(), f"sightrl/parted/{attempt()}"
            store.add(key, 1)
            deadline = time.monotonic() + PARTING
            while store.add(key, 0) < _world_size and time.monotonic() < deadline:
                time.sleep(0.01)
        for thread in _watchers:  # none may be inside the store's code when Python ends
            thread.join(PARTING)
        with suppress(RuntimeError):
            dist.destroy_process_group()


def attempt() -> str:
    """Which start of the run this is, where torchrun starts it again."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def key_value_store() -> Any:
    """torchrun's, which lives as long as its machine's processes."""
    from torch.distributed import TCPStore

    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


def local_device(device: str) -> str:
    """The option --device for this process: with several processes the GPU that `start` chose."""
    if _world_size > 1 and device in ("auto", "cuda"):
        import torch

        return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    return device


def launcher() -> list[str]:
    """The words before the script in a command that starts as many processes again."""
    if _world_size == 1:
        return ["python"]
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    more = [] if nodes == "1" else ["--nnodes", nodes]
    return ["torchrun", *more, "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", str(_world_size))]


def rank() -> int:
    """Number of this process, 0 .. world_size() - 1."""
    return _rank


def world_size() -> int:
    return _world_size


def is_main() -> bool:
    """Process 0, which writes the files."""
    return _rank == 0


# ---------------------------------------------------------------- sharing out and bringing together


def share(work: list[T]) -> list[T]:
    """The items this process does: every world_size()-th."""
    return work[_rank::_world_size]


def own_part(count: int) -> slice:
    """The items this process does, as one piece of range(count); empty pieces where there are too few."""
    return slice(_rank * count // _world_size, (_rank + 1) * count // _world_size)


def complete_rows(tensor: Tensor, own: slice) -> None:
    """Fill in, in place, the rows that the other processes computed; this one computed `own`."""
    if _world_size > 1:
        tensor[: own.start] = 0
        tensor[own.stop :] = 0
        sum_over_processes(tensor)


def sum_over_processes(tensor: Tensor) -> None:
    """The sum of the processes' tensors, in place, to the bit the same in all of them."""
    if _world_size > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)


def agree(flag: bool) -> bool:
    """True in every process if `flag` is true in any."""
    if _world_size == 1:
        return flag
    import torch

    votes = torch.tensor(int(flag))
    sum_over_processes(votes)
    return bool(votes)


def from_main(value: T) -> T:
    """Process 0's value in every process."""
    if _world_size == 1:
        return value
    import torch
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather(value: T) -> list[T]:
    """Every process's value, in every process."""
    if _world_size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * _world_size
    dist.all_gather_object(values, value)
    return values


# ---------------------------------------------------------------- when a process dies


def watch(how_to_continue: str) -> None:
    """From now on end this process, with one sentence a machine, when another one is gone.

    A thread looks, because the main thread may be waiting for the dead one in a collective, where no signal handler of
    Python runs. The process numbers of its own machine tell it; other machines learn from torchrun's key-value store.
    """
    if _world_size == 1:
        return
    store, key = key_value_store(), f"sightrl/gone/{attempt()}"
    here = (socket.gethostname(), os.environ.get("GROUP_RANK"))  # the second tells containers of one name apart
    peers = [pid for place, pid in gather((here, os.getpid())) if place == here]
    text = f"error: another process of this run ended (its message is above); continue with: {how_to_continue}\n"

    def look() -> None:
        while not _ending.wait(LOOK_EVERY):
            try:
                if all(_exists(pid) for pid in peers) and not store.check([key]):
                    continue
                store.set(key, "")
                first = store.add(f"{key}/{here}", 1) == 1  # to notice it on this machine
            except RuntimeError:  # the store went down with the first machine
                first = True
            if _ending.is_set():  # meanwhile all have parted
                return
            if first:
                os.write(2, text.encode())
            os._exit(1)

    _watchers.append(threading.Thread(target=look, daemon=True))
    _watchers[-1].start()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def before_error(shared: bool) -> None:
    """Wait before this process reports an error, so that one message remains of one cause.

    shared: a SightRLError, which all processes usually meet at once: process 0 speaks, the others are ended by torchrun
    while they wait, or speak then. Any other may be a connection lost because a peer died: the watcher ends this
    process while it waits.
    """
    if launched() and not shared:
        time.sleep(3 * LOOK_EVERY)
    elif launched() and os.environ["RANK"] != "0":
        time.sleep(SPEAK_FIRST)
