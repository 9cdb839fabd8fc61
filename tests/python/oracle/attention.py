"""Attention in plain float64 from exported views: the oracle's side of the functional proof."""

import math

import torch
from safetensors import safe_open


def load_views(path):
    views = {"meta": {}}
    with safe_open(path, "pt") as file:
        views["meta"] = dict(file.metadata())
        for name in file.keys():
            views[name] = file.get_tensor(name)
    return views


def number(views, name, default=0.0):
    return float(views["meta"].get(name, default))


def norm(views, name, x):
    """The norm of that name applied to x, as its kind says; x itself where there is none."""
    kind = views["meta"].get(name + ".kind")
    if kind is None:
        return x
    eps = number(views, name + ".eps")
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    x = x * views.get(name + ".weight", 1)
    return x + views[name + ".bias"] if name + ".bias" in views else x


def rotated(views, x, back=False):
    """x [heads, tokens, width] with each token's rotary part turned by its position, or back."""
    if "rotary.frequencies" not in views:
        return x
    frequencies = views["rotary.frequencies"]
    begin, dims = int(number(views, "rotary.begin")), int(number(views, "rotary.dims"))
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies[None, :]
    scale = number(views, "rotary.scale")
    cos, sin = angles.cos() * scale, angles.sin() * scale * (-1 if back else 1)
    part = x[..., begin : begin + dims]
    if views["meta"]["rotary.layout"] == "half":
        a, b = part[..., : dims // 2], part[..., dims // 2 :]
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    else:
        a, b = part[..., 0::2], part[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    return torch.cat([x[..., :begin], turned, x[..., begin + dims :]], -1)


def with_bias(views, name, x):
    return x + views[name].unsqueeze(-2) if name in views else x


def latents(views, x):
    """What Q, and what K and V, read: x itself or the normed latents."""
    read_q = read_kv = x
    if "qa" in views:
        read_q = norm(views, "q_latent", with_bias(views, "qa_bias", x @ views["qa"]))
        read_q = read_q * number(views, "q_latent_scale", 1)
    if "kva" in views:
        read_kv = norm(views, "kv_latent", with_bias(views, "kva_bias", x @ views["kva"]))
        read_kv = read_kv * number(views, "kv_latent_scale", 1)
    return read_q, read_kv


def mask(views, tokens):
    """Which keys (columns) a query (row) may see."""
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]
    allowed = torch.ones(tokens, tokens, dtype=torch.bool)
    if number(views, "causal"):
        allowed &= key <= query
    window = int(number(views, "window"))
    if window:
        allowed &= query - key < window
    return allowed


def queries_and_keys(views, x):
    """q [H, T, w] and k [H, T, w], rotated; groups repeated for their heads."""
    read_q, read_kv = latents(views, x)
    heads, groups = views["q"].shape[0], views["k"].shape[0]
    q = norm(views, "q_head", with_bias(views, "q_bias", read_q @ views["q"]))
    k = norm(views, "k_head", with_bias(views, "k_bias", read_kv @ views["k"]))
    k = k.repeat_interleave(heads // groups, 0)
    if "q_rope" in views:
        q_rope = rotated(views, read_q @ views["q_rope"])
        k_rope = with_bias(views, "kpe_bias", (x @ views["kpe"]).unsqueeze(0))
        k_rope = rotated(views, k_rope).expand(heads, -1, -1)
        return torch.cat([q, q_rope], -1), torch.cat([k, k_rope], -1)
    return rotated(views, q), rotated(views, k)


def values(views, x):
    """v [H, T, w], groups repeated for their heads; where one head is key and value, normed and
    rotated as the key is."""
    _, read_kv = latents(views, x)
    v = with_bias(views, "v_bias", read_kv @ views["v"])
    if number(views, "values_share_key"):
        v = rotated(views, norm(views, "k_head", v))
    return v.repeat_interleave(views["q"].shape[0] // views["v"].shape[0], 0)


def softmax(views, logits):
    """Over the keys and, where a head has a sink, its logit, which has no value."""
    if "sinks" not in views:
        return torch.softmax(logits, -1)
    sinks = views["sinks"][:, None, None].expand(-1, logits.shape[1], 1)
    return torch.softmax(torch.cat([logits, sinks], -1), -1)[..., :-1]


def written(views, heads):
    """Heads' outputs [H, T, d_v] through O and, where there is one, the groups' output latent."""
    if number(views, "values_share_key"):
        heads = rotated(views, heads, back=True)
    out = heads @ views["o"]
    if "ob" in views:
        out = out.unflatten(0, (views["ob"].shape[0], -1)).sum(1) @ views["ob"]
    return out.sum(0)


def attention_output(views, x, through=None):
    """Output [T, d] for x [T, d], the (normed) vectors that the attention module reads. `through`
    takes the heads' outputs [H, T, d_v] to [T, d] where the views alone do not say how."""
    q, k = queries_and_keys(views, x)
    logits = q @ k.transpose(1, 2) * number(views, "softmax_scale")
    cap = number(views, "logit_softcap")
    if cap:
        logits = cap * torch.tanh(logits / cap)
    logits = logits.masked_fill(~mask(views, x.shape[0]), -math.inf)
    heads = softmax(views, logits) @ values(views, x)
    out = through(heads) if through else written(views, heads)
    return out + views["o_bias"] if "o_bias" in views else out


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def fused_logits_error(views, x):
    """Largest relative error of the fused maps against the heads' own products, without biases:
    x V_g O_i, x Q_i K_g^T x^T, and the rotary map at the exported offset for every pair of tokens
    that far apart."""
    read_q, read_kv = latents(views, x)
    heads, groups = views["q"].shape[0], views["k"].shape[0]
    k = views["k"].repeat_interleave(heads // groups, 0)
    v = views["v"].repeat_interleave(heads // groups, 0)
    errors = [
        relative(read_kv @ views["vo.left"] @ views["vo.right"], (read_kv @ v) @ views["o"]),
        relative(
            read_q @ views["qk.left"] @ views["qk.right"] @ read_kv.T,
            (read_q @ views["q"]) @ (read_kv @ k).transpose(1, 2),
        ),
    ]
    if "qk_at.left" in views:
        delta = int(number(views, "qk_at.offset"))
        rope_q, rope_k, key_read = views["q"], k, read_kv
        if "q_rope" in views:
            rope_q, rope_k, key_read = views["q_rope"], views["kpe"].unsqueeze(0), x
        turned = rotated(views, read_q @ rope_q) @ rotated(views, key_read @ rope_k).transpose(1, 2)
        fused = read_q @ views["qk_at.left"] @ views["qk_at.right"] @ key_read.T
        pairs = range(delta, x.shape[0])
        errors.append(
            relative(
                torch.stack([fused[:, m, m - delta] for m in pairs]),
                torch.stack([turned[:, m, m - delta] for m in pairs]),
            )
        )
    return max(errors)


def bare_norm(views, name, x):
    """The norm without what folding moves into the matrices: its scalar for each token alone."""
    kind = views["meta"].get(name + ".kind")
    if kind is None:
        return x
    centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    return x / torch.sqrt(centred.square().mean(-1, keepdim=True) + number(views, name + ".eps"))


def projections(views, x):
    """What each projection gives for x, the vectors that attention reads."""
    read_q, read_kv = latents(views, x)
    out = {
        "q": norm(views, "q_head", with_bias(views, "q_bias", read_q @ views["q"])),
        "k": norm(views, "k_head", with_bias(views, "k_bias", read_kv @ views["k"])),
        "v": with_bias(views, "v_bias", read_kv @ views["v"]),
    }
    if number(views, "values_share_key"):
        out["v"] = norm(views, "k_head", out["v"])
    if "q_rope" in views:
        out["q_rope"] = read_q @ views["q_rope"]
        out["kpe"] = with_bias(views, "kpe_bias", x @ views["kpe"])
    return out


def folded_projections(plain, folded, before_norm):
    """The same from folded matrices: data meets each norm's scalar only, which the plain views
    (they know eps) give."""
    x = bare_norm(plain, "input", before_norm)
    read_q = read_kv = x
    if "qa" in folded:
        read_q = bare_norm(plain, "q_latent", with_bias(folded, "qa_bias", x @ folded["qa"]))
    if "kva" in folded:
        read_kv = bare_norm(plain, "kv_latent", with_bias(folded, "kva_bias", x @ folded["kva"]))

    def head(name, read, of):
        out = with_bias(folded, name + "_bias", read @ folded[name])
        if of + ".kind" not in plain["meta"]:
            return out
        # The scalar of a head's norm is that of the vector before gamma, which folding multiplied.
        before = out / plain.get(of + ".weight", 1)
        return out / before * bare_norm(plain, of, before)

    shared = "k_head" if number(plain, "values_share_key") else "no norm"
    out = {
        "q": head("q", read_q, "q_head"),
        "k": head("k", read_kv, "k_head"),
        "v": head("v", read_kv, shared),
    }
    if "q_rope" in folded:
        out["q_rope"] = read_q @ folded["q_rope"]
        out["kpe"] = with_bias(folded, "kpe_bias", x @ folded["kpe"])
    return out
