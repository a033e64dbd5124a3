"""Make test/golden/policies/*.safetensors: small policies' weights, inputs, logits and gradients, by PyTorch.

Each model is a plain function of a dict of weights, written from the published description: attention as a softmax
with an explicit mask, rotations as cosines and sines. Weights are drawn wide (std 0.2), so that every part counts.

Run: python scripts/golden/policies.py   (needs torch, safetensors)
"""
import math
import os

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = os.path.join(os.path.dirname(__file__), "..", "..", "test", "golden", "policies")
SEED = 11
V, T, D, HEADS, LAYERS, CLASSES = 20, 16, 16, 2, 2, 6
FFN = 24
TEXT, CAPTION = 5, 6


def attention(q, k, v, seen, heads, kv_heads=None):
    """q [B, n, D], k and v [B, n, D or less], seen bool [.., n, n] -> [B, n, D]."""
    kv_heads = kv_heads or heads
    split = lambda x, h: x.unflatten(-1, (h, -1)).transpose(1, 2)
    q, k, v = split(q, heads), split(k, kv_heads), split(v, kv_heads)
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def causal(n):
    return torch.ones(n, n, dtype=torch.bool).tril()


def padded_causal(is_real, n):
    """bool [B, 1, n, n]: causal, without columns of padding, but each position sees itself."""
    columns = torch.cat([is_real, torch.ones(len(is_real), n - is_real.shape[1], dtype=torch.bool)], 1)
    return ((columns[:, None] | torch.eye(n, dtype=torch.bool)) & causal(n))[:, None]


