"""Features and probabilities, and what SciPy, TorchMetrics and plain NumPy say of them, for the tests of src/metrics.

    python scripts/golden/distribution.py

Needs torch, torchmetrics, scipy, numpy and safetensors; writes test/golden/metrics/distribution.safetensors.
"""

import pathlib

import numpy as np
import scipy
import torch
import torchmetrics
from safetensors.torch import save_file
from scipy.spatial.distance import cdist
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

OUT = pathlib.Path(__file__).parents[2] / "test" / "golden" / "metrics" / "distribution.safetensors"
SEED = 0
VERSIONS = {
    "numpy": np.__version__,
    "scipy": scipy.__version__,
    "torch": torch.__version__,
    "torchmetrics": torchmetrics.__version__,
    "seed": str(SEED),
}
rng = np.random.default_rng(SEED)


def features(n, d, shift=0.0, scale=1.0):
    """Correlated, far from the origin, with scales that span two decades; float32, as networks give them."""
    mix = rng.normal(size=(d, d)) * np.logspace(0, -2, d)
    return (rng.normal(size=(n, d)) @ mix * scale + 3 + shift).astype(np.float32)


def frechet(real, fake):
    """Heusel et al. 2017, eq. 6, with SciPy's square root of a matrix."""
    means = [x.mean(0) for x in (real, fake)]
    covs = [np.cov(x, rowvar=False) for x in (real, fake)]
    root = scipy.linalg.sqrtm(covs[0] @ covs[1])
    return ((means[0] - means[1]) ** 2).sum() + np.trace(covs[0]) + np.trace(covs[1]) - 2 * np.trace(root).real


def frechet_of_ranks(real, fake):
    """The same for singular covariances: nuclear norm of the product of the centred features, which needs no root."""
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (real, fake))
    shift = ((real.mean(0) - fake.mean(0)) ** 2).sum()
    return shift + (a**2).sum() + (b**2).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()


def radii(x, k):
    """Distance to the k-th nearest other sample."""
    return np.sort(cdist(x, x), axis=1)[:, k]


def precision_recall(real, fake, k):
    """Kynkäänniemi et al. 2019, eq. 1 and 2."""
    between = cdist(real, fake)
    precision = (between <= radii(real, k)[:, None]).any(0).mean()
    recall = (between <= radii(fake, k)[None, :]).any(1).mean()
    return precision, recall


def density_coverage(real, fake, k):
    """Naeem et al. 2020, eq. 3 and 4."""
    within = cdist(real, fake) <= radii(real, k)[:, None]
    return within.sum() / (k * len(fake)), within.any(1).mean()


def inception_score(p, splits):
    """Salimans et al. 2016, sec. 4."""
    scores = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(kl.sum(1).mean()))
    return np.mean(scores), np.std(scores)


def pairwise(x, classes):
    means = []
    for c in np.unique(classes):
        own = x[classes == c]
        if len(own) > 1:
            means.append(cdist(own, own).sum() / (len(own) * (len(own) - 1)))
    return np.mean(means)


out = {}


def keep(name, value):
    out[name] = torch.as_tensor(value).contiguous()
    return value


real, fake = keep("real", features(90, 12)), keep("fake", features(70, 12, shift=0.3, scale=1.3))
a, b = real.astype(np.float64), fake.astype(np.float64)
x, y = torch.from_numpy(a), torch.from_numpy(b)
keep("mean", a.mean(0))
keep("cov", np.cov(a, rowvar=False))
keep("frechet", frechet(a, b))
other = _compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()).item()
assert np.isclose(other, frechet(a, b), rtol=1e-8), other
assert np.isclose(frechet_of_ranks(a, b), frechet(a, b), rtol=1e-8)

few, fewer = keep("few", features(10, 24)), keep("fewer", features(7, 24, shift=0.2))
keep("frechet.singular", frechet_of_ranks(few.astype(np.float64), fewer.astype(np.float64)))

keep("kernel", poly_mmd(x[:70], y))
keep("kernel.other", poly_mmd(x[:70], y, degree=2, gamma=0.05, coef=0.5))
k_xx, k_yy, k_xy = ((u @ v.T / 12 + 1) ** 3 for u, v in ((a, a), (b, b), (a, b)))
unequal = (k_xx.sum() - np.trace(k_xx)) / (90 * 89) + (k_yy.sum() - np.trace(k_yy)) / (70 * 69) - 2 * k_xy.mean()
keep("kernel.unequal", unequal)
keep("kernel.biased", k_xx.mean() + k_yy.mean() - 2 * k_xy.mean())

for k in (1, 3, 5):
    keep(f"precision_recall.{k}", np.array(precision_recall(a, b, k)))
    keep(f"density_coverage.{k}", np.array(density_coverage(a, b, k)))
between = cdist(b, a)
keep("nearest.distance", between.min(1))
keep("nearest.index", between.argmin(1))
classes = keep("classes", rng.integers(0, 5, 90))
classes[classes == 4] = 3
classes[0] = 4  # alone
out["classes"] = torch.from_numpy(classes.copy())
keep("pairwise", pairwise(a, np.zeros(90)))
keep("pairwise.classes", pairwise(a, classes))

logits = rng.normal(size=(203, 6)) * 2
p = keep("probabilities", torch.from_numpy(logits).float().softmax(1).numpy())
for splits in (1, 10):
    keep(f"inception_score.{splits}", np.array(inception_score(p.astype(np.float64), splits)))

OUT.parent.mkdir(parents=True, exist_ok=True)
save_file(out, OUT, metadata=VERSIONS)
OUT.chmod(0o644)
