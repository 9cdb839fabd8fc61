"""torch.ops.subspace and subspace.nn against the equations in plain PyTorch, float64."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from subspace import nn, ops

GELU = torch.nn.functional.gelu
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]
TYPES = [torch.float32, torch.bfloat16]
on_devices = pytest.mark.parametrize("device", DEVICES)
on_types = pytest.mark.parametrize("dtype", TYPES, ids=["f32", "bf16"])


def ethos_reference(xp, scores, index, z, w1):
    h = GELU(z @ w1)[index]
    a = GELU(torch.einsum("tsi,ti->ts", h, xp)) * scores
    return torch.einsum("ts,tsi->ti", a, h)


def layer_reference(x, scores, index, z, w1, w_u, w_v, heads):
    """The naive order: both d-wide vectors of every selection."""
    h = GELU(z @ w1)[index]
    read, write = h @ w_u.T, h @ w_v
    a = GELU(torch.einsum("tsd,td->ts", read, x)) * scores
    return torch.einsum("ts,tsd->td", a, write) / heads


def stored_reference(x, scores, index, down, up):
    a = GELU(torch.einsum("tsd,td->ts", down[index], x)) * scores
    return torch.einsum("ts,tsd->td", a, up[index])


def topk_reference(s1, s2, k, softmax):
    sums = (s1[..., :, None] + s2[..., None, :]).flatten(-2)
    scores, index = sums.sort(dim=-1, descending=True, stable=True)
    scores = scores[..., :k]
    return (scores.softmax(-1) if softmax else scores), index[..., :k]


def norm_reference(x, weight, bias, mean, variance, heads, eps, of_batch):
    if of_batch:
        mean, variance = x.mean(0), x.var(0, unbiased=False)
    y = (x - mean) / (variance + eps).sqrt() * weight + bias
    return y.unflatten(1, (heads, 2, -1)).unbind(2)


def moments_reference(x):
    return x.mean(0), x.var(0, unbiased=False)


def normal(*sizes, scale=1.0, device="cpu", dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * sum(sizes))
    values = torch.randn(*sizes, generator=generator) * scale
    return values.to(dtype).to(device).requires_grad_()


def chosen(tokens, selections, experts, device, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(experts, (tokens, selections), generator=generator).to(device)


# name -> (operator, reference, arguments). `experts` above four times the selections makes the
# operator generate the chosen experts alone.
def experts_arguments(device, dtype, tokens=37, selections=12, experts=100, d_l=24, d_h=96):
    like = {"device": device, "dtype": dtype}
    return (
        normal(tokens, d_h, seed=1, **like),
        normal(tokens, selections, scale=0.3, device=device, seed=2),
        chosen(tokens, selections, experts, device),
        normal(experts, d_l, seed=4, **like),
        normal(d_l, d_h, scale=(d_l * d_h) ** -0.5, seed=5, **like),
    )


def layer_arguments(device, dtype, d=40, heads=3, **sizes):
    xp, scores, index, z, w1 = experts_arguments(device, dtype, **sizes)
    like = {"device": device, "dtype": dtype}
    tokens, d_h = xp.shape
    return (
        normal(tokens, d, seed=6, **like),
        scores,
        index,
        z,
        w1,
        normal(d, d_h, scale=d**-0.5, seed=7, **like),
        normal(d_h, d, scale=d_h**-0.5, seed=8, **like),
        heads,
    )


def stored_arguments(device, dtype, tokens=37, selections=12, experts=100, d=96):
    like = {"device": device, "dtype": dtype}
    return (
        normal(tokens, d, seed=1, **like),
        normal(tokens, selections, scale=0.3, device=device, seed=2),
        chosen(tokens, selections, experts, device),
        normal(experts, d, scale=d**-0.5, seed=4, **like),
        normal(experts, d, seed=5, **like),
    )


CASES = {
    "experts": (ops.ethos_experts, ethos_reference, experts_arguments, {}),
    "experts, few": (ops.ethos_experts, ethos_reference, experts_arguments,
                     {"tokens": 5, "experts": 700}),
    "layer": (ops.ethos_layer, layer_reference, layer_arguments, {}),
    "layer, few": (ops.ethos_layer, layer_reference, layer_arguments,
                   {"tokens": 3, "experts": 700}),
    "stored": (ops.stored_experts, stored_reference, stored_arguments, {}),
}  # fmt: skip
on_cases = pytest.mark.parametrize("name", CASES)


def floating(arguments):
    return [a for a in arguments if isinstance(a, torch.Tensor) and a.is_floating_point()]


def doubled(arguments):
    def one(a):
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            return a.detach().double().requires_grad_()
        return a

    return [one(a) for a in arguments]


def within(got, want, dtype, depth, what):
    """|got - want| in the root mean square, relative to want's: each rounding to storage adds at
    most its half unit v, products of `depth` terms float32's, and up to twelve values on the way
    are stored (z W1, h, xp, acc, their gradients and the weights)."""
    v = 2.0**-24 if dtype == torch.float32 else 2.0**-9
    bound = 12 * v + (depth + 2) * 2.0**-24 + 4e-7 * 4
    error = (got.double() - want).norm() / max(want.norm().item(), 1e-300)
    assert error <= bound, f"{what}: relative error {error:.2e}, bound {bound:.2e}"


@on_devices
@on_types
@on_cases
def test_forward_and_gradients(name, dtype, device):
    operator, reference, make, sizes = CASES[name]
    arguments = make(device, dtype, **sizes)
    exact = doubled(arguments)
    y, want = operator(*arguments), reference(*exact)
    assert y.dtype == dtype and y.shape == want.shape
    within(y, want, dtype, 700, "forward")
    grad = normal(*y.shape, device=device, dtype=dtype, seed=9).detach()
    grads = torch.autograd.grad(y, floating(arguments), grad)
    wants = torch.autograd.grad(want, floating(exact), grad.double())
    for i, (got, wanted, argument) in enumerate(zip(grads, wants, floating(arguments))):
        assert got.dtype == argument.dtype and got.shape == argument.shape
        within(got, wanted, dtype, 700, f"gradient of floating argument {i}")


@on_devices
@on_types
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("side, k", [(8, 8), (50, 16), (512, 16), (70, 64)])
def test_topk(softmax, side, k, dtype, device):
    s1 = normal(7, 3, side, device=device, dtype=dtype, seed=1)
    s2 = normal(7, 3, side, device=device, dtype=dtype, seed=2)
    exact = doubled((s1, s2))
    scores, index = ops.product_key_topk(s1, s2, k, softmax)
    # Every score is its index's sum, and as good as the best there are.
    sums = (s1.double()[..., :, None] + s2.double()[..., None, :]).flatten(-2)
    want, _ = topk_reference(*exact, k, softmax)
    assert scores.dtype == torch.float32 and index.dtype == torch.int64
    assert index.flatten(0, 1).sort(-1).values.diff(dim=-1).min() > 0
    of_index = sums.gather(-1, index)
    if softmax:
        of_index = of_index.softmax(-1)
    for expected in (want, of_index):
        assert not (scores - expected).abs().max() > 4e-7 * max(1, expected.abs().max())
    grad = normal(7, 3, k, device=device, seed=3).detach()
    got = torch.autograd.grad(scores, (s1, s2), grad)
    for g, w in zip(got, torch.autograd.grad(want, exact, grad.double())):
        assert g.dtype == dtype
        within(g, w, dtype, k, "gradient of a side")


def norm_arguments(device, dtype, tokens=37, heads=3, half=8, of_batch=True):
    x = normal(tokens, heads * 2 * half, scale=2, device=device, dtype=dtype, seed=1)
    weight, bias = (normal(x.shape[1], device=device, seed=seed) for seed in (2, 3))
    mean, variance = moments_reference(x.detach().float())
    if not of_batch:
        mean, variance = mean + 0.3, variance * 1.7
    return x, weight, bias, mean, variance, heads, 1e-5, of_batch


@on_devices
@on_types
@pytest.mark.parametrize("of_batch", [True, False])
@pytest.mark.parametrize("half", [8, 5])
def test_batch_norm_halves(half, of_batch, dtype, device):
    arguments = norm_arguments(device, dtype, half=half, of_batch=of_batch)
    exact = doubled(arguments)
    got, want = ops.batch_norm_halves(*arguments), norm_reference(*exact)
    for side in (0, 1):
        assert got[side].is_contiguous()
        within(got[side], want[side], dtype, 700, f"side {side}")
    scale = normal(*got[0].shape, device=device, dtype=dtype, seed=9).detach()
    # The two sides weighed differently: a gradient that takes one for the other shows.
    grads = [torch.autograd.grad((a * scale).sum() + (b * b).sum(), of[:3])
             for (a, b), of in ((got, arguments), (want, exact))]  # fmt: skip
    for name, mine, wanted, argument in zip(("x", "weight", "bias"), *grads, arguments):
        assert mine.dtype == argument.dtype
        within(mine, wanted, dtype, 2000, name)


@on_devices
@on_types
def test_column_moments_are_those_of_batch_norm(dtype, device):
    x = normal(300, 40, scale=3, device=device, dtype=dtype).detach() + 2
    mean, variance = ops.column_moments(x)
    for got, want in zip((mean, variance), moments_reference(x.double())):
        within(got, want, torch.float32, 300, "moments")
    # The module's running estimates are PyTorch's.
    router = nn.ProductKeyRouter(16, experts=64, heads=5, k=2, query_dim=8).to(device)
    oracle = torch.nn.BatchNorm1d(40).to(device)
    for _ in range(3):
        first, second = router.halves(x.float())
        y = oracle(x.float())
    within(torch.stack((first, second), 2).flatten(1), y.double(), torch.float32, 700, "training")
    for name, buffer in oracle.named_buffers():
        within(getattr(router.norm, name), buffer.double(), torch.float32, 700, name)
    router.eval(), oracle.eval()
    y = oracle(x.float()).double()
    within(torch.stack(router.halves(x.float()), 2).flatten(1), y, torch.float32, 700, "evaluation")
    with pytest.raises(ValueError, match="2 tokens or more; there are 1"):
        router.train().halves(x[:1].float())


@on_devices
def test_topk_ties_take_the_smaller_index(device):
    s1 = torch.tensor([[[1.0, 2.0, 2.0, 0.0]]], device=device)
    s2 = torch.tensor([[[0.0, 1.0, 1.0, 1.0]]], device=device)
    scores, index = ops.product_key_topk(s1, s2, 4)
    assert index.tolist() == [[[5, 6, 7, 9]]] and scores.tolist() == [[[3.0] * 4]]
    everywhere = torch.zeros(2, 3, 40, device=device)
    _, index = ops.product_key_topk(everywhere, everywhere, 16)
    assert (index == torch.arange(16, device=device)).all()


@on_devices
@on_cases
def test_properties(name, device):
    operator, _, make, sizes = CASES[name]
    arguments = list(make(device, torch.float32, **sizes))
    with torch.no_grad():
        y = operator(*arguments)
        assert torch.equal(y, operator(*arguments))  # the same bits
        order = torch.randperm(arguments[1].shape[1]).to(device)
        shuffled = arguments.copy()
        shuffled[1], shuffled[2] = arguments[1][:, order], arguments[2][:, order]
        within(operator(*shuffled), y.double(), torch.float32, 700, "another order")
        twice = arguments.copy()
        twice[1] = arguments[1].repeat(1, 2)
        twice[2] = arguments[2].repeat(1, 2)
        within(operator(*twice), 2 * y.double(), torch.float32, 700, "every expert twice")
        nothing = arguments.copy()
        nothing[1] = torch.zeros_like(arguments[1])
        assert (operator(*nothing) == 0).all()


@on_devices
@on_cases
def test_gradients_have_the_same_bits(name, device):
    operator, _, make, sizes = CASES[name]
    arguments = make(device, torch.bfloat16, **sizes)
    runs = [torch.autograd.grad(operator(*arguments).sum(), floating(arguments)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@on_devices
@on_cases
def test_empty_batch(name, device):
    operator, _, make, sizes = CASES[name]
    arguments = make(device, torch.float32, **{**sizes, "tokens": 0})
    y = operator(*arguments)
    assert y.shape == arguments[0].shape
    grads = torch.autograd.grad(y.sum(), floating(arguments))
    assert all((g == 0).all() for g in grads)
    scores, index = ops.product_key_topk(
        torch.zeros(0, 2, 8, device=device), torch.zeros(0, 2, 8, device=device), 3
    )
    assert scores.shape == index.shape == (0, 2, 3)


@on_devices
@on_cases
def test_strides_and_alignment(name, device):
    operator, _, make, sizes = CASES[name]
    arguments = make(device, torch.float32, **sizes)
    y = operator(*arguments)

    def displaced(a):
        if not isinstance(a, torch.Tensor):
            return a
        shifted = torch.empty(a.numel() + 1, dtype=a.dtype, device=device)[1:].view(a.shape)
        return shifted.copy_(a.detach())

    def transposed(a):
        return a.detach().t().contiguous().t() if isinstance(a, torch.Tensor) else a

    for change in (displaced, transposed):
        within(operator(*map(change, arguments)), y.double(), torch.float32, 700, change.__name__)


@on_devices
@on_types
@pytest.mark.parametrize("name", ["experts, few", "layer, few", "stored"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_few_tokens_without_gradients(tokens, name, dtype, device):
    """Nothing to keep for a backward pass: other ways of generating and of summing, the same sums."""
    operator, reference, make, sizes = CASES[name]
    arguments = make(device, dtype, **{**sizes, "tokens": tokens, "selections": 37})
    arguments[2][0, 1] = arguments[2][0, 0]  # an expert chosen twice
    want = reference(*doubled(arguments))
    within(operator(*arguments), want, dtype, 700, "with gradients")
    with torch.no_grad():
        within(operator(*arguments), want, dtype, 700, "without")
        torch._dynamo.reset()
        compiled = torch.compile(operator, backend="aot_eager", fullgraph=True)
        within(compiled(*arguments), want, dtype, 700, "compiled")
    arguments[2][-1, 3] = -1
    if device == "cpu":
        with torch.no_grad(), pytest.raises(IndexError, match="index holds -1"):
            operator(*arguments)
    else:
        with torch.no_grad():
            y = operator(*arguments)
        assert y[-1].isnan().all() and y[:-1].isfinite().all()


def test_what_kept_nothing_has_no_gradient():
    arguments = experts_arguments("cpu", torch.float32, tokens=3, experts=700)
    acc, *_ = torch.ops.subspace.ethos_experts_forward(*arguments, for_backward=False)
    with pytest.raises(ValueError, match="for_backward was false"):
        acc.sum().backward()


@on_devices
@on_cases
def test_opcheck(name, device):
    operator, _, make, sizes = CASES[name]
    torch.library.opcheck(operator.default, make(device, torch.float32, **sizes))


@on_devices
def test_opcheck_of_the_rest(device):
    s1 = normal(5, 2, 9, device=device, seed=1)
    s2 = normal(5, 2, 9, device=device, seed=2)
    for softmax in (False, True):
        torch.library.opcheck(ops.product_key_topk.default, (s1, s2, 4, softmax))
    torch.library.opcheck(ops.column_moments.default, (normal(9, 6, device=device),))
    for of_batch in (False, True):
        norm = norm_arguments(device, torch.float32, of_batch=of_batch)
        torch.library.opcheck(ops.batch_norm_halves.default, norm)
    inner = torch.ops.subspace
    with torch.no_grad():
        x, weight, _, mean, variance, *rest = norm
        first, second = ops.batch_norm_halves(*norm)
        torch.library.opcheck(
            inner.batch_norm_halves_backward.default,
            (first, second, x.detach(), weight.detach(), mean, variance, *rest[1:]),
        )
        scores, index = ops.product_key_topk(s1, s2, 4, True)
        side = (scores, index, scores, 9, torch.float32)
        torch.library.opcheck(inner.product_key_topk_backward.default, side)
        for sizes in ({}, {"tokens": 3, "experts": 700}):
            arguments = [a.detach() for a in experts_arguments(device, torch.float32, **sizes)]
            acc, p, pre, table = inner.ethos_experts_forward(*arguments)
            torch.library.opcheck(
                inner.ethos_experts_backward.default, (acc, *arguments, p, pre, table)
            )
        arguments = [a.detach() for a in stored_arguments(device, torch.float32)]
        y, p = inner.stored_experts_forward(*arguments)
        torch.library.opcheck(inner.stored_experts_backward.default, (y, *arguments, p))
    torch.library.opcheck(
        inner.ethos_experts_forward.default, experts_arguments(device, torch.float32)
    )
    few = [a.detach() for a in experts_arguments(device, torch.float32, tokens=3, experts=700)]
    torch.library.opcheck(inner.ethos_experts_forward.default, (*few, False))
    torch.library.opcheck(
        inner.stored_experts_forward.default, stored_arguments(device, torch.float32)
    )


@on_devices
@pytest.mark.parametrize("name", ["layer", "stored"])
def test_no_second_derivatives(name, device):
    operator, _, make, sizes = CASES[name]
    arguments = make(device, torch.float32, **sizes)
    (first,) = torch.autograd.grad(operator(*arguments).sum(), arguments[1], create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        first.sum().backward()


LAYERS = {
    "Ethos": lambda: nn.Ethos(48, experts=144, latent_dim=16, hidden_dim=64, heads=2, k=4,
                              query_dim=16),
    "PEER": lambda: nn.PEER(64, experts=144, heads=2, k=4, query_dim=16),
}  # fmt: skip
on_layers = pytest.mark.parametrize("name", LAYERS)


def layer(name, device="cpu"):
    torch.manual_seed(11)
    return LAYERS[name]().to(device)


@on_devices
@on_layers
def test_module_equals_the_equations_and_finite_differences(name, device, monkeypatch):
    """Through the router to every parameter: float32 against the same module in float64 with the
    operators' equations in their place, and that one's gradients against differences of its loss."""
    module = layer(name, device).eval()
    x = normal(3, 7, module.dim, device=device).detach()
    target = normal(3, 7, module.dim, device=device, seed=5).detach()
    y = module(x)
    (y * target).sum().backward()

    exact = copy.deepcopy(module).double()
    exact.zero_grad()
    monkeypatch.setattr(ops, "product_key_topk", topk_reference)
    monkeypatch.setattr(ops, "column_moments", moments_reference)
    monkeypatch.setattr(ops, "batch_norm_halves", norm_reference)
    monkeypatch.setattr(ops, "ethos_layer", layer_reference)
    monkeypatch.setattr(ops, "stored_experts", stored_reference)

    def loss():
        return (exact(x.double()) * target).sum()

    loss().backward()
    within(y, exact(x.double()), torch.float32, 700, "output")
    for (parameter_name, parameter), wanted in zip(module.named_parameters(), exact.parameters()):
        within(parameter.grad, wanted.grad, torch.float32, 700, parameter_name)
        direction, step = wanted.grad / wanted.grad.norm(), 1e-7
        with torch.no_grad():
            wanted.add_(direction, alpha=step)
            above = loss()
            wanted.sub_(direction, alpha=2 * step)
            below = loss()
            wanted.add_(direction, alpha=step)
        slope = (above - below).item() / (2 * step)
        assert abs(slope - wanted.grad.norm().item()) <= 1e-5 * abs(slope), parameter_name


@on_devices
@on_layers
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_equals_eager(name, backend, device):
    module = layer(name, device).train()
    x = normal(2, 9, module.dim, device=device)
    torch._dynamo.reset()
    results, estimates, state = [], [], copy.deepcopy(module.state_dict())
    for run in (module, torch.compile(module, fullgraph=True, backend=backend)):
        module.zero_grad()
        y = run(x)
        (grad,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
        y.square().sum().backward()
        results.append([y, grad] + [p.grad.clone() for p in module.parameters()])
        estimates.append([b.clone() for b in module.buffers()])
        module.load_state_dict(state)
    for got, want in zip(results[1], results[0]):
        # 1e-6 of the largest: a bias before a batch norm has a gradient of nothing but rounding.
        scale = max(want.abs().max().item(), results[0][1].abs().max().item())
        assert not (got - want).abs().max() > 2e-5 * scale
    for got, want in zip(*estimates):
        assert torch.allclose(got.float(), want.float(), atol=1e-6)


@on_devices
@on_layers
def test_autocast(name, device):
    module = layer(name, device)
    x = normal(2, 9, module.dim, device=device)
    exact = module(x)
    with torch.autocast(device, torch.bfloat16):
        y = module(x)
        assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad.dtype == torch.float32, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    # The router's bfloat16 scores may choose other experts, so only the operator is compared.
    operator, _, make, _ = CASES["layer" if name == "Ethos" else "stored"]
    arguments = make(device, torch.float32)
    with torch.autocast(device, torch.bfloat16):
        low = operator(*arguments)
        torch.autograd.grad(low.float().sum(), floating(arguments))  # inside autocast too
    assert low.dtype == torch.bfloat16 and exact.dtype == torch.float32
    within(low, operator(*arguments).double(), torch.bfloat16, 700, "autocast")


@on_devices
@on_layers
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_autocast_of_either_type_trains(low, name, device):
    """float16 is CUDA's default: what the kernels do not have goes in float32."""
    module = layer(name, device)
    x = normal(5, 9, module.dim, device=device)
    with torch.autocast(device, low):
        y = module(x)
    y.float().square().sum().backward()
    exact = layer(name, device)
    scale = exact(x).abs().max()
    assert (y.float() - exact(x)).abs().mean() < 0.2 * scale
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("change", ["synchronised", "hook", "cumulative", "no estimates"])
def test_another_norm_than_the_plain_one_is_used_as_it_is(change):
    module = layer("Ethos")
    router, seen = module.router, []
    if change == "synchronised":
        module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)
        assert type(module.router.norm) is torch.nn.SyncBatchNorm
        module.eval()  # in training it wants a group of GPUs
    elif change == "hook":
        router.norm.register_forward_hook(lambda *_: seen.append(1))
    elif change == "cumulative":
        router.norm.momentum = None
    else:
        router.norm = torch.nn.BatchNorm1d(router.norm.num_features, track_running_stats=False)
    oracle = copy.deepcopy(module.router.norm)
    queries = normal(9, oracle.num_features).detach()
    first, second = module.router.halves(queries)
    got = torch.stack((first, second), 2).flatten(1)
    assert len(seen) == (change == "hook")
    assert torch.allclose(got, oracle(queries), atol=2e-6)


