"""A small TokLIP: its own token encoder and text tower with random weights, for the tests of src/encoders.

    python scripts/golden/toklip.py TokLIP/src

Needs the source of TencentARC/TokLIP, torch, torchvision, ftfy, regex and what that source imports; writes
test/golden/encoders/toklip. The tokenizer inside is a VQ-16 of the real size with random weights and 64 codes; of it
only the codebook is stored. Computed in float64 from float32 weights.
"""

import os
import pathlib
import sys
import tempfile

import safetensors.torch
import torch

OUT = pathlib.Path(__file__).resolve().parents[2] / "test" / "golden" / "encoders" / "toklip"
SOURCE = pathlib.Path(sys.argv[1]).resolve()
sys.path[0] = str(SOURCE)  # In the place of this folder, whose tokenizers.py is not the library of that name.
WIDTH, DEPTH, HEADS, SIDE = 16, 2, 2, 64


def main():
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        from tokenizer.vq_model import VQ_models

        torch.manual_seed(0)
        vq = VQ_models["VQ-16"](codebook_size=64, codebook_embed_dim=8)
        os.makedirs("tokenizer/pretrained_models")
        torch.save({"model": vq.state_dict()}, "tokenizer/pretrained_models/vq_ds16_t2i.pt")
        import open_clip.timm_model_toklip as adapter
        from open_clip.model import CustomTextCLIP
        from timm_local.models.vision_transformer import VisionTransformer

        # The real model's arguments but for its sizes.
        adapter.create_model = lambda name, num_classes, global_pool, **_: VisionTransformer(
            img_size=SIDE, patch_size=16, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=3.7362,
            class_token=False, global_pool=global_pool, num_classes=num_classes, act_layer="gelu_tanh", codebook_size=64)
        text = dict(context_length=9, vocab_size=40, width=WIDTH, heads=HEADS, layers=DEPTH, mlp_ratio=3.7362,
                    no_causal_mask=True, proj_bias=True, pool_type="last", norm_kwargs={"eps": 1e-6},
                    act_kwargs={"approximate": "tanh"})
        vision = dict(image_size=SIDE, timm_model_name="vit_so400m_patch16_toklip_256", timm_pool="map", timm_proj="none")
        model = CustomTextCLIP(embed_dim=WIDTH, init_logit_bias=-10, vision_cfg=vision, text_cfg=text).eval()
        os.chdir(OUT.parents[3])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if ".vq." in name or not value.is_floating_point() or name.startswith("logit"):
                continue
            drawn = torch.randn(value.shape, generator=generator)
            near_one = value.ndim == 1 and name.endswith("weight")
            value.copy_(1 + 0.2 * drawn if near_one else drawn * (0.3 if value.ndim < 2 else 0.25))
        state = {k: v.clone() for k, v in model.state_dict().items() if ".vq." not in k or "quantize.embedding" in k}
        model = model.double()
        images = torch.rand(3, 3, SIDE, SIDE, generator=generator).double() * 2 - 1
        tokens = torch.randint(3, 40, (3, 9), generator=generator)
        tokens[0, 4:] = 1
        codes = model.visual.trunk.vq.encode(images)[2][2].reshape(3, -1)
        image, words = model.encode_image(images), model.encode_text(tokens)
        logits, _ = model.get_logits(images, tokens)
    OUT.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, OUT / "TokLIP.pt")
    safetensors.torch.save_file({"codes": codes, "tokens": tokens, "image": image.float(), "text": words.float(),
                                 "logits": logits.float()}, OUT / "golden.safetensors")
    print(codes.unique().numel(), "codes used;", len(state), "tensors")


main()
