"""Features and logits of Inception v3 by pytorch-fid and by torchvision, for the tests of src/metrics.

    python scripts/golden/inception.py

Needs torch, torchvision, pytorch-fid and safetensors; writes test/golden/metrics/inception.safetensors. Weights are
random: the tests draw the same ones from the same seed.
"""

import pathlib

import pytorch_fid
import pytorch_fid.inception as reference
import torch
import torchvision
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parents[2] / "test" / "golden" / "metrics" / "inception.safetensors"
SEED = 0
VERSIONS = {
    "pytorch-fid": pytorch_fid.__version__,
    "torch": torch.__version__,
    "torchvision": torchvision.__version__,
    "seed": str(SEED),
}


def random_weights(shapes):
    """In the order of the names: variances of He et al. 2015, statistics about 0 and 1."""
    torch.manual_seed(SEED)
    state = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = torch.rand(shape) + 0.5
        elif name.endswith(("bias", "running_mean")):
            state[name] = torch.randn(shape) * 0.1
        else:
            fan_in = shape[1:].numel()
            state[name] = torch.randn(shape) * (2 / fan_in) ** 0.5
    return state


def shapes_of(model):
    return {name: value.shape for name, value in model.state_dict().items()}


def inputs():
    """Two images that are enlarged and one that is made smaller: bytes [2, 3, 40, 48] and [1, 3, 320, 384]."""
    torch.manual_seed(SEED)
    soft = torch.nn.functional.interpolate(torch.rand(2, 3, 6, 5), size=(40, 48), mode="bicubic")
    images = (soft * 255 + torch.randn(2, 3, 40, 48) * 8).round().clamp(0, 255).to(torch.uint8)
    return images, images[:1].repeat(1, 1, 8, 8)


torch.set_grad_enabled(False)
small, large = inputs()
out = {"images": small}

plain = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
state = random_weights(shapes_of(plain))
reference.load_state_dict_from_url = lambda *args, **options: state
network = reference.InceptionV3().eval()
last = reference.fid_inception_v3().eval().fc
for name, images in (("small", small), ("large", large)):
    features = network(images.float() / 255)[0].flatten(1)
    out[f"fid.{name}.features"] = features
    out[f"fid.{name}.logits"] = last(features)
    out[f"fid.{name}.logits_without_bias"] = features @ last.weight.T

network = torchvision.models.inception_v3(num_classes=1000, aux_logits=True, weights=None, init_weights=False).eval()
state = random_weights({name: shape for name, shape in shapes_of(network).items() if not name.startswith("AuxLogits")})
missing, unexpected = network.load_state_dict(state, strict=False)
assert not unexpected and all(name.startswith("AuxLogits.") for name in missing)
network.avgpool.register_forward_hook(lambda module, args, y: out.update({"torchvision.features": y.flatten(1)}))
resized = torch.nn.functional.interpolate(small.float() / 255, size=(299, 299), mode="bilinear")
out["torchvision.logits"] = network(resized * 2 - 1)

assert (out["fid.small.features"].std(0) / out["fid.small.features"].std()).mean() > 0.05, "images look alike"
OUT.parent.mkdir(parents=True, exist_ok=True)
save_file({name: value.contiguous() for name, value in out.items()}, OUT, metadata=VERSIONS)
OUT.chmod(0o644)