@on_devices
@pytest.mark.filterwarnings("ignore:Input #:UserWarning")
def test_gradcheck(device):
    """PyTorch's own check by differences, in the float32 that the kernels have: large steps, and one
    unit's error of the sums over a step. float64 is checked against the equations above."""
    loose = {"eps": 3e-2, "atol": 3e-3, "rtol": 2e-2, "nondet_tol": 0.0}
    sizes = {"tokens": 3, "selections": 4, "experts": 6}
    xp, scores, index, z, w1 = experts_arguments(device, torch.float32, d_l=3, d_h=32, **sizes)
    small = [t.detach() * 0.5 for t in (xp, scores, z, w1)]
    small = [t.requires_grad_() for t in small]
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: ops.ethos_experts(a, b, index, c, d), small, **loose)  # fmt: skip
    x, scores, index, down, up = stored_arguments(device, torch.float32, d=32, **sizes)
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: ops.stored_experts(a, b, index, c, d), (x, scores, down, up), **loose)  # fmt: skip
    x, weight, bias, *rest = norm_arguments(device, torch.float32, tokens=7, heads=1, half=3)

    def norm(a, b, c):
        return ops.batch_norm_halves(a, b, c, *ops.column_moments(a.detach()), *rest[2:])

    assert torch.autograd.gradcheck(norm, (x, weight, bias), **loose)


