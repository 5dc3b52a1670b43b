"""BatchNorm in training: the statistics of the complete batch, over all processes of the run.

PyTorch's SyncBatchNorm is for CUDA only, and there the host waits for the device in each layer, as
it looks for processes without data. Here every process has at least one crop, so that sums are
enough; and it computes on the CPU as well.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

AXES = (0, 2, 3)  # of (B, C, H, W), all but the channels


class BatchNorm(nn.BatchNorm2d):
    """Takes the place of a BatchNorm2d, or of timm's with an activation, and computes the same.

    It has the same parameters and buffers under the same names. num_batches_tracked, which nothing
    reads, stays as it is: on a GPU counting is a launch per layer and step.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        for name in (*norm._parameters, *norm._buffers):
            setattr(self, name, getattr(norm, name))
        self.drop = getattr(norm, "drop", nn.Identity())  # as timm names them
        self.act = getattr(norm, "act", nn.Identity())
        self.train(norm.training)
        self.synchronised = False  # whether several processes share each batch

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        if self.training and self.synchronised:
            average = self.running_mean, self.running_var
            x = OverAllProcesses.apply(x, self.weight, self.bias, *average, self.eps, self.momentum)
        else:
            x = F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum,
                self.eps,
            )
        return self.act(self.drop(x))


class OverAllProcesses(Function):
    """BatchNorm (Ioffe and Szegedy, ICML 2015) of a batch of which each process has a part.

    Count, sum and sum of squares are added up over the processes in float64, in which their
    difference loses nothing that float32 would keep. Parameters get the gradients of this process's
    part, as of every other layer: DistributedDataParallel averages them.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, eps, momentum):
        var, mean = torch.var_mean(x.float(), AXES, correction=0)  # (C,), of this process's part
        mean, var = mean.double(), var.double()
        values = x.numel() // x.shape[1]
        sums = torch.cat([mean, var + mean**2, torch.ones_like(mean[:1])]) * values
        torch.distributed.all_reduce(sums)
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)  # (C,), of the complete batch
        var = square - mean**2

        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
        invstd = (var + eps).rsqrt().float()
        mean, var = mean.float(), var.float()
        ctx.save_for_backward(x, weight, mean, invstd, count.float())
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, mean, invstd, count = ctx.saved_tensors
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, invstd, True, 0.0, [False, True, True]
        )
        sums = torch.cat([of_weight, of_bias])
        torch.distributed.all_reduce(sums)
        of_scale, of_shift = (sums / count).chunk(2)  # (C,), of the complete batch

        # (gradient - of_shift - normalised x * of_scale) * weight * invstd, a line per channel
        by_gradient = weight * invstd
        by_x = -by_gradient * invstd * of_scale
        constant = -by_gradient * of_shift - by_x * mean
        each = (t[None, :, None, None] for t in (constant, by_x, by_gradient))
        constant, by_x, by_gradient = each
        of_x = torch.addcmul(constant, x, by_x).addcmul_(gradient, by_gradient)
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None, None


def use_batch_norm(model: nn.Module) -> nn.Module:
    """The model, with each BatchNorm2d and each BatchNormAct2d of timm replaced, in place."""
    for name, norm in list(model.named_modules()):
        if is_known(norm):
            model.set_submodule(name, BatchNorm(norm))
    return model


def is_known(norm: nn.Module) -> bool:
    """Whether it is a BatchNorm whose arithmetic BatchNorm has."""
    known = type(norm) is nn.BatchNorm2d or type(norm).__name__ == "BatchNormAct2d"
    return known and norm.affine and norm.track_running_stats and norm.momentum is not None


def synchronise(model: nn.Module) -> list[str]:
    """From now on statistics are those of all processes; names of BatchNorms that can't do it."""
    others = []
    for name, norm in model.named_modules():
        if isinstance(norm, BatchNorm):
            norm.synchronised = True
        elif is_batch_norm(norm):
            others.append(name)
    return others


def is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
