"""Golden results of PyTorch for the tests of src/torch: operators, autocast, random numbers.

Run: python scripts/golden/tensors.py   (needs torch and safetensors)

A case is named as in test/native/operators.test.ts, whose expressions are these in camelCase. Inputs are float64,
int64 and bool; a case of `FLOATS` runs in every float dtype, its float inputs cast first.
"""
import pathlib

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parents[2] / "test" / "golden" / "torch"
SEED = 0
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
METADATA = {"torch": torch.__version__, "safetensors": safetensors.__version__, "seed": str(SEED)}

torch.manual_seed(SEED)
torch.set_num_threads(1)


def spread(*shape):
    """Values of either sign in [-2, 2], no two alike, so that order and signs decide something."""
    count = torch.Size(shape).numel()
    return (torch.randperm(count).double() / max(count - 1, 1) * 4 - 2).reshape(shape)


INPUTS = {
    "a": spread(2, 3, 4),
    "b": spread(3, 1),  # broadcasts to a
    "c": spread(2, 3, 4),
    "p": spread(2, 3, 4).abs() + 0.25,
    "m": spread(3, 4),
    "n": spread(4, 5),
    "s": spread(4, 4),
    "v": spread(4),
    "scalar": torch.tensor(1.5, dtype=torch.float64),
    "none": torch.zeros(0, 3, dtype=torch.float64),
    "special": torch.tensor([1.0, float("inf"), -float("inf"), float("nan"), -0.0], dtype=torch.float64),
    "x1": spread(2, 3, 4),
    "x2": spread(2, 4, 5),
    "img": spread(2, 4, 6, 6),
    "w": spread(6, 4, 3, 3) / 6,
    "wg": spread(6, 2, 3, 3) / 6,
    "wt": spread(4, 3, 3, 3) / 6,
    "six": spread(6),
    "three": spread(3),
    "four": spread(4),
    "pos4": spread(4).abs() + 0.25,
    "q": spread(2, 2, 5, 8),
    "kv": spread(2, 2, 7, 8),
    "val": spread(2, 2, 7, 8),
    "kv1": spread(2, 1, 7, 8),
    "logits": spread(6, 5),
    "maskadd": spread(5, 7),
    "i": torch.randint(-5, 6, (2, 3, 4)),
    "j": torch.randint(1, 5, (3, 4)),
    "k": torch.randint(0, 2, (2, 3, 4)).bool(),
    "rows": torch.tensor([2, 0, 2]),
    "which": torch.randint(0, 4, (2, 3, 2)),
    "target": torch.tensor([0, 4, 2, 1, -100, 3]),
    "sparse": torch.tensor([3, 0, 3, 1, 5]),
    "attend": torch.randint(0, 2, (5, 7)).bool() | torch.eye(5, 7).bool(),
}

# Everything a float tensor can do, in float64, float32 and bfloat16.
FLOATS = {
    "abs": lambda t: t.a.abs(),
    "neg": lambda t: t.a.neg(),
    "exp": lambda t: t.a.exp(),
    "expm1": lambda t: t.a.expm1(),
    "log": lambda t: t.p.log(),
    "log2": lambda t: t.p.log2(),
    "log1p": lambda t: t.p.log1p(),
    "sqrt": lambda t: t.p.sqrt(),
    "rsqrt": lambda t: t.p.rsqrt(),
    "square": lambda t: t.a.square(),
    "reciprocal": lambda t: t.p.reciprocal(),
    "sin": lambda t: t.a.sin(),
    "cos": lambda t: t.a.cos(),
    "tanh": lambda t: t.a.tanh(),
    "sigmoid": lambda t: t.a.sigmoid(),
    "floor": lambda t: t.a.floor(),
    "ceil": lambda t: t.a.ceil(),
    "round": lambda t: t.a.round(),
    "trunc": lambda t: t.a.trunc(),
    "sign": lambda t: t.a.sign(),
    "relu": lambda t: t.a.relu(),
    "silu": lambda t: F.silu(t.a),
    "isnan": lambda t: t.special.isnan(),
    "isinf": lambda t: t.special.isinf(),
    "isfinite": lambda t: t.special.isfinite(),
    "nanToNum": lambda t: t.special.nan_to_num(),
    "nanToNumGiven": lambda t: t.special.nan_to_num(7, 8, 9),
    "logicalNot": lambda t: t.special.logical_not(),
    "clamp": lambda t: t.a.clamp(-0.5, 1),
    "clampMin": lambda t: t.a.clamp(0.25),
    "clampMax": lambda t: t.a.clamp(None, 0.25),
    "clampTensor": lambda t: t.a.clamp(t.b, None),
    "gelu": lambda t: F.gelu(t.a),
    "geluTanh": lambda t: F.gelu(t.a, approximate="tanh"),
    "leakyRelu": lambda t: F.leaky_relu(t.a, 0.2),
    "softplus": lambda t: F.softplus(t.a, 2, 1.5),
    "softmax": lambda t: t.a.softmax(-1),
    "softmaxFirst": lambda t: t.a.softmax(0),
    "softmaxWide": lambda t: t.a.softmax(1, torch.float64),
    "logSoftmax": lambda t: t.a.log_softmax(-2),
    "tril": lambda t: t.s.tril(-1),
    "triu": lambda t: t.s.triu(1),
    "add": lambda t: t.a.add(t.b),
    "addAlpha": lambda t: t.a.add(t.b, alpha=0.5),
    "addNumber": lambda t: t.a.add(2.5),
    "addScalarTensor": lambda t: t.scalar.add(t.scalar),
    "addEmpty": lambda t: t.none.add(t.three),
    "sub": lambda t: t.a.sub(t.b, alpha=2),
    "mul": lambda t: t.a.mul(t.b),
    "div": lambda t: t.a.div(t.p),
    "divFloor": lambda t: t.a.div(0.75, rounding_mode="floor"),
    "divTrunc": lambda t: t.a.div(0.75, rounding_mode="trunc"),
    "rsub": lambda t: torch.rsub(t.a, 3),
    "pow": lambda t: t.p.pow(1.5),
    "powTensor": lambda t: t.p.pow(t.b),
    "remainder": lambda t: t.a.remainder(0.75),
    "floorDivide": lambda t: t.a.floor_divide(0.75),
    "maximum": lambda t: t.a.maximum(t.b),
    "minimum": lambda t: t.a.minimum(t.b),
    "eq": lambda t: t.a.eq(t.a.round()),
    "ne": lambda t: t.a.ne(t.a.round()),
    "lt": lambda t: t.a.lt(t.b),
    "le": lambda t: t.a.le(0.5),
    "gt": lambda t: t.a.gt(t.b),
    "ge": lambda t: t.a.ge(0.5),
    "logicalAnd": lambda t: t.a.logical_and(t.k),
    "logicalOr": lambda t: t.a.logical_or(t.k),
    "lerp": lambda t: t.a.lerp(t.c, 0.25),
    "lerpTensor": lambda t: t.a.lerp(t.c, t.p),
    "addcmul": lambda t: t.a.addcmul(t.b, t.c, value=0.5),
    "matmul": lambda t: t.m.matmul(t.n),
    "matmulVector": lambda t: t.m.matmul(t.v),
    "matmulBatch": lambda t: t.a.matmul(t.n),
    "bmm": lambda t: t.x1.bmm(t.x2),
    "addmm": lambda t: t.three.unsqueeze(1).addmm(t.m, t.n, beta=0.5, alpha=2),
    "copy_": lambda t: t.a.clone().copy_(t.b),
    "fill_": lambda t: t.a.clone().fill_(-1.5),
    "zero_": lambda t: t.a.clone().zero_(),
    "add_": lambda t: t.a.clone().add_(t.b, alpha=2),
    "sub_": lambda t: t.a.clone().sub_(t.b, alpha=2),
    "mul_": lambda t: t.a.clone().mul_(t.b),
    "div_": lambda t: t.a.clone().div_(t.p),
    "addcmul_": lambda t: t.a.clone().addcmul_(t.b, t.c, value=2),
    "addcdiv_": lambda t: t.a.clone().addcdiv_(t.b, t.p, value=2),
    "lerp_": lambda t: t.a.clone().lerp_(t.c, 0.75),
    "clamp_": lambda t: t.a.clone().clamp_(-0.5, 0.5),
    "maskedFill_": lambda t: t.a.clone().masked_fill_(t.k, 9),
    "scatter_": lambda t: t.a.clone().scatter_(2, t.which[..., :1], t.c),
    "scatterValue_": lambda t: t.a.clone().scatter_(2, t.which, 5),
    "scatterAdd_": lambda t: t.a.clone().scatter_add_(2, t.which, t.c),
    "indexCopy_": lambda t: t.a.clone().index_copy_(1, t.rows[:2], t.c[:, :2]),
    "view": lambda t: t.a.view(6, -1),
    "reshape": lambda t: t.a.transpose(0, 2).reshape(-1, 2),
    "expand": lambda t: t.b.expand(2, -1, 4),
    "repeat": lambda t: t.b.repeat(2, 1, 2),
    "permute": lambda t: t.a.permute(2, 0, 1),
    "transpose": lambda t: t.a.transpose(-1, 0),
    "movedim": lambda t: t.a.movedim(0, -1),
    "unsqueeze": lambda t: t.a.unsqueeze(-1),
    "squeeze": lambda t: t.b.squeeze(-1),
    "squeezeSeveral": lambda t: t.b[None].squeeze((0, 2)),
    "flatten": lambda t: t.a.flatten(1),
    "flattenAll": lambda t: t.a.flatten(),
    "unflatten": lambda t: t.a.unflatten(-1, (2, -1)),
    "flip": lambda t: t.a.flip(0, 2),
    "roll": lambda t: t.a.roll((1, -1), (0, 2)),
    "rollOne": lambda t: t.a.roll(2, -1),
    "repeatInterleave": lambda t: t.a.repeat_interleave(2, 1),
    "asStrided": lambda t: t.a.as_strided((3, 2), (2, 1), 3),
    "select": lambda t: t.a.select(1, -1),
    "narrow": lambda t: t.a.narrow(-1, 1, 2),
    "slice": lambda t: t.a[:, :, 1::2],
    "sliceNegative": lambda t: t.a[:, -2:-1],
    "split": lambda t: t.a.split(3, -1),
    "splitSizes": lambda t: t.a.split((1, 3), 2),
    "chunk": lambda t: t.a.chunk(2, 1),
    "unbind": lambda t: t.a.unbind(1),
    "gather": lambda t: t.a.gather(2, t.which),
    "scatter": lambda t: t.a.scatter(2, t.which[..., :1], t.c),
    "scatterValue": lambda t: t.a.scatter(2, t.which, 5),
    "indexSelect": lambda t: t.a.index_select(1, t.rows),
    "index": lambda t: t.a[:, t.rows],
    "indexTwo": lambda t: t.a[torch.tensor([0, 1, 1]), t.rows],
    "indexBool": lambda t: t.a[t.k],
    "maskedFill": lambda t: t.a.masked_fill(t.k, -9),
    "maskedSelect": lambda t: t.a.masked_select(t.k),
    "nonzero": lambda t: t.a.relu().nonzero(),
    "diagonal": lambda t: t.s.diagonal(1),
    "diagonalBatch": lambda t: t.a.diagonal(-1, 1, 2),
    "sum": lambda t: t.a.sum(),
    "sumDims": lambda t: t.a.sum((0, -1)),
    "sumKeep": lambda t: t.a.sum(1, keepdim=True),
    "sumWide": lambda t: t.a.sum(1, dtype=torch.float64),
    "sumEmpty": lambda t: t.none.sum(0),
    "sumScalar": lambda t: t.scalar.sum(),
    "mean": lambda t: t.a.mean(),
    "meanDims": lambda t: t.a.mean((1, 2), keepdim=True),
    "std": lambda t: t.a.std(),
    "stdDim": lambda t: t.a.std(-1, correction=0, keepdim=True),
    "var": lambda t: t.a.var(1),
    "varAll": lambda t: t.a.var(correction=0),
    "norm": lambda t: t.a.norm(),
    "normOne": lambda t: torch.linalg.vector_norm(t.a, 1, -1, keepdim=True),
    "normInf": lambda t: torch.linalg.vector_norm(t.a, float("inf"), (0, 1)),
    "prod": lambda t: t.p.prod(),
    "amax": lambda t: t.a.amax(),
    "amaxDims": lambda t: t.a.amax((0, 2), keepdim=True),
    "amin": lambda t: t.a.amin(-1),
    "argmax": lambda t: t.a.argmax(),
    "argmaxDim": lambda t: t.a.argmax(1, keepdim=True),
    "argmin": lambda t: t.a.argmin(-1),
    "max": lambda t: t.a.max(1),
    "min": lambda t: t.a.min(-1, keepdim=True),
    "topk": lambda t: t.a.topk(2),
    "topkSmallest": lambda t: t.a.topk(2, 1, largest=False),
    "sort": lambda t: t.a.sort(1),
    "sortDescending": lambda t: t.a.sort(dim=-1, descending=True, stable=True),
    "argsort": lambda t: t.a.argsort(1, True),
    "logsumexp": lambda t: t.a.logsumexp(-1),
    "logsumexpDims": lambda t: t.a.logsumexp((0, 2), keepdim=True),
    "cumsum": lambda t: t.a.cumsum(-1),
    "cumsumWide": lambda t: t.a.cumsum(0, dtype=torch.float64),
    "all": lambda t: t.a.round().all(),
    "allDim": lambda t: t.a.round().all(-1, keepdim=True),
    "any": lambda t: t.a.trunc().any(),
    "anyDim": lambda t: t.a.trunc().any(1),
    "unique": lambda t: t.a.round().unique(),
    "float": lambda t: t.a.float(),
    "double": lambda t: t.a.double(),
    "half": lambda t: t.a.half(),
    "bfloat16": lambda t: t.a.bfloat16(),
    "long": lambda t: t.a.mul(3).long(),
    "int": lambda t: t.a.mul(3).int(),
    "bool": lambda t: t.a.trunc().bool(),
    "to": lambda t: t.a.to(torch.float32),
    "contiguous": lambda t: t.a.transpose(0, 1).contiguous(),
    "clone": lambda t: t.a.clone(),
    "detach": lambda t: t.a.detach(),
    "cat": lambda t: torch.cat([t.a, t.c], -1),
    "stack": lambda t: torch.stack([t.a, t.c], 1),
    "where": lambda t: torch.where(t.k, t.a, t.b),
    "whereNumber": lambda t: torch.where(t.k, t.a, 0.5),
    "einsum": lambda t: torch.einsum("bij,bjk->bki", t.x1, t.x2),
    "meshgrid": lambda t: torch.meshgrid(t.three, t.v, indexing="ij"),
    "zerosLike": lambda t: torch.zeros_like(t.a),
    "onesLike": lambda t: torch.ones_like(t.a),
    "fullLike": lambda t: torch.full_like(t.a, 3),
    "linear": lambda t: F.linear(t.a, t.n.T, torch.cat([t.v, t.scalar[None]])),
    "linearPlain": lambda t: F.linear(t.m, t.s),
    "embedding": lambda t: F.embedding(t.rows, t.m),
    "conv2d": lambda t: F.conv2d(t.img, t.w, t.six, padding=1),
    "conv2dStride": lambda t: F.conv2d(t.img, t.w, None, stride=(2, 1), padding=(0, 1), dilation=(1, 2)),
    "conv2dGroups": lambda t: F.conv2d(t.img, t.wg, t.six, groups=2),
    "conv2dChannelsLast": lambda t: F.conv2d(t.img.contiguous(memory_format=torch.channels_last), t.w, padding=1),
    "convTranspose2d": lambda t: F.conv_transpose2d(t.img, t.wt, t.three, stride=2, padding=1, output_padding=1),
    "layerNorm": lambda t: F.layer_norm(t.a, (4,), t.v, t.four, 1e-3),
    "layerNormPlain": lambda t: F.layer_norm(t.a, (3, 4)),
    "rmsNorm": lambda t: F.rms_norm(t.a, (4,), t.v, 1e-3),
    "groupNorm": lambda t: F.group_norm(t.img, 2, t.v, t.four, 1e-3),
    "batchNorm": lambda t: F.batch_norm(t.img, t.v, t.pos4, t.four, t.v, False, 0.1, 1e-3),
    "batchNormTraining": lambda t: F.batch_norm(t.img, None, None, None, None, True, 0.1, 1e-3),
    "attention": lambda t: F.scaled_dot_product_attention(t.q, t.kv, t.val),
    "attentionCausal": lambda t: F.scaled_dot_product_attention(t.q, t.q, t.q, is_causal=True, scale=0.5),
    "attentionMask": lambda t: F.scaled_dot_product_attention(t.q, t.kv, t.val, t.attend),
    "attentionBias": lambda t: F.scaled_dot_product_attention(t.q, t.kv, t.val, t.maskadd),
    "attentionGrouped": lambda t: F.scaled_dot_product_attention(t.q, t.kv1, t.kv1, enable_gqa=True),
    "dropoutOff": lambda t: F.dropout(t.a, 0.5, False),
    "pad": lambda t: F.pad(t.a, (1, 2, 0, 1), value=3),
    "padReflect": lambda t: F.pad(t.img, (2, 1, 1, 0), mode="reflect"),
    "padReplicate": lambda t: F.pad(t.img, (2, 1, 1, 0), mode="replicate"),
    "padCircular": lambda t: F.pad(t.img, (2, 1, 1, 0), mode="circular"),
    "interpolate": lambda t: F.interpolate(t.img, scale_factor=2),
    "interpolateNearestExact": lambda t: F.interpolate(t.img, size=(4, 9), mode="nearest-exact"),
    "interpolateBilinear": lambda t: F.interpolate(t.img, size=(4, 9), mode="bilinear"),
    "interpolateCorners": lambda t: F.interpolate(t.img, scale_factor=1.5, mode="bilinear", align_corners=True),
    "interpolateBicubic": lambda t: F.interpolate(t.img, size=(9, 9), mode="bicubic"),
    "interpolateArea": lambda t: F.interpolate(t.img, size=(4, 3), mode="area"),
    "interpolateAreaScale": lambda t: F.interpolate(t.img, scale_factor=0.5, mode="area"),
    "avgPool2d": lambda t: F.avg_pool2d(t.img, 3, 2, 1),
    "avgPool2dInside": lambda t: F.avg_pool2d(t.img, (3, 2), padding=1, ceil_mode=True, count_include_pad=False),
    "maxPool2d": lambda t: F.max_pool2d(t.img, 2),
    "maxPool2dStride": lambda t: F.max_pool2d(t.img, 3, (2, 1), 1, ceil_mode=True),
    "normalize": lambda t: F.normalize(t.a),
    "normalizeOne": lambda t: F.normalize(t.a, 1, -1),
    "cosineSimilarity": lambda t: F.cosine_similarity(t.a, t.c, -1),
    "crossEntropy": lambda t: F.cross_entropy(t.logits, t.target),
    "crossEntropySmooth": lambda t: F.cross_entropy(
        t.logits, t.target.clamp(0), reduction="sum", label_smoothing=0.1, ignore_index=3
    ),
    "crossEntropyWeight": lambda t: F.cross_entropy(t.logits, t.target, torch.cat([t.pos4, t.scalar[None]])),
    "crossEntropyNone": lambda t: F.cross_entropy(t.logits, t.target, reduction="none"),
    "mseLoss": lambda t: F.mse_loss(t.a, t.c),
    "l1Loss": lambda t: F.l1_loss(t.a, t.c, reduction="sum"),
    "smoothL1Loss": lambda t: F.smooth_l1_loss(t.a, t.c, reduction="none", beta=0.5),
    "binaryCrossEntropyWithLogits": lambda t: F.binary_cross_entropy_with_logits(t.a, t.c.sigmoid()),
    "klDiv": lambda t: F.kl_div(t.a.log_softmax(-1), t.c.softmax(-1), reduction="sum"),
    "klDivLog": lambda t: F.kl_div(t.a.log_softmax(-1), t.c.log_softmax(-1), reduction="none", log_target=True),
}


