"""A pretended CUDA device: what is on it is computed by the CPU, but says that it is on cuda:0.

What a run does wrong on a GPU shows without one: operations between tensors of the host and of the
device raise PyTorch's error, and each wait of the host for the device is counted, by the function
of the software in which it happens. Kernels, streams, memory and speed are not pretended.

    with pretended_cuda(monkeypatch) as device:
        train.run(args)
    assert device.waits == {...}

The backward pass is not seen: it calls no function of Python's.
"""

import contextlib
import traceback
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = Path(torch.__file__).resolve().parents[1]  # may lie in the checkout, as .venv does
CUDA = torch.device("cuda", 0)
READ = {  # functions that read a value of the device
    *(Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__),
    *(Tensor.__index__, Tensor.__contains__, Tensor.nonzero, torch.nonzero, torch.argwhere),
    *(Tensor.masked_select, torch.masked_select, Tensor.unique, torch.unique, torch.bincount),
    *(Tensor.equal, torch.equal, Tensor.allclose, torch.allclose, torch.repeat_interleave),
}
MADE_OF_VALUES = {torch.tensor, torch.as_tensor, torch.from_numpy}
MIX = {Tensor.copy_, Tensor.set_, torch._has_compatible_shallow_copy_type}  # host and device
MOVES = {Tensor.to, Tensor.cuda, Tensor.cpu}


class WaitsError(AssertionError):
    """Where nothing may wait, and nothing may come from the host, something does."""


def means_cuda(device) -> bool:
    return str(device).startswith("cuda") if isinstance(device, (str, torch.device)) else False


def on_device(tensor) -> bool:
    return getattr(tensor, "_on_device", False)


def put(result, where: bool):
    """Say of all tensors of a result whether they are on the device."""

    def note(tensor: Tensor) -> Tensor:
        tensor._on_device = where
        return tensor

    return tree_map_only(Tensor, note, result)


class PretendedCuda(TorchFunctionMode):
    """waits: how often each function of the software waited, as 'file.py function'."""

    def __init__(self):
        super().__init__()
        self.waits, self.capturing = Counter(), False

    def wait(self, func) -> None:
        if self.capturing:
            raise WaitsError(f"in a CUDA graph: {resolve_name(func) or func}")
        for frame in reversed(traceback.extract_stack()):
            path = Path(frame.filename)
            ours = path.is_relative_to(ROOT) and not path.is_relative_to(LIBRARIES)
            comprehension = frame.name.startswith("<")
            if ours and path != Path(__file__) and not comprehension:
                self.waits[f"{path.name} {frame.name}"] += 1
                return

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func == Tensor.device.__get__:
            return CUDA if on_device(first) else func(first)
        if func == Tensor.is_cuda.__get__:
            return on_device(first)
        if func in (Tensor.grad.__get__, Tensor.data.__get__):
            return put(func(first), on_device(first))
        if func == Tensor.data.__set__:
            func(*args)
            return put(first, on_device(args[1]))
        if func == Tensor.grad.__set__:
            return func(*args)
        if func in MOVES:
            return self.move(func, args, kwargs)

        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = [on_device(t) for t in tensors]
        where = any(there)
        if "device" in kwargs and kwargs["device"] is not None:
            where = means_cuda(kwargs["device"])
            if where:
                kwargs["device"] = torch.device("cpu")
        if (func in READ and any(there)) or (func in MADE_OF_VALUES and where):
            self.wait(func)
        if func == Tensor.copy_ and there[:2] not in ([True, True], [False, False]):
            self.wait(func)
        if func == Tensor.numpy and any(there):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            self.index(func, args, there)
        elif func not in MIX and any(there):
            self.check_together(func, [t for t, is_there in zip(tensors, there) if not is_there])
        if func == Tensor.copy_:
            return put(func(*args, **kwargs), there[0])
        return put(func(*args, **kwargs), True) if where else func(*args, **kwargs)

    def move(self, func, args, kwargs):
        tensor, rest = args[0], list(args[1:])
        target = on_device(tensor)
        for i, value in enumerate(rest):
            if isinstance(value, Tensor):
                target = on_device(value)
            elif isinstance(value, (str, torch.device)):
                target, rest[i] = means_cuda(value), torch.device("cpu")
        if kwargs.get("device") is not None:
            target, kwargs["device"] = means_cuda(kwargs["device"]), torch.device("cpu")
        if func in (Tensor.cuda, Tensor.cpu):
            target, func, rest = func == Tensor.cuda, Tensor.to, [torch.device("cpu")]
        moved = target != on_device(tensor)
        to_device_meanwhile = target and kwargs.get("non_blocking")
        if moved and (self.capturing or not to_device_meanwhile):
            self.wait(func)
        result = func(tensor, *rest, **kwargs)
        if moved and result is tensor:
            result = result.detach().clone()
        return put(result, target)

    def check_together(self, func, on_host: list[Tensor]) -> None:
        if any(t.dim() for t in on_host):  # a single number may come from the host
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! (in {resolve_name(func)})"
            )

    def index(self, func, args, there) -> None:
        indices = args[1] if isinstance(args[1], tuple) else (args[1],)
        indices = [i for i in indices if isinstance(i, Tensor)]
        if any(map(on_device, indices)) and not on_device(args[0]):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        from_host = [*indices, *args[2:3]] if func == Tensor.__setitem__ else indices
        from_host = [t for t in from_host if isinstance(t, Tensor) and not on_device(t)]
        if on_device(args[0]) and (
            from_host or any(i.dtype in (torch.bool, torch.uint8) for i in indices)
        ):
            self.wait(func)