def affine(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def layer_norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def rms_norm(w, name, x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]


def turn(x, heads, before):
    """Turn channel pairs of x [B, n, heads * c] by row and column; the first `before` positions become zero."""
    n = x.shape[1]
    x = x.unflatten(-1, (heads, -1))
    c, side = x.shape[-1], math.isqrt(T)
    place = torch.arange(n) - before
    pairs = torch.arange(c // 2)
    per_axis = c // 4
    along = torch.where(pairs[None] < per_axis, (place // side)[:, None], (place % side)[:, None])
    angle = along * 10000.0 ** (-2 * (pairs % per_axis) / (c / 2))
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    y = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    return torch.where((place < 0)[:, None, None], 0.0, y).flatten(-2)


def llama_attention(w, name, x, seen, before, kv_heads):
    head = D // HEADS
    q, k, v = affine(w, f"{name}.wqkv", x).split([D, kv_heads * head, kv_heads * head], -1)
    y = attention(turn(q, HEADS, before), turn(k, kv_heads, before), v, seen, HEADS, kv_heads)
    return affine(w, f"{name}.wo", y)


def swiglu(w, name, x):
    return affine(w, f"{name}.w2", F.silu(affine(w, f"{name}.w1", x)) * affine(w, f"{name}.w3", x))


def gpt(w, tokens, classes, features=None, is_real=None, cross=False):
    codes = w["tok_emb.weight"][tokens]
    if "embedding_projection.weight" in w:
        codes = affine(w, "embedding_projection", codes)
    x = torch.cat([w["class_emb.embedding_table.weight"][classes][:, None], codes], 1)
    memory = None if features is None else affine(w, "cond_proj", features)
    seen, leading = causal(x.shape[1]), 0
    if memory is not None and not cross:
        x, leading = torch.cat([memory, x], 1), memory.shape[1]
        seen = padded_causal(is_real, x.shape[1])
    x = x + w["pos_emb"][:, : x.shape[1]]
    for i in range(LAYERS):
        b = f"blocks.{i}"
        y = layer_norm(w, f"{b}.ln1", x)
        parts = [affine(w, f"{b}.attn.{name}", y) for name in ("query", "key", "value")]
        x = x + affine(w, f"{b}.attn.proj", attention(*parts, seen, HEADS))
        if cross:
            y = layer_norm(w, f"{b}.ln_cross", x)
            q = affine(w, f"{b}.cross_attn.query", y)
            k, v = (affine(w, f"{b}.cross_attn.{name}", memory) for name in ("key", "value"))
            x = x + affine(w, f"{b}.cross_attn.proj", attention(q, k, v, is_real[:, None, None], HEADS))
        y = affine(w, f"{b}.mlp.0", layer_norm(w, f"{b}.ln2", x))
        x = x + affine(w, f"{b}.mlp.2", F.gelu(y))
    return affine(w, "head", layer_norm(w, "ln_f", x[:, leading:]))


def llamagen(w, tokens, start, kv_heads, is_real=None):
    """start: embedded condition [B, S, D]."""
    before = start.shape[1]
    x = torch.cat([start, w["tok_embeddings.weight"][tokens]], 1)
    seen = causal(x.shape[1]) if is_real is None else padded_causal(is_real, x.shape[1])
    for i in range(LAYERS):
        b = f"layers.{i}"
        x = x + llama_attention(w, f"{b}.attention", rms_norm(w, f"{b}.attention_norm", x), seen, before, kv_heads)
        x = x + swiglu(w, f"{b}.feed_forward", rms_norm(w, f"{b}.ffn_norm", x))
    return affine(w, "output", rms_norm(w, "norm", x[:, before - 1 :]))


def llamagen_c2i(w, tokens, classes, kv_heads):
    return llamagen(w, tokens, w["cls_embedding.embedding_table.weight"][classes][:, None], kv_heads)


def llamagen_t2i(w, tokens, features, is_real):
    y = F.gelu(affine(w, "cls_embedding.cap_proj.fc1", features), approximate="tanh")
    return llamagen(w, tokens, affine(w, "cls_embedding.cap_proj.fc2", y), HEADS, is_real)


def ibq_ar(w, tokens, classes):
    start = w["class_emb.embedding_table.weight"][classes][:, None]
    x = torch.cat([start, w["tok_emb.weight"][tokens]], 1)
    seen = causal(x.shape[1])
    for i in range(LAYERS):
        b = f"blocks.{i}"
        gate1, gate2, scale1, scale2, shift1, shift2 = affine(w, f"{b}.ada_lin.1", F.silu(start)).chunk(6, -1)
        y = rms_norm(w, f"{b}.attention_norm", x) * (1 + scale1) + shift1
        x = x + gate1 * llama_attention(w, f"{b}.attention", y, seen, 1, HEADS)
        y = rms_norm(w, f"{b}.ffn_norm", x) * (1 + scale2) + shift2
        x = x + gate2 * swiglu(w, f"{b}.feed_forward", y)
    scale, shift = affine(w, "head_nm.ada_lin.1", F.silu(start)).chunk(2, -1)
    return affine(w, "head", rms_norm(w, "head_nm.rmsnorm", x) * (1 + scale) + shift)


def draw(shapes):
    """Weights: norms around 1, all else N(0, 0.2)."""
    weights = {}
    for name, shape in shapes.items():
        is_norm = len(shape) == 1 and name.endswith(".weight")
        weights[name] = 0.2 * torch.randn(shape) + (1.0 if is_norm else 0.0)
    return weights


def norm_shapes(name):
    return {f"{name}.weight": (D,), f"{name}.bias": (D,)}


def biased(name, out, inside=D):
    return {f"{name}.weight": (out, inside), f"{name}.bias": (out,)}


def gpt_shapes(codebook=None, prepend=0, cross=False):
    shapes = {"pos_emb": (1, T + prepend, D), "tok_emb.weight": (V, codebook or D)}
    if codebook:
        shapes |= biased("embedding_projection", D, codebook)
    shapes["class_emb.embedding_table.weight"] = (CLASSES + 1, D)
    if prepend or cross:
        shapes |= {"uncond_embedding": (1, 1, CAPTION)} | biased("cond_proj", D, CAPTION)
    for i in range(LAYERS):
        b = f"blocks.{i}"
        for name in ["ln1", "ln2"] + ["ln_cross"] * cross:
            shapes |= norm_shapes(f"{b}.{name}")
        for part in ["attn"] + ["cross_attn"] * cross:
            for name in ("key", "query", "value", "proj"):
                shapes |= biased(f"{b}.{part}.{name}", D)
        shapes |= biased(f"{b}.mlp.0", 4 * D) | biased(f"{b}.mlp.2", D, 4 * D)
    return shapes | norm_shapes("ln_f") | {"head.weight": (V, D)}


def llama_block_shapes(b, kv_heads):
    return {
        f"{b}.attention.wqkv.weight": (D + 2 * kv_heads * D // HEADS, D),
        f"{b}.attention.wo.weight": (D, D),
        f"{b}.feed_forward.w1.weight": (FFN, D),
        f"{b}.feed_forward.w3.weight": (FFN, D),
        f"{b}.feed_forward.w2.weight": (D, FFN),
        f"{b}.attention_norm.weight": (D,),
        f"{b}.ffn_norm.weight": (D,),
    }


def llamagen_shapes(start, kv_heads):
    shapes = dict(start) | {"tok_embeddings.weight": (V, D)}
    for i in range(LAYERS):
        shapes |= llama_block_shapes(f"layers.{i}", kv_heads)
    return shapes | {"norm.weight": (D,), "output.weight": (V, D)}


def ibq_ar_shapes():
    shapes = {"tok_emb.weight": (V, D), "class_emb.embedding_table.weight": (CLASSES + 1, D)}
    for i in range(LAYERS):
        shapes |= llama_block_shapes(f"blocks.{i}", HEADS) | biased(f"blocks.{i}.ada_lin.1", 6 * D)
    shapes |= {"head_nm.rmsnorm.weight": (D,)} | biased("head_nm.ada_lin.1", 2 * D)
    return shapes | {"head.weight": (V, D)}


def save(name, weights, run, inputs, null_inputs, frozen=()):
    """Logits of all T codes under condition and null condition, guided logits, and gradients of a cross-entropy."""
    leaves = {key: value.clone().requires_grad_(key not in frozen) for key, value in weights.items()}
    tokens = torch.randint(0, V, (2, T))
    logits = run(leaves, tokens[:, :-1], **inputs)
    with torch.no_grad():
        uncond = run(leaves, tokens[:, :-1], **null_inputs(leaves))
    F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    tensors = {f"weight.{key}": value for key, value in weights.items()}
    tensors |= {f"grad.{key}": leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}
    tensors |= {f"input.{key}": value for key, value in inputs.items() if torch.is_tensor(value)}
    tensors |= {"tokens": tokens, "logits": logits.detach(), "uncond": uncond}
    tensors["guided"] = uncond + (logits.detach() - uncond) * 2.5
    path = os.path.join(OUT, f"{name}.safetensors")
    metadata = {"torch": torch.__version__, "seed": str(SEED)}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.manual_seed(SEED)
    classes = torch.tensor([4, 1])
    null = torch.tensor([CLASSES, CLASSES])
    features = torch.randn(2, TEXT, CAPTION)
    is_real = torch.tensor([[False, False, False, True, True], [True] * TEXT])

    save("gpt", draw(gpt_shapes()), gpt, {"classes": classes}, lambda w: {"classes": null})
    save("gpt_codebook", draw(gpt_shapes(codebook=8)), gpt, {"classes": classes}, lambda w: {"classes": null})
    for how in ("prepend", "cross"):
        def run(w, tokens, classes, features, is_real):
            return gpt(w, tokens, classes, features, is_real, cross=how == "cross")

        shapes = gpt_shapes(prepend=TEXT if how == "prepend" else 0, cross=how == "cross")
        save(
            f"gpt_{how}", draw(shapes), run, {"classes": classes, "features": features, "is_real": is_real},
            lambda w: {"classes": null, "features": w["uncond_embedding"].expand(features.shape), "is_real": is_real},
        )
    for kv_heads in (HEADS, 1):
        table = {"cls_embedding.embedding_table.weight": (CLASSES + 1, D)}
        save(
            f"llamagen_c2i_kv{kv_heads}", draw(llamagen_shapes(table, kv_heads)), llamagen_c2i,
            {"classes": classes, "kv_heads": kv_heads}, lambda w: {"classes": null, "kv_heads": kv_heads},
        )
    caption = {
        "cls_embedding.uncond_embedding": (TEXT, CAPTION),
        "cls_embedding.cap_proj.fc1.weight": (D, CAPTION),
        "cls_embedding.cap_proj.fc2.weight": (D, D),
    }
    none = "cls_embedding.uncond_embedding"
    save(
        "llamagen_t2i", draw(llamagen_shapes(caption, HEADS)), llamagen_t2i, {"features": features, "is_real": is_real},
        lambda w: {"features": w[none].expand(features.shape), "is_real": is_real}, frozen=[none],
    )
    save("ibq_ar", draw(ibq_ar_shapes()), ibq_ar, {"classes": classes}, lambda w: {"classes": null})


main()
