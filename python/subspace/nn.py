"""Layers of single-neuron experts for any PyTorch model: PEER (stored) and ETHOS (generated).

    layer = subspace.nn.Ethos(dim=1024, experts=512 * 512)
    y = layer(x)                                  # x, y [..., dim], in place of a feed-forward layer

Both train under torch.autocast and torch.compile; widths are multiples of 32.
"""

import math

import torch
from torch import nn

from . import ops

# E[gelu(u)^2] of a standard normal u: what a generated hidden unit carries.
GELU_SQUARE = 0.4252


def wide(tensor):
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def kernels_norm(norm):
    """Whether the kernels do all that this module does: a plain BatchNorm1d, without hooks."""
    hooks = (norm._forward_hooks, norm._forward_pre_hooks, norm._backward_hooks, norm._backward_pre_hooks)
    return (
        type(norm) is nn.BatchNorm1d
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and not any(hooks)
    )


class ProductKeyRouter(nn.Module):
    """Chooses experts: for each head the k best of n^2 = experts pairs of sub-keys.

        q = norm(x Wq + b), in halves q1, q2 for each head
        s1 = q1 K1^T, s2 = q2 K2^T;  the k largest s1[a] + s2[b];  expert a n + b

    dim          width of the tokens
    experts      how many experts, a square
    heads, k     selections: heads times k a token; k at most 64 and at most n
    query_dim    width of a head's query, even
    query_norm   "batch" (over tokens, as in PEER and ETHOS) or None

    forward(x [tokens, dim]) -> scores [tokens, heads, k] float32, softmax over k; index, int64.
    Sub-keys are shared by the heads, and normal with variance 2 / query_dim: scores of normalised
    queries then have variance 1 on each side.
    """

    def __init__(self, dim, experts, heads=8, k=16, query_dim=256, query_norm="batch"):
        super().__init__()
        _check_counts(dim=dim, experts=experts, heads=heads, k=k, query_dim=query_dim)
        side = math.isqrt(experts)
        if side > 32768:
            raise ValueError(f"experts is {experts}; expected up to {32768**2}, 32768 keys a side")
        if side * side != experts:
            raise ValueError(
                f"experts is {experts}, which is no square; near it are {side**2} and {(side + 1) ** 2}"
            )
        if not 1 <= k <= min(side, 64):
            raise ValueError(f"k is {k}; expected 1 to {min(side, 64)} (64, or the {side} keys of a side)")
        if query_dim % 2 or query_dim < 2:
            raise ValueError(f"query_dim is {query_dim}; expected an even number (two halves)")
        if query_norm not in ("batch", None):
            raise ValueError(f"query_norm is {query_norm!r}; expected 'batch' or None")
        self.heads, self.k = heads, k
        self.query = nn.Linear(dim, heads * query_dim)
        self.norm = nn.BatchNorm1d(heads * query_dim) if query_norm else nn.Identity()
        self.keys = nn.Parameter(torch.randn(2, side, query_dim // 2) * (query_dim / 2) ** -0.5)

    def forward(self, x):
        first, second = self.halves(self.query(x))
        return ops.product_key_topk(
            first @ self.keys[0].T, second @ self.keys[1].T, self.k, softmax=True
        )

    def halves(self, queries):
        """Both halves of every head's query, normalised: [tokens, heads, query_dim / 2] each."""
        norm = self.norm
        if not kernels_norm(norm):
            return norm(queries).unflatten(1, (self.heads, 2, -1)).unbind(2)
        mean, variance = norm.running_mean, norm.running_var
        if norm.training:
            tokens = queries.shape[0]
            if tokens < 2:
                raise ValueError(f"batch norm in training needs 2 tokens or more; there are {tokens}")
            mean, variance = ops.column_moments(queries.detach())
            with torch.no_grad():
                norm.num_batches_tracked += 1
                norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
                unbiased = variance * (tokens / (tokens - 1))
                norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
        kept = (wide(tensor) for tensor in (norm.weight, norm.bias, mean, variance))
        return ops.batch_norm_halves(queries, *kept, self.heads, norm.eps, norm.training)


class _Experts(nn.Module):
    """What both layers share: any leading axes, routing, heads side by side."""

    def __init__(self, dim, experts, heads, k, query_dim, query_norm):
        super().__init__()
        self.dim, self.heads = dim, heads
        self.router = ProductKeyRouter(dim, experts, heads, k, query_dim, query_norm)

    def forward(self, x):
        if x.shape[-1] != self.dim:
            raise ValueError(f"x has the shape {list(x.shape)}; expected [..., {self.dim}]")
        tokens = x.reshape(-1, self.dim)
        scores, index = self.router(tokens)
        y = self.experts(tokens, scores.flatten(1), index.flatten(1))
        return y.reshape(x.shape)


class PEER(_Experts):
    """Parameter-efficient expert retrieval: y = sum_j gelu(down_e(j) . x) s_j up_e(j).

    dim is a multiple of 32 up to 4096; the other arguments are ProductKeyRouter's. Stores 2 experts
    dim parameters. down is normal with variance 1 / dim (a unit token gives unit activations), up
    with variance 1 / heads. Source: He, "Mixture of a Million Experts" (2024).
    """

    def __init__(self, dim, experts=256 * 256, heads=8, k=16, query_dim=256, query_norm="batch"):
        super().__init__(dim, experts, heads, k, query_dim, query_norm)
        _check_width("dim", dim, 4096)
        if heads * k > 4096:
            raise ValueError(f"heads {heads} times k {k} are {heads * k} experts a token; expected up to 4096")
        self.down = nn.Parameter(torch.randn(experts, dim) * dim**-0.5)
        self.up = nn.Parameter(torch.randn(experts, dim) * heads**-0.5)

    def experts(self, x, scores, index):
        return ops.stored_experts(x, scores, index, self.down, self.up)


class Ethos(_Experts):
    """Generated experts: h_e = gelu(z_e W1), y = sum_j gelu(h_e . x W_u) s_j h_e W_v / heads.

    dim           any
    latent_dim    d_l, parameters stored for each expert
    hidden_dim    d_h, width of the generated vectors: a multiple of 32 up to 1024
    latent_range  deviation of the latents' first values; W1's is its inverse over sqrt(d_l), so that
                  it changes no expert, but how fast AdamW, whose steps are as large whatever they
                  change, moves latents
    and the arguments of ProductKeyRouter.

    Stores experts latent_dim parameters and three small matrices. z W1 begins standard normal, W_u
    and W_v such that unit tokens give unit activations h . x W_u, and unit outputs of a single
    selection with weight and activation one (the paper is silent on this).
    Source: Medford et al., "ETHOS" (2025).
    """

    def __init__(self, dim, experts=512 * 512, latent_dim=128, hidden_dim=512, heads=8, k=16,
                 query_dim=512, query_norm="batch", latent_range=1.0):  # fmt: skip
        super().__init__(dim, experts, heads, k, query_dim, query_norm)
        _check_counts(latent_dim=latent_dim)
        _check_width("hidden_dim", hidden_dim, 1024)
        power = GELU_SQUARE * hidden_dim
        if not 0 < latent_range < math.inf:
            raise ValueError(f"latent_range is {latent_range}; expected a number above 0")
        self.z = nn.Parameter(torch.randn(experts, latent_dim) * latent_range)
        self.w1 = nn.Parameter(torch.randn(latent_dim, hidden_dim) * latent_dim**-0.5 / latent_range)
        self.w_u = nn.Parameter(torch.randn(dim, hidden_dim) * (dim * power) ** -0.5)
        self.w_v = nn.Parameter(torch.randn(hidden_dim, dim) * power**-0.5)

    def experts(self, x, scores, index):
        return ops.ethos_layer(x, scores, index, self.z, self.w1, self.w_u, self.w_v, self.heads)


def _check_counts(**counts):
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} is {count!r}; expected a whole number from 1")


def _check_width(name, width, most):
    if width % 32 or not 32 <= width <= most:
        raise ValueError(f"{name} is {width}; expected a multiple of 32 up to {most}")