@on_devices
@on_layers
def test_trains(name, device):
    module = layer(name, device)
    teacher = torch.nn.Linear(module.dim, module.dim).to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        x = normal(128, module.dim, device=device, seed=step % 4).detach()
        loss = (module(x) - teacher(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses[:: len(losses) // 6]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@on_layers
@pytest.mark.parametrize("training", [False, True])
def test_cuda_graph(training, name):
    module = layer(name, "cuda").train(training)
    x = normal(64, module.dim, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            module(x).sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    module.zero_grad(set_to_none=True)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(x)
        y.sum().backward()
    with torch.no_grad():
        x.copy_(normal(64, module.dim, seed=77))
    before = copy.deepcopy(module)
    graph.replay()
    recorded = [y.clone(), x.grad.clone()]
    x2 = x.detach().clone().requires_grad_()
    plain = before(x2)
    plain.sum().backward()
    assert torch.equal(recorded[0], plain) and torch.equal(recorded[1], x2.grad)
    # Training moves the running estimates, replayed or not.
    for got, want in zip(module.buffers(), before.buffers()):
        assert torch.equal(got, want)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["experts", "experts, few", "layer", "stored"])
def test_cuda_index_out_of_range_is_nan_in_its_token_alone(name):
    operator, _, make, sizes = CASES[name]
    arguments = list(make("cuda", torch.float32, **sizes))
    arguments[2] = arguments[2].clone()
    arguments[2][1, 3] = 10**9
    y = operator(*arguments)
    assert y[1].isnan().all() and y[0].isfinite().all() and y[2:].isfinite().all()


@on_devices
@pytest.mark.parametrize("wrong", [81, -1, 2**32 + 7])
def test_topk_backward_refuses_an_index_out_of_range(wrong, device):
    grad = torch.ones(4, 2, 3, device=device)
    index = torch.arange(24, device=device).view(4, 2, 3) % 81
    index[1, 0, 2] = wrong
    backward = torch.ops.subspace.product_key_topk_backward
    if device == "cpu":
        with pytest.raises(IndexError, match=rf"index holds {wrong} at \[2, 2\].*in \[0, 81\)"):
            backward(grad, index, None, 9, torch.float32)
        return
    for side in backward(grad, index, None, 9, torch.float32):
        assert side[1, 0].isnan().all()
        assert side.isnan().sum() == 9


def change(position, value):
    def apply(arguments):
        arguments = list(arguments)
        old = arguments[position]
        arguments[position] = value(old) if callable(value) else value
        return arguments

    return apply


WRONG = {
    "rank": (change(0, lambda t: t[0]), ValueError, r"shape \[96\]; expected \[tokens"),
    "scores": (change(1, lambda t: t[:-1]), ValueError, r"scores has the shape \[36, 12\]"),
    "index shape": (change(2, lambda t: t[:, 1:]), ValueError, r"index has the shape \[37, 11\]"),
    "index type": (change(2, lambda t: t.int()), TypeError, r"index is Int; expected Long"),
    "half": (change(0, lambda t: t.half()), TypeError, r"is Half; expected Float or BFloat16"),
    "mixed": (change(3, lambda t: t.bfloat16()), TypeError, r"same type.*autocast"),
    "too large": (change(2, lambda t: t + 64), IndexError, r"expected an expert in \[0, 100\)"),
    "negative": (change(2, lambda t: t - 100), IndexError, r"index holds -"),
    "table": (change(4, lambda t: t[:, 32:]), ValueError, r"has the shape \[\d+, 64\]"),
    "device": (change(3, lambda t: t.detach().to("meta")), (ValueError, RuntimeError), r"meta"),
}


@pytest.mark.parametrize("name", ["experts", "stored"])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments(what, name):
    operator, _, make, _ = CASES[name]
    apply, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        operator(*apply(make("cpu", torch.float32)))


def test_wrong_widths_and_counts():
    with pytest.raises(ValueError, match="d_h .* is 40; expected a multiple of 32 up to 1024"):
        ops.ethos_experts(*experts_arguments("cpu", torch.float32, d_h=40))
    with pytest.raises(ValueError, match="is 4128; expected a multiple of 32 up to 4096"):
        ops.stored_experts(*stored_arguments("cpu", torch.float32, tokens=2, experts=3, d=4128))
    sides = torch.zeros(2, 2, 8), torch.zeros(2, 2, 8)
    with pytest.raises(ValueError, match="k is 65; expected 1 to 64"):
        ops.product_key_topk(*sides, 65)
    with pytest.raises(ValueError, match="n = 8 keys; expected k = 9 to"):
        ops.product_key_topk(*sides, 9)
    with pytest.raises(ValueError, match="s2 has the shape"):
        ops.product_key_topk(sides[0], sides[1][:, :1], 3)
    with pytest.raises(ValueError, match="heads is 0"):
        ops.ethos_layer(*layer_arguments("cpu", torch.float32, heads=0))
    with pytest.raises(ValueError, match="w_u and w_v have the shapes"):
        ops.ethos_layer(*change(5, lambda t: t[1:])(layer_arguments("cpu", torch.float32)))


NORM_WRONG = {
    "x": (change(0, lambda t: t[0]), ValueError, r"x has the shape \[48\]; expected \[tokens"),
    "double": (change(0, lambda t: t.double()), TypeError, r"x is Double; expected Float or BFl"),
    "weight": (change(1, lambda t: t[1:]), ValueError, r"weight has the shape \[47\]"),
    "bias": (change(2, lambda t: t.bfloat16()), TypeError, r"bias is BFloat16; expected Float"),
    "mean": (change(3, lambda t: t[None]), ValueError, r"mean has the shape \[1, 48\]"),
    "heads": (change(5, 5), ValueError, r"48 columns and heads is 5; expected heads of two"),
    "no heads": (change(5, 0), ValueError, r"48 columns and heads is 0"),
}


def test_wrong_arguments_of_the_layer():
    x, scores, index, z, w1, w_u, w_v, heads = layer_arguments("cpu", torch.float32)
    for name, wrong in (("w_u", (w_u.double(), w_v)), ("w_v", (w_u, w_v.bfloat16()))):
        with pytest.raises(TypeError, match=f"ethos_layer: {name} is .* and x is Float; expected the same"):
            ops.ethos_layer(x, scores, index, z, w1, *wrong, heads)
    with pytest.raises(TypeError, match="x is Double; expected Float or BFloat16"):
        ops.ethos_layer(x.double(), scores, index, z, w1, w_u, w_v, heads)
    with pytest.raises(ValueError, match="ethos_layer: w_v is on meta and x on cpu"):
        ops.ethos_layer(x, scores, index, z, w1, w_u, w_v.detach().to("meta"), heads)


@pytest.mark.parametrize("name, table", [("experts", 3), ("stored", 3)])
def test_no_experts_but_selections_of_them(name, table):
    operator, _, make, _ = CASES[name]
    arguments = list(make("cpu", torch.float32))
    arguments[table] = arguments[table][:0]
    if name == "stored":
        arguments[4] = arguments[4][:0]
    with pytest.raises(ValueError, match="there are no experts, and 444 selections of them"):
        operator(*arguments)


@pytest.mark.parametrize("what", NORM_WRONG)
def test_wrong_norms(what):
    apply, error, message = NORM_WRONG[what]
    with pytest.raises(error, match=message):
        ops.batch_norm_halves(*apply(norm_arguments("cpu", torch.float32)))


def test_limits_of_2_to_the_31():
    """Shapes alone: the tensors have no memory behind them."""

    def meta(*sizes, dtype=torch.float32):
        return torch.empty(*sizes, dtype=dtype, device="meta")

    many, width = (2**21, 2**10), 32
    scores, index = meta(*many), meta(*many, dtype=torch.int64)
    x, z, w1 = meta(many[0], width), meta(64, 8), meta(8, width)
    with pytest.raises(ValueError, match="selections .* are 2147483648; expected fewer than"):
        ops.ethos_experts(x, scores, index, z, w1)
    with pytest.raises(ValueError, match="selections .* are 2147483648; expected fewer than"):
        ops.stored_experts(x, scores, index, meta(64, width), meta(64, width))
    few = meta(4, width), meta(4, 3), meta(4, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="experts are 2147483648; expected fewer than"):
        ops.ethos_experts(*few, meta(2**31, 8), w1)
    with pytest.raises(ValueError, match="experts are 2147483648; expected fewer than"):
        ops.stored_experts(*few, meta(2**31, width), meta(2**31, width))
    with pytest.raises(ValueError, match="rows .* are 2147483648; expected fewer than"):
        ops.product_key_topk(meta(2**28, 8, 4), meta(2**28, 8, 4), 2)


def test_nan_scores_stay_in_their_token():
    arguments = list(stored_arguments("cpu", torch.float32))
    arguments[1] = arguments[1].detach().clone()
    arguments[1][4, 0] = math.nan
    y = ops.stored_experts(*arguments)
    assert y[4].isnan().all() and y[:4].isfinite().all() and y[5:].isfinite().all()


def test_wrong_modules():
    with pytest.raises(ValueError, match="1000, which is no square; near it are 961 and 1024"):
        nn.PEER(64, experts=1000)
    with pytest.raises(ValueError, match="k is 13; expected 1 to 12"):
        nn.PEER(64, experts=144, k=13)
    with pytest.raises(ValueError, match="hidden_dim is 100"):
        nn.Ethos(64, experts=144, hidden_dim=100, k=4)
    with pytest.raises(ValueError, match="latent_range is 0; expected a number above 0"):
        nn.Ethos(64, experts=144, hidden_dim=64, k=4, latent_range=0)
    with pytest.raises(ValueError, match=r"shape \[2, 65\]; expected \[..., 64\]"):
        layer("PEER")(torch.zeros(2, 65))
    for wrong in ({"experts": -4}, {"experts": 0}, {"heads": 0}, {"heads": -1}, {"k": 2.0}, {"latent_dim": 0}):
        arguments = {"dim": 64, "experts": 144, "hidden_dim": 64, "k": 4, **wrong}
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} is .*; expected a whole number from 1"):
            nn.Ethos(**arguments)
    with pytest.raises(ValueError, match="expected up to 1073741824, 32768 keys a side"):
        nn.Ethos(64, experts=32769**2)
    with pytest.raises(ValueError, match="65 times k 64 are 4160 experts a token; expected up to 4096"):
        nn.PEER(64, experts=128**2, heads=65, k=64)


def in_new_process(code, **environment):
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(root / "python"), **environment},
    )  # fmt: skip


def test_a_missing_library_is_named():
    done = in_new_process("import subspace; subspace.ops", SUBSPACE_OPS="/nowhere/lib.so")
    assert done.returncode != 0 and "SUBSPACE_OPS names /nowhere/lib.so" in done.stderr
    done = in_new_process("import subspace, sys; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr
