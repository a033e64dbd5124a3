"""Small tokenizers with their codes, images, losses and gradients, for the tests of src/tokenizers.

    python scripts/golden/tokenizers.py

Needs torch and safetensors; writes test/golden/tokenizers. Computed in float64 from float32 weights, stored as float32.
The modules are written out here from the papers and the published weight names: VQGAN (Esser et al. 2021), LlamaGen's VQ
(Sun et al. 2024), IBQ (Shi et al. 2024).
"""

import json
import pathlib

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

OUT = pathlib.Path(__file__).parents[2] / "test" / "golden" / "tokenizers"
def norm(channels, groups):
    return nn.GroupNorm(groups, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, cin, cout, groups):
        super().__init__()
        self.norm1, self.conv1 = norm(cin, groups), nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2, self.conv2 = norm(cout, groups), nn.Conv2d(cout, cout, 3, padding=1)
        if cin != cout:
            self.nin_shortcut = nn.Conv2d(cin, cout, 1)

    def forward(self, x):
        y = self.norm1(x)
        y = self.conv1(y * torch.sigmoid(y))
        y = self.norm2(y)
        y = self.conv2(y * torch.sigmoid(y))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.norm = norm(c, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2) for layer in (self.q, self.k, self.v))  # [b, c, hw]
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5, dim=-1)
        return x + self.proj_out(torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))


