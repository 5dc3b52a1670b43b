"""The processes of a run, and the signals that end it."""

import multiprocessing
import os
import signal
import sys
import threading
import time
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
        """Connect to the others; RunError if there are fewer GPUs than processes."""
        import torch

        if self.count == 1:
            return
        local = int(os.environ.get("LOCAL_RANK", 0))
        if device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise RunError(
                    f"process {local + 1} of this machine has no GPU, as there are "
                    f"{torch.cuda.device_count()}: give torchrun a smaller --nproc-per-node"
                )
            torch.cuda.set_device(local)
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=meet(self.rank, self.count),
            rank=self.rank,
            world_size=self.count,
        )
        self.control = torch.distributed.new_group(backend="gloo")

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
        """Give every process the first one's running averages of BatchNorm.

        On the CPU each process has averages of its own part of the batches: without this it would
        evaluate another network than the one that is saved.
        """
        if self.count == 1:
            return
        import torch

        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


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

    store.set(f"begun/{rank}", "")

    def missing() -> list[int]:
        return [other for other in range(count) if not store.check([f"begun/{other}"])]

    wait_until(
        lambda: not missing(),
        lambda: f"process {', '.join(map(str, missing()))} of {count} (counted from 0)",
        rank,
    )
    return store


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
    least = 1 if patch_size > 32 else 2  # stage 4 is 1 x 1 at 32: BatchNorm needs two of them
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


def distributed(model: "nn.Module", device: "torch.device") -> "nn.Module":
    """The network as one of several processes trains it: gradients are averaged over them all.

    On CUDA BatchNorm takes its statistics over the complete batch. On the CPU, where PyTorch has no
    such layer, each process takes them over its own part, and the first one's running averages are
    kept.
    """
    from torch import nn

    if device.type == "cuda":
        synchronised(model)
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


def synchronised(model: "nn.Module") -> "nn.Module":
    """The network, whose BatchNorms now take their statistics over all processes."""
    from torch import nn

    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    if "timm" in sys.modules:  # its BatchNorms hold activations, which PyTorch's own would drop
        from timm.layers import convert_sync_batchnorm as convert
    return convert(model)  # in place, as no BatchNorm is the root


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
