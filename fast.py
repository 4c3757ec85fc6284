"""
What makes the model quick and changes nothing else: without it the results would be the same up to rounding.

The cross entropy of the output layer in chunks, Muon for many matrices at once, and for sampling linear layers packed
for a CPU, and a step recorded for a GPU.
"""

import contextlib
import math
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from configurator import first_line, note

# -----------------------------------------------------------------------------
# the loss


def linear_cross_entropy(x, weight, targets):
    """
    Mean cross entropy, in nats, of the logits x @ weight.T. Shapes: x (N, C), weight (V, C), targets (N,); a target of
    -1 is ignored.

    All logits together, (N, V), would be most of a small model's memory. Here each chunk of rows is done with before
    the next begins: its gradients are computed together with its loss. Source: Liger Kernel (Hsu et al., 2024) and
    "Cut Your Losses" (Wijmans et al., 2024).
    """
    return LinearCrossEntropy.apply(x, weight, targets, torch.is_grad_enabled())


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, with_gradients):
        keep = (targets >= 0).unsqueeze(1)  # (N, 1)
        count = keep.sum().clamp(min=1)
        dx, dweight = torch.empty_like(x) if with_gradients else None, None
        cast = weight.to(F.linear(x[:0], weight[:0]).dtype)  # autocast's, if it is on
        rows, loss = chunk_rows(x.device), 0.0
        for i in range(0, len(x), rows):
            chunk, mask, target = x[i : i + rows].to(cast.dtype), keep[i : i + rows], targets[i : i + rows, None]
            chunk_loss, dlogits = loss_of_chunk(chunk, cast, target.clamp(min=0), mask, with_gradients)
            loss = loss + chunk_loss
            if with_gradients:
                dx[i : i + rows] = (dlogits @ cast) * mask
                dweight = add_product(dweight, dlogits.T, chunk * mask, weight.dtype)
            del dlogits  # before those of the next chunk take as much memory
        ctx.save_for_backward(dx, None if dweight is None else dweight.to(weight.dtype), count)
        return loss / count

    @staticmethod
    def backward(ctx, grad):
        dx, dweight, count = ctx.saved_tensors
        grad = grad / count
        return dx * grad, dweight * grad, None, None


def chunk_rows(device):
    """How many rows make a chunk: each reads all of the weight, so many are quicker, up to what fits a CPU's cache."""
    return 384 if device.type == "cpu" else 4096


def loss_of_chunk(chunk, weight, target, mask, with_gradients):
    """
    The summed loss of a chunk's rows, and its gradient by the logits chunk @ weight.T, (rows, V), if that is wanted.
    Dividing by the number of targets waits until backward, because float16 would round such small numbers to zero.
    """
    dtype, shape = weight.dtype, (len(chunk), len(weight))
    exact = torch.promote_types(dtype, torch.float32)
    logits = torch.mm(chunk, weight.T, out=reused_buffer("logits", shape, dtype, chunk.device))
    probs = torch.softmax(logits, -1, dtype=exact, out=reused_buffer("probs", shape, exact, chunk.device))
    # -log(probs) of the target, computed from the likeliest token: its probability cannot round to zero
    below_max = logits.amax(dim=-1, keepdim=True).to(exact) - logits.gather(1, target)
    loss = ((below_max - probs.amax(dim=-1, keepdim=True).log()) * mask).sum()
    if not with_gradients:
        return loss, None
    probs = minus_one_hot(probs, target)
    return loss, probs if dtype == exact else logits.copy_(probs)


def minus_one_hot(probs, target):
    """probs - one_hot(target), in place if possible. Shapes: probs (rows, V), target (rows, 1)."""
    if torch.compiler.is_compiling():  # scattering would keep it from making probs and its product in one go
        return probs - (torch.arange(probs.shape[1], device=probs.device) == target).to(probs.dtype)
    return probs.scatter_add_(1, target, -torch.ones_like(probs[:, :1]))


buffers = {}


def reused_buffer(name, shape, dtype, device):
    """
    An uninitialized matrix to write into. On a CPU, calls with the same name share one buffer: letting the kernel
    allocate and zero it at each call costs 25% of a laptop step. None on a GPU, where torch's allocator reuses memory.
    """
    if device.type != "cpu" or torch.compiler.is_compiling():
        return None
    buffer = buffers.get(name)
    if buffer is None or buffer.dtype != dtype or buffer.shape[1] != shape[1] or len(buffer) < shape[0]:
        with torch.inference_mode(False):
            buffer = buffers[name] = torch.empty(shape, dtype=dtype)
    return buffer[: shape[0]]


def add_product(total, a, b, dtype):
    """
    total + a @ b, in place if possible. `total` is None at the first call. As dtype, or in float32 where a GPU adds to
    that: a sum in bfloat16 loses digits, and one in float16 may overflow.
    """
    if not torch.compiler.is_compiling() and adds_to_float32(a.dtype, a.device):
        if total is None:
            return torch.mm(a, b, out_dtype=torch.float32)
        return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    if a.dtype == torch.float16 != dtype:  # a product of thousands of rows may exceed 65504, a 64th of it does not
        product = (a @ (b / 64)).to(dtype) * 64
        return product if total is None else total.add_(product)
    if total is None:
        return (a @ b).to(dtype)
    return total.addmm_(a, b) if total.dtype == a.dtype else total.add_(a @ b)