def wide(tensor):
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


# What antialiasing has no bfloat16 kernel for.
FULL_FLOATS = {
    "interpolateAntialias": lambda t: F.interpolate(t.img, size=(4, 3), mode="bilinear", antialias=True),
    "interpolateBicubicAntialias": lambda t: F.interpolate(t.img, size=(4, 3), mode="bicubic", antialias=True),
}

# Integers and booleans, and what mixing them with floats gives.
INTEGERS = {
    "intAdd": lambda t: t.i.add(t.j),
    "intAddFloat": lambda t: t.i.add(0.5),
    "intAddBool": lambda t: t.i.add(t.k),
    "intSub": lambda t: t.i.sub(t.j, alpha=3),
    "intMul": lambda t: t.i.mul(-3),
    "intDiv": lambda t: t.i.div(t.j),
    "intDivFloor": lambda t: t.i.div(t.j, rounding_mode="floor"),
    "intDivTrunc": lambda t: t.i.div(t.j, rounding_mode="trunc"),
    "intFloorDivide": lambda t: t.i.floor_divide(t.j),
    "intRemainder": lambda t: t.i.remainder(3),
    "intPow": lambda t: t.j.pow(2),
    "intAbs": lambda t: t.i.abs(),
    "intSum": lambda t: t.i.sum(),
    "intProd": lambda t: t.j.prod(),
    "intMax": lambda t: t.i.max(-1),
    "intSort": lambda t: t.i.sort(dim=-1, stable=True),
    "intCumsum": lambda t: t.i.cumsum(1),
    "intClamp": lambda t: t.i.clamp(-2, 2),
    "intMaximum": lambda t: t.i.maximum(t.j),
    "intEq": lambda t: t.i.eq(t.j),
    "intMatmul": lambda t: t.i.matmul(t.j.T),
    "intUnique": lambda t: t.i.unique(),
    "intBincount": lambda t: t.sparse.bincount(),
    "intBincountLong": lambda t: t.sparse.bincount(minlength=8),
    "intOneHot": lambda t: F.one_hot(t.sparse, 6),
    "intAnd": lambda t: t.i.bitwise_and(6),
    "intOr": lambda t: t.i.bitwise_or(t.j),
    "intSqrt": lambda t: t.j.sqrt(),
    "intMeanOfFloat": lambda t: t.i.float().mean(0),
    "boolAnd": lambda t: t.k.bitwise_and(t.k.flip(0)),
    "boolOr": lambda t: t.k.bitwise_or(t.k.flip(2)),
    "boolNot": lambda t: t.k.logical_not(),
    "boolSum": lambda t: t.k.sum(1),
    "boolAll": lambda t: t.k.all(-1),
    "boolAny": lambda t: t.k.any((0, 2)),
    "boolNonzero": lambda t: t.k.nonzero(),
    "boolMul": lambda t: t.k.mul(t.i),
    "boolWhere": lambda t: torch.where(t.k, 1, 0),
    "boolFloat": lambda t: t.k.float(),
    "creationArange": lambda t: torch.arange(2, 11, 3),
    "creationArangeFloat": lambda t: torch.arange(1, 0, -0.25, dtype=torch.float32),
    "creationLinspace": lambda t: torch.linspace(-1, 2, 7),
    "creationEye": lambda t: torch.eye(3, dtype=torch.int64),
    "creationFull": lambda t: torch.full((2, 2), 7, dtype=torch.int32),
    "creationFullFloat": lambda t: torch.full((2, 2), 7, dtype=torch.float32),
    "creationOnes": lambda t: torch.ones(2, 3),
    "creationZeros": lambda t: torch.zeros(0, 3, dtype=torch.bool),
}


