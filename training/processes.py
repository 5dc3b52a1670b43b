"""The processes of a run, and the signals that end it."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from errors import RunError, first_line

if TYPE_CHECKING:
    import torch
    from torch import nn


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # that end a run
QUIET_SECONDS = 5  # of waiting for other processes, before a line says for which


def by_torchrun() -> bool:
    """Whether torchrun has started this process: clusters set WORLD_SIZE and RANK as well."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def this_rank() -> int:
    """The number of this process in its run."""
    return int(os.environ["RANK"]) if by_torchrun() else 0


class Ranks:
    """The processes of this run: this one alone, or those that torchrun has started.

    Gradients and buffers travel by NCCL (CUDA) or gloo (CPU). All else that the processes agree on
    or gather goes by gloo, so that it never waits for a device.
    """

    def __init__(self):
        """Raises RunError if the environment asks for several processes without torchrun."""
        count = os.environ.get("WORLD_SIZE", "1")
        if not by_torchrun() and count not in ("", "1"):
            raise RunError(
                f"WORLD_SIZE={count} is set, but torchrun did not start this process: unset it to "
                "train in one process, or start several by torchrun (docs/clusters.md)"
            )
        self.rank, self.count = this_rank(), int(count) if by_torchrun() else 1
        self.is_first = self.rank == 0
        self.control = None

    def start(self, device: "torch.device") -> None:
        """Connect to the others; RunError if not each process has a GPU of its own."""
        import torch

        if self.count == 1:
            return
        on_cuda = device.type == "cuda"
        if on_cuda:
            torch.cuda.set_device(own_gpu(int(os.environ.get("LOCAL_RANK", 0))))
        torch.distributed.init_process_group(
            "nccl" if on_cuda else "gloo",
            store=meet(self.rank, self.count),
            rank=self.rank,
            world_size=self.count,
        )
        self.control = torch.distributed.new_group(backend="gloo")
        if on_cuda:
            check_gpus(self.gather(str(torch.cuda.get_device_properties(device).uuid)))

    def stop(self) -> None:
        """Disconnect from the others, if connected."""
        if self.control is not None:
            import torch

            torch.distributed.destroy_process_group()

    def gather(self, value) -> list:
        """Every process's value, in the order of their ranks, in every process."""
        if self.count == 1:
            return [value]
        import torch

        values = [None] * self.count
        torch.distributed.all_gather_object(values, value, group=self.control)
        return values

    def highest(self, *values: int) -> list[int]:
        """The highest of each value over all processes."""
        if self.count == 1:
            return [*values]
        import torch

        tensor = torch.tensor(values)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self.control)
        return tensor.tolist()

    def complete_batch(self, values: "torch.Tensor", divisor: float) -> "torch.Tensor":
        """The values (B,) of the complete batch, of which each process has its part.

        divisor: the batch's size over the number of processes. The gradient of this process's part
        is multiplied by their number, as gradients are averaged over them.
        """
        import torch

        total = round(divisor * self.count)
        own = values.new_zeros(-(-total // self.count))
        own[: len(values)] = values.detach()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        torch.distributed.all_gather(parts, own)
        parts = [
            part[: len(rows)]
            for part, rows in zip(parts, torch.empty(total, 0).tensor_split(self.count))
        ]
        parts[self.rank] = values + (self.count - 1) * (values - values.detach())
        return torch.cat(parts)

    def share_buffers(self, model: "nn.Module") -> None:
        """Give every process the first one's buffers, so that all evaluate what it saves.

        BatchNorm's running averages are the same in all; other layers may have buffers too.
        """
        if self.count == 1:
            return
        import torch

        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


def own_gpu(local: int) -> int:
    """The number of the GPU of this machine's process `local`; RunError if it has none.

    If a process sees one GPU alone, as a cluster may arrange, it takes that one.
    """
    import torch

    seen = torch.cuda.device_count()
    if seen == 1:
        return 0
    if local >= seen:
        raise RunError(
            f"process {local + 1} of this machine has no GPU, as there are {seen}: give torchrun a "
            "smaller --nproc-per-node"
        )
    return local


def check_gpus(uuids: list[str]) -> None:
    """RunError if two processes have the same GPU; uuids: one per process."""
    for rank, uuid_of_gpu in enumerate(uuids):
        first = uuids.index(uuid_of_gpu)
        if first != rank:
            raise RunError(
                f"processes {first} and {rank} have the same GPU: give torchrun a smaller "
                "--nproc-per-node, or let each process see another GPU (CUDA_VISIBLE_DEVICES)"
            )


def meet(rank: int, count: int) -> "torch.distributed.Store":
    """The store that connects the processes of this run, once all of them have begun.

    Signals end the waiting: PyTorch's own, which none would, is in a thread. Raises RunError if
    there is no way to the others.
    """
    import torch

    found = []

    def connect() -> None:
        try:
            found.append(next(torch.distributed.rendezvous("env://"))[0])
        except Exception as error:  # of the environment or the network: many kinds
            found.append(error)

    threading.Thread(target=connect, daemon=True).start()
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    wait_until(lambda: found, lambda: f"the others of {count} at {place}", rank)
    (store,) = found
    if isinstance(store, Exception):
        raise RunError(f"the processes of torchrun can't meet at {place} ({first_line(store)})")

    # torchrun keeps one store for all its restarts: what an earlier attempt has left in it, such as
    # addresses, must not be read. So process 0 names this attempt to each process that asks.
    asking = attempt = uuid.uuid4().hex
    if rank:
        store.set(f"asking/{rank}", asking)
        wait_until(
            lambda: store.check([f"attempt/{asking}"]), lambda: f"process 0 of {count}", rank
        )
        attempt = store.get(f"attempt/{asking}").decode()
    own = torch.distributed.PrefixStore(attempt, store)
    own.set(f"begun/{rank}", "")

    def missing() -> list[int]:
        absent = [other for other in range(count) if not own.check([f"begun/{other}"])]
        for other in [] if rank else absent:
            if store.check([f"asking/{other}"]):
                store.set(f"attempt/{store.get(f'asking/{other}').decode()}", attempt)
        return absent

    wait_until(
        lambda: not missing(),
        lambda: f"process {', '.join(map(str, missing()))} of {count} (counted from 0)",
        rank,
    )
    return own


def wait_until(done: Callable[[], object], whom: Callable[[], str], rank: int) -> None:
    """Wait until `done`; a line on stderr after QUIET_SECONDS, then each minute, says for whom."""
    speak = time.monotonic() + QUIET_SECONDS
    while not done():
        if time.monotonic() > speak:
            speak = time.monotonic() + 60
            print(f"process {rank} waits for {whom()}", file=sys.stderr, flush=True)
        time.sleep(0.05)


class Stopping:
    """Inside `with`, the SIGNALS are noted in `signal`; the run ends between two steps.

    A second Ctrl-C ends it at once. SIGHUP comes when a terminal is closed.
    """

    def __init__(self):
        self.signal = 0

    def __enter__(self):
        in_main = threading.current_thread() is threading.main_thread()  # others get no signals
        self.earlier = {n: signal.getsignal(n) for n in SIGNALS if in_main}
        for number, handler in self.earlier.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, self.note)
        return self

    def note(self, number: int, _) -> None:
        if number == signal.SIGINT:
            signal.signal(number, self.earlier[number])
        self.signal = self.signal or number

    def __exit__(self, *_):
        for number, handler in self.earlier.items():
            signal.signal(number, handler)


def check_batches(
    *, batch_size: int, patch_size: int, crops: int, processes: int, compares: bool = False
) -> None:
    """RunError if batches can't be split between processes, or are too small for BatchNorm.

    compares: whether the loss compares the images of a batch.
    """
    if batch_size % processes:
        raise RunError(
            f"--batch_size {batch_size} can't be shared by {processes} processes: it is the "
            f"complete batch; give a multiple of {processes}"
        )
    last = crops % batch_size or batch_size
    # Stage 4 is 1 x 1 at --patch_size 32, and BatchNorm needs two of them, in one process or more.
    least = 1 if patch_size > 32 or processes > 1 else 2
    if last // processes < least:
        raise RunError(
            f"--batch_size {batch_size} leaves a last batch of {last} crops, and "
            f"{'each process' if processes > 1 else 'it'} needs at least {least} (at --patch_size "
            f"{patch_size}): give another --batch_size"
        )
    if compares and last == 1:
        raise RunError(
            f"--batch_size {batch_size} leaves a last batch of one crop, and this --loss compares "
            "the crops of a batch: give another --batch_size"
        )


def distributed(model: "nn.Module") -> "nn.Module":
    """The network as one of several processes trains it: gradients are averaged over them all.

    BatchNorm takes its statistics over the complete batch, so that all processes have the same
    running averages. Raises RunError for BatchNorms of a kind that can't.
    """
    from torch import nn

    from training.batch_norm import synchronise

    others = synchronise(model)
    if others:
        raise RunError(
            f"the network's {others[0]} is a BatchNorm of its own kind, which several processes "
            "can't share: train it in one process"
        )
    network = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    network.broadcast_buffers = False  # before each step, that is; they begin with the same
    return network


def end_workers(others: set) -> None:
    """Kill the loader's processes that an error has left behind, as they ignore SIGTERM.

    others: the children that this process had before the run, which are left alone.
    """
    workers = set(multiprocessing.active_children()) - others
    if not workers:
        return
    # PyTorch's handler would report each as lost.
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()
        worker.join()
    signal.signal(signal.SIGCHLD, earlier)


def died_elsewhere(error: RuntimeError) -> bool:
    """Whether it is the connection to another process that has failed."""
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo/" in str(error)