@cache
def adds_to_float32(dtype, device):
    """Whether a device adds products of low precision to a matrix in float32, as some GPUs do. Tried once."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        a = torch.full((16, 16), 255.0, dtype=dtype, device=device)  # whose sums bfloat16 would round
        total = torch.mm(a, a, out_dtype=torch.float32)
        torch.addmm(total, a, a, out_dtype=torch.float32, out=total)
        return bool((total == 2 * 16 * 255**2).all())  # more than float16 holds
    except (RuntimeError, TypeError):
        return False


# -----------------------------------------------------------------------------
# the optimizer

STACK = 2**24  # elements of the matrices that are orthogonalized together, at most


class Muon(torch.optim.Muon):
    """
    torch.optim.Muon, with its options, its state, and its parameters up to the rounding of batched products. Matrices
    of equal sizes are orthogonalized together, tall ones transposed: 45 products for four blocks instead of 240.

    A step takes up to 16 bytes for each element of its largest stack: 256 MiB, or what one larger matrix needs.
    """

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            alike = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(tuple(sorted(p.shape)), []).append(p)
            for params in alike.values():
                count = max(STACK // params[0].numel(), 1)
                for i in range(0, len(params), count):
                    self.update(params[i : i + count], group)
        return loss

    def update(self, params, group):
        """Update parameters that are all (R, C) or (C, R)."""
        lr, momentum, original = float(group["lr"]), group["momentum"], group["adjust_lr_fn"] != "match_rms_adamw"
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        grads, means = [p.grad for p in params], [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(means, grads, 1 - momentum)
        directions = torch._foreach_lerp(grads, means, momentum) if group["nesterov"] else means
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        matrices = orthogonalize(directions, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for p, matrix in zip(params, matrices):
            rows, columns = p.shape
            scale = math.sqrt(max(1, rows / columns)) if original else 0.2 * math.sqrt(max(rows, columns))
            p.add_(matrix, alpha=-lr * scale)


def orthogonalize(matrices, coefficients, steps, eps):
    """
    The orthogonal matrix next to each of the matrices, (R, C) or (C, R), roughly and in bfloat16: a polynomial moves
    their singular values towards 1 (Newton-Schulz iterations; Jordan et al., 2024).
    """
    a, b, c = coefficients
    x = torch.stack([m.T if m.shape[0] > m.shape[1] else m for m in matrices]).bfloat16()  # (n, R, C), R <= C
    x /= torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps)  # no singular value is above 1
    for _ in range(steps):
        gram = x @ x.mT  # (n, R, R)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return [y.T if m.shape[0] > m.shape[1] else y for m, y in zip(matrices, x)]


# -----------------------------------------------------------------------------
# linear layers for sampling on a CPU


class PackedLinear(nn.Module):
    """
    A trained linear layer, (..., in) to (..., out), with its weights in oneDNN's own order. The products are the same
    to rounding, and a few rows take a half to a quarter of the time. The operators are those of torch.compile's
    `freezing`. Raises AttributeError or RuntimeError where there is no oneDNN for the device or the dtype.
    """

    def __init__(self, linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack(model):
    """
    Replace a model's linear layers by packed ones. It then writes faster, and can be neither trained nor saved. Nothing
    changes on a GPU, nor where torch has no oneDNN for the CPU or the weights' dtype.
    """
    linears = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    ]
    _, _, last = linears[-1]
    try:
        PackedLinear(last)(last.weight.new_zeros(1, last.in_features))
    except (AttributeError, RuntimeError):
        return
    for module, name, linear in linears:
        setattr(module, name, PackedLinear(linear))


# -----------------------------------------------------------------------------
# a step recorded for sampling on CUDA

LEAST_TOKENS = 50  # recording takes about as long as four, and takes away the memory that a training keeps
captures = {"made": 0, "failed": 0}  # of this process


def worth_capturing(device, tokens):
    """Whether a step for so many tokens should be `captured`. Not once that has failed: it would fail again."""
    return device.type == "cuda" and tokens >= LEAST_TOKENS and not captures["failed"]


def captured(step, *inputs):
    """
    A function of tensors like the `inputs`, which does as step(*inputs) does: recorded as a CUDA graph, one launch in
    place of hundreds. None, with a note, where that fails.

    Only the inputs may change from call to call. The step should never wait for the GPU, and do no harm when it is
    called twice. What it returns lies in the same memory at each call.
    """
    buffers = [x.clone() for x in inputs]
    try:
        graph, output = record(lambda: step(*buffers), buffers[0].device)
    except Exception as failure:  # an old driver, no memory left, an operation that cannot be recorded
        captures["failed"] += 1
        reason = first_line(failure.__context__ or failure)  # the recording's end fails after what failed in it
        note(f"note: sampling goes on without a CUDA graph, slower: {reason}")
        clean_up_capture(buffers[0].device)
        return None
    captures["made"] += 1

    def replay(*inputs):
        for buffer, x in zip(buffers, inputs):
            buffer.copy_(x)
        graph.replay()
        return output

    return replay


def record(step, device):
    """The CUDA graph of step(), and what step() returned: with each `replay` of the graph it has new values."""
    # a stream of its own: the graphs of one stream share cuBLAS's memory, which the first that is gone takes along
    side, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        step()  # loads its kernels and libraries, which cannot be recorded
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            output = step()
        graph.replay()  # if this fails, then here
    torch.cuda.current_stream(device).wait_stream(side)
    return graph, output


def clean_up_capture(device):
    """After a capture that failed: wait for what it has begun, and have torch draw random numbers again."""
    with contextlib.suppress(Exception):
        torch.cuda.synchronize(device)
        generator = torch.cuda.default_generators[device.index]
        generator.graphsafe_set_state(generator.clone_state())  # the old one may still be marked as being captured