class Inputs:
    """The inputs by name, floats in one dtype."""

    def __init__(self, dtype):
        for name, tensor in INPUTS.items():
            setattr(self, name, tensor.to(dtype) if tensor.is_floating_point() else tensor.clone())


def results(cases, dtype, suffix):
    inputs = Inputs(dtype)
    for name, run in cases.items():
        result = run(inputs)
        if isinstance(result, torch.Tensor):
            yield f"{name}{suffix}", result.contiguous().clone()
        else:
            for i, part in enumerate(result):
                yield f"{name}{suffix}.{i}", part.contiguous().clone()


def operators():
    tensors = {f"in.{name}": tensor for name, tensor in INPUTS.items()}
    for name, dtype in DTYPES.items():
        tensors.update(results(FLOATS, dtype, f"@{name}"))
        if dtype != torch.bfloat16:
            tensors.update(results(FULL_FLOATS, dtype, f"@{name}"))
    tensors.update(results(INTEGERS, torch.float32, ""))
    return tensors


def autocast():
    """A small network under autocast: values, dtypes and gradients, nested and switched off inside."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(6, 8, generator=generator)
    image = torch.randn(2, 3, 8, 8, generator=generator)
    w1, w2 = (torch.randn(8, 8, generator=generator).requires_grad_() for _ in range(2))
    filters = torch.randn(4, 3, 3, 3, generator=generator).requires_grad_()
    out = {"x": x, "image": image, "w1": w1.detach().clone(), "w2": w2.detach().clone(),
           "filters": filters.detach().clone()}
    with torch.autocast("cpu", torch.bfloat16):
        hidden = x @ w1
        narrow = F.gelu(hidden)
        normed = F.layer_norm(narrow, (8,))
        probs = narrow.softmax(-1)
        with torch.autocast("cpu", enabled=False):
            exact = narrow.float() @ w2
            with torch.autocast("cpu", torch.float16):
                inner = x @ w2.detach()  # PyTorch would go on to use the float16 weight outside
        again = x @ w1
        convolved = F.conv2d(image, filters, padding=1)
        loss = (F.mse_loss(narrow @ w2, x) + again.float().square().mean() + convolved.float().square().mean())
    loss.backward()
    out |= {"hidden": hidden, "narrow": narrow, "normed": normed, "probs": probs, "exact": exact, "inner": inner,
            "again": again, "convolved": convolved, "loss": loss, "w1.grad": w1.grad, "w2.grad": w2.grad,
            "filters.grad": filters.grad}
    return {name: tensor.detach().contiguous().clone() for name, tensor in out.items()}


SEEDS = {"0": 0, "7": 7, "2_32": 2**32 + 7, "2_63": 2**63 + 11, "minus": -3}


def random():
    """Numbers of the default generator after each seed, and of a generator of its own."""
    out = {}
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [4.0, 1.0, 0.0, 5.0]])
    for name, seed in SEEDS.items():
        torch.manual_seed(seed)
        out[f"{name}.rand"] = torch.rand(5)
        out[f"{name}.randDouble"] = torch.rand(3, dtype=torch.float64)
        out[f"{name}.randn"] = torch.randn(5)
        out[f"{name}.randnLong"] = torch.randn(20)
        out[f"{name}.randint"] = torch.randint(-3, 1000, (6,))
        out[f"{name}.randperm"] = torch.randperm(9)
        out[f"{name}.multinomial"] = torch.multinomial(weights, 3)
        out[f"{name}.multinomialReplaced"] = torch.multinomial(weights, 6, replacement=True)
        out[f"{name}.bernoulli"] = torch.bernoulli(torch.full((12,), 0.3))
        out[f"{name}.dropout"] = F.dropout(torch.ones(12), 0.4, True)
        generator = torch.Generator().manual_seed(seed)
        out[f"{name}.own.rand"] = torch.rand(5, generator=generator)
        out[f"{name}.own.randn"] = torch.randn(20, generator=generator)
        out[f"{name}.own.randint"] = torch.randint(0, 10, (4,), generator=generator)
        out[f"{name}.own.randperm"] = torch.randperm(6, generator=generator)
        out[f"{name}.own.multinomial"] = torch.multinomial(weights, 2, generator=generator)
        out[f"{name}.own.bernoulli"] = torch.bernoulli(torch.full((5,), 0.5), generator=generator)
    return out


OUT.mkdir(parents=True, exist_ok=True)
for name, make in {"operators": operators, "autocast": autocast, "random": random}.items():
    save_file(make(), OUT / f"{name}.safetensors", METADATA)