@contextlib.contextmanager
def pretended_cuda(monkeypatch):
    """Inside `with` there is one CUDA device; yields the mode that counts what waits for it."""
    mode = PretendedCuda()
    with monkeypatch.context() as inside:
        replace = inside.setattr
        real_autocast, parameter = torch.autocast, torch.nn.Parameter.__new__
        grouped, state_of = torch._C._group_tensors_by_device_and_dtype, torch._utils._get_obj_state
        rng = [torch.zeros(16, dtype=torch.uint8)]

        class Autocast(real_autocast):
            def __init__(self, device_type, *args, **options):
                super().__init__("cpu" if device_type == "cuda" else device_type, *args, **options)

        def new_parameter(cls, data=None, requires_grad=True):
            return put(parameter(cls, data, requires_grad), on_device(data))

        def by_device(lists, with_indices=False):
            first = next((t for tensors in lists for t in tensors if t is not None), None)
            groups = grouped(lists, with_indices)
            return {
                (CUDA if on_device(first) else where, dtype): tensors
                for (where, dtype), tensors in groups.items()
            }

        def state_without_place(tensor):  # as it is saved
            state = state_of(tensor)
            if isinstance(state, dict):
                state = {k: v for k, v in state.items() if k != "_on_device"}
            return state

        def called(function):  # in place of what records a CUDA graph
            def replay():
                mode.capturing = True
                try:
                    function()
                finally:
                    mode.capturing = False

            return replay

        replace(torch, "autocast", Autocast)
        replace(torch.nn.Parameter, "__new__", new_parameter)
        replace(torch._C, "_group_tensors_by_device_and_dtype", by_device)
        replace(torch._utils, "_get_obj_state", state_without_place)
        replace(torch.accelerator, "is_available", lambda: False)  # no memory to pin
        replace("training.graph.captured", called)
        replace("training.graph.on_another_stream", lambda function: function())
        for name, value in {
            "is_available": True,
            "device_count": 1,
            "is_bf16_supported": True,
            "mem_get_info": (80e9, 80e9),
            "get_device_name": "a pretended CUDA device",
            "max_memory_allocated": 0,
            "current_device": 0,
            "is_current_stream_capturing": False,
            "manual_seed_all": None,
            "synchronize": None,
        }.items():
            replace(torch.cuda, name, lambda *_, value=value, **__: value)
        replace(torch.cuda, "get_rng_state", lambda *_: rng[0].clone())
        replace(torch.cuda, "set_rng_state", lambda state, *_: rng.__setitem__(0, state))
        with mode:
            yield mode
