"""Which device computes, in which precision, and how much memory it takes.

Apple's GPUs (mps) are untested: no machine with one has run this software yet.
"""

import os
import resource
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from errors import RunError

if TYPE_CHECKING:  # imported when work begins, so that --help and errors come at once
    import torch
    from torch import nn

# What messages of an error say when memory has run out, on a GPU or on a CPU.
OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "could not create a primitive"),
    "CUBLAS_STATUS_ALLOC_FAILED",
)


DEVICES = ("auto", "cuda", "mps", "cpu")  # --device


def choose_device(name: str) -> "torch.device":
    """What `--device` names; 'auto': CUDA if available, else the CPU.

    RunError for 'cuda' without a CUDA device, and for 'mps' without Apple's GPU.
    """
    import torch

    if name == "mps":
        if not torch.backends.mps.is_available():
            raise RunError("--device mps: PyTorch sees no GPU of Apple here; take auto or cpu")
        return torch.device("mps")
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: PyTorch sees no CUDA device here; take auto or cpu")
    use_cuda = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def choose_precision(name: str, device: "torch.device") -> str:
    """bf16, fp16 or off (float32): what `--amp` names, or what the hardware computes fast.

    Always off on mps, whose half precision is untested: RunError for another.
    """
    import torch

    if device.type == "mps":
        if name not in ("auto", "off"):
            raise RunError(f"--amp {name}: --device mps computes in float32; take auto or off")
        return "off"
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    has = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "off"


def autocast(device: "torch.device", precision: str, *, cache: bool = True) -> "torch.autocast":
    """The context in which the network computes in `precision`.

    cache: keep weights that were cast until the context ends, for one that lasts several batches.
    """
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=cache)


def memory_format(device: "torch.device") -> "torch.memory_format":
    """The layout in which convolutions are fast: channels_last, but not on mps.

    There their backward pass was 30 times slower in it (PyTorch's issue 193349, mended in August
    2026), and results were wrong for parts of such tensors (issue 180984).
    """
    import torch

    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def cores() -> int:
    """The CPU cores that this process may use; all of them on macOS, which does not say."""
    has = getattr(os, "sched_getaffinity", None)
    return len(has(0)) if has else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of giving large blocks back to the system.

    A training step on the CPU, or decoding images, frees and takes the same memory again; getting
    it anew, page by page, costs 5% of the time. Does nothing if the C library is not glibc.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, size in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**28)):
            mallopt(option, size)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def compile_in_place(model: "nn.Module", device: "torch.device") -> None:
    """torch.compile a network; on CUDA with CUDA graphs, which take the launches off the CPU."""
    model.compile(mode="reduce-overhead" if device.type == "cuda" else None, dynamic=False)


def on_another_stream(function: Callable[[], None]) -> None:
    """Call a function on a CUDA stream of its own, as PyTorch asks of steps before a capture."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)


def captured(function: Callable[[], None]) -> Callable[[], None]:
    """Record what a function gives to the GPU as a CUDA graph; returns what replays it.

    The recording itself computes nothing.
    """
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def is_out_of_memory(error: RuntimeError) -> bool:
    return any(sign in str(error) for sign in OUT_OF_MEMORY)


def peak_memory(device: "torch.device") -> float:
    """The most memory that tensors on the GPU, or this process on the CPU, have taken: GB."""
    import torch

    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e9, 3)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes; macOS counts in bytes itself
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)