class Down(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        below = torch.cat([x, torch.zeros_like(x[:, :, :1])], dim=2)
        return self.conv(torch.cat([below, torch.zeros_like(below[..., :1])], dim=3))


class Up(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class Level(nn.Module):
    def __init__(self, naming, cin, cout, count, attention, resample, groups):
        super().__init__()
        blocks = nn.ModuleList(Residual(cin if i == 0 else cout, cout, groups) for i in range(count))
        setattr(self, "block" if naming == "ibq" else "res", blocks)
        self.attn = nn.ModuleList(Attention(cout, groups) for _ in range(count if attention else 0))
        if resample:
            setattr(self, resample[0], resample[1])
        self.order = [step for i, block in enumerate(blocks) for step in [block, *self.attn[i : i + 1]]]
        self.order += [resample[1]] if resample else []

    def forward(self, x):
        for step in self.order:
            x = step(x)
        return x


class Half(nn.Module):
    """The encoder or the decoder."""

    def __init__(self, c, is_encoder):
        super().__init__()
        naming, groups = c["naming"], c["normGroups"]
        widths = [c["ch"] * factor for factor in c["chMult"]]
        last = len(widths) - 1
        cin, cout = (c["inChannels"], c["zChannels"]) if is_encoder else (c["zChannels"], c["outChannels"])
        first, end = (c["ch"], widths[-1]) if is_encoder else (widths[-1], widths[0])
        self.conv_in = nn.Conv2d(cin, first, 3, padding=1)
        levels = []
        for i, width in enumerate(widths):
            if is_encoder:
                before, resample = ([c["ch"], *widths][i], ("downsample", Down(width)) if i < last else None)
            else:
                before, resample = ([*widths, widths[-1]][i + 1], ("upsample", Up(width)) if i > 0 else None)
            count = c["numResBlocks"] + (0 if is_encoder else 1)
            levels.append(Level(naming, before, width, count, i in c["attnLevels"], resample, groups))
        middle = [Residual(widths[-1], widths[-1], groups), Attention(widths[-1], groups), Residual(widths[-1], widths[-1], groups)]
        order = levels if is_encoder else levels[::-1]
        if naming == "ibq":
            self.mid = nn.Module()
            self.mid.block_1, self.mid.attn_1, self.mid.block_2 = middle
            setattr(self, "down" if is_encoder else "up", nn.ModuleList(levels))
        else:
            self.mid = nn.ModuleList(middle)
            self.conv_blocks = nn.ModuleList(order)
        self.norm_out = norm(end, groups)
        self.conv_out = nn.Conv2d(end, cout, 3, padding=1)
        self.order = [*order, *middle] if is_encoder else [*middle, *order]

    def forward(self, x):
        x = self.conv_in(x)
        for step in self.order:
            x = step(x)
        x = self.norm_out(x)
        return self.conv_out(x * torch.sigmoid(x))


def entropies(affinity, temperature):
    p = torch.softmax(affinity / temperature, dim=-1)
    sample = -(p * torch.log_softmax(affinity / temperature, dim=-1)).sum(-1).mean()
    mean = p.mean(0)
    return sample, -(mean * torch.log(mean + 1e-5)).sum()


class Codebook(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        if c["hasUsageRecord"]:
            self.register_buffer("codebook_used", torch.zeros(65536))
        self.embedding = nn.Embedding(c["codebookSize"], c["embedDim"])

    def table(self):
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.c["lookup"] == "cosine" else weight

    def entry(self, codes, grid):
        return self.table()[codes].unflatten(1, grid).permute(0, 3, 1, 2)

    def forward(self, z):
        c = self.c
        rows = z.permute(0, 2, 3, 1).flatten(0, 2)
        table = self.table()
        losses, stats = {}, {}
        if c["lookup"] == "dot":
            affinity = rows @ table.T
            soft = torch.softmax(affinity, dim=-1)
            codes = affinity.argmax(-1)
            hard = F.one_hot(codes, c["codebookSize"]).to(soft)
            through = hard - soft.detach() + soft
            zq, plain = through @ table, hard @ table
            losses["quant"] = ((zq - rows) ** 2).mean() + ((plain.detach() - rows) ** 2).mean()
            losses["quant"] = losses["quant"] + c["beta"] * ((plain - rows.detach()) ** 2).mean()
        else:
            rows = F.normalize(rows, dim=-1) if c["lookup"] == "cosine" else rows
            affinity = -((rows[:, None] - table[None]) ** 2).sum(-1)
            codes = affinity.argmax(-1)
            near = table[codes]
            losses["codebook"] = ((near - rows.detach()) ** 2).mean()
            losses["commitment"] = c["beta"] * ((near.detach() - rows) ** 2).mean()
            zq = rows + (near - rows).detach()
        best = affinity.topk(2, dim=-1).values
        assert ((best[:, 0] - best[:, 1]) > 1e-4).all(), "two codes nearly tie: choose another seed"
        if c["sampleEntropyWeight"] or c["batchEntropyWeight"]:
            stats["sampleEntropy"], stats["batchEntropy"] = entropies(affinity, c["entropyTemperature"])
            losses["entropy"] = c["sampleEntropyWeight"] * stats["sampleEntropy"] - c["batchEntropyWeight"] * stats["batchEntropy"]
        b, _, h, w = z.shape
        return zq.reshape(b, h, w, -1).permute(0, 3, 1, 2), codes.reshape(b, h * w), losses, stats


class Tokenizer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.encoder, self.decoder = Half(c, True), Half(c, False)
        self.quantize = Codebook(c)
        self.quant_conv = nn.Conv2d(c["zChannels"], c["embedDim"], 1)
        self.post_quant_conv = nn.Conv2d(c["embedDim"], c["zChannels"], 1)


def write(name, config, size, scale, seed):
    torch.manual_seed(seed)
    model = Tokenizer(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "norm" in key:  # Weights of 1 and biases of 0 would hide a swap.
                value.add_(torch.randn_like(value) * 0.2)
        # Features and codes that are spread alike, so that several codes are used.
        model.quant_conv.weight.mul_(scale)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.rand(3, config["inChannels"], *size) * 2 - 1
    factor = 2 ** (len(config["chMult"]) - 1)
    grid = (2, 3)
    codes_in = torch.randint(config["codebookSize"], (2, grid[0] * grid[1]))

    model = model.double()
    latent = model.quant_conv(model.encoder(images.double()))
    latent.retain_grad()
    quantized, codes, losses, stats = model.quantize(latent)
    reconstruction = model.decoder(model.post_quant_conv(quantized))
    (F.mse_loss(reconstruction, images.double()) + sum(losses.values())).backward()
    decoded = model.decoder(model.post_quant_conv(model.quantize.entry(codes_in, grid)))
    used = len(codes.unique())
    print(f"{name}: {used} of {config['codebookSize']} codes, {codes.numel()} positions, grid x{factor}, loss",
          {key: round(value.item(), 5) for key, value in {**losses, **stats}.items()})
    assert used > 3

    tensors = {
        **{f"state.{key}": value for key, value in state.items()},
        **{f"grad.{key}": value.grad for key, value in model.named_parameters()},
        **{f"loss.{key}": value for key, value in losses.items()},
        **{f"stat.{key}": value for key, value in stats.items()},
        "grad_latent": latent.grad, "images": images, "latent": latent, "codes": codes, "quantized": quantized,
        "reconstruction": reconstruction, "codes_in": codes_in, "decoded": decoded,
    }
    if config["hasUsageRecord"]:
        del tensors["state.quantize.codebook_used"]  # Zeros.
    tensors = {
        key: (value if value.dtype == torch.int64 else value.float()).detach().contiguous() for key, value in tensors.items()
    }
    metadata = {"torch": torch.__version__, "safetensors": safetensors.__version__, "seed": str(seed), "config": json.dumps(config)}
    safetensors.torch.save_file(tensors, OUT / f"{name}.safetensors", metadata)


# Temperatures above the published 0.01: that one multiplies the rounding of float32 features by 100.
SMALL = {
    "inChannels": 3, "outChannels": 3, "ch": 8, "chMult": [1, 2], "numResBlocks": 1, "attnLevels": [1], "zChannels": 8,
    "dropout": 0, "normGroups": 4, "codebookSize": 24, "embedDim": 4, "beta": 0.25, "entropyTemperature": 1,
}

if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    vq = {**SMALL, "naming": "llamagen", "hasUsageRecord": True}
    write("vq_cosine", {**vq, "lookup": "cosine", "entropyTemperature": 0.2, "sampleEntropyWeight": 0.1, "batchEntropyWeight": 0.1}, (8, 12), 4, seed=4)
    l2 = {"lookup": "l2", "chMult": [1, 1, 2], "attnLevels": [2], "sampleEntropyWeight": 0, "batchEntropyWeight": 0}
    write("vq_l2", {**vq, **l2, "hasUsageRecord": False}, (16, 16), 4, seed=1)
    ibq = {**SMALL, "naming": "ibq", "lookup": "dot", "hasUsageRecord": False, "numResBlocks": 2, "attnLevels": [0, 1]}
    write("ibq", {**ibq, "embedDim": 8, "entropyTemperature": 2, "sampleEntropyWeight": 1, "batchEntropyWeight": 0.7}, (12, 8), 4, seed=6)
