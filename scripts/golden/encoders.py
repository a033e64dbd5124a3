"""Small CLIP and SigLIP models as transformers and open_clip save them, with their embeddings; tokenizers with their ids;
images as their processors prepare them. For the tests of src/encoders.

    HF_HUB_OFFLINE=1 python scripts/golden/encoders.py

Needs torch, transformers, open_clip_torch, timm, pillow, tokenizers, ftfy and safetensors; writes test/golden/encoders.
Weights are random at the published architecture and names. Embeddings are computed in float64 from float32 weights.
"""

import gzip
import importlib.resources
import json
import pathlib
import shutil
import sys

sys.path.pop(0)  # tokenizers.py beside this file is not the library of that name.

import numpy as np
import open_clip
import safetensors.torch
import timm
import tokenizers
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer, canonicalize_text
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

OUT = pathlib.Path(__file__).parents[2] / "test" / "golden" / "encoders"
torch.use_deterministic_algorithms(True)

TEXTS = [
    "a photo of a dog",
    "A Photo of THREE dogs, running; it's 1999!",
    "snow-covered mountains   at\tdawn\n",
    "caf\u00e9 \u2014 na\u00efve r\u00e9sum\u00e9 \u65e5\u672c \U0001f600",
    "under_score & ampersand &amp; <b>tag</b>",
    "",
    "word " * 40,
]


def randomize(model, seed):
    """Weights large enough that every part matters to the result."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if not value.is_floating_point() or name in ("logit_scale", "logit_bias"):
            continue
        drawn = torch.randn(value.shape, generator=generator)
        near_one = value.ndim == 1 and name.endswith("weight")
        value.copy_(1 + 0.2 * drawn if near_one else drawn * (0.3 if value.ndim < 2 else 0.25))
    return model.eval()


def ids(rows, length, vocab, eos, seed):
    """Codes of texts of different lengths: the end, then padding that is the end again."""
    generator = torch.Generator().manual_seed(seed)
    result = torch.full((rows, length), eos)
    for row in range(rows):
        used = 3 + row * (length - 4) // max(rows - 1, 1)
        result[row, :used] = torch.randint(3, vocab - 2, (used,), generator=generator)
        result[row, 0] = vocab - 2
    return result


def save(folder, **tensors):
    stored = {k: (v.float() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    safetensors.torch.save_file(stored, folder / "golden.safetensors")


def fresh(name):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def hf_clip(name, act, eos, seed, shards="1MB"):
    text = dict(vocab_size=40, hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=9, hidden_act=act, eos_token_id=eos, bos_token_id=38, pad_token_id=1)
    vision = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3, image_size=32,
                  patch_size=8, hidden_act=act)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    model = randomize(CLIPModel(config), seed)
    folder = fresh(name)
    model.save_pretrained(folder, max_shard_size=shards)
    model = model.double()
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    tokens = ids(3, 9, 40, 39, seed + 2)
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=pixels)
        image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        words = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
    save(folder, pixels=pixels, tokens=tokens, image=image, text=words, logits=out.logits_per_image)


def hf_siglip(name, seed):
    text = dict(vocab_size=40, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=6, projection_size=24)
    vision = dict(hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=2, image_size=32,
                  patch_size=8)
    model = randomize(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)), seed)
    folder = fresh(name)
    model.save_pretrained(folder)
    model = model.double()
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    tokens = ids(3, 6, 40, 1, seed + 2)
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=pixels)
        image = model.vision_model(pixel_values=pixels).pooler_output
        words = model.text_model(input_ids=tokens).pooler_output
    save(folder, pixels=pixels, tokens=tokens, image=image, text=words, logits=out.logits_per_image)


def openclip(name, cfg, build, seed, size, suffix, **extra):
    model = randomize(build(**cfg), seed)
    folder = fresh(name)
    (folder / "open_clip_config.json").write_text(json.dumps(
        {"model_cfg": {**cfg, **extra}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}, indent=2))
    if suffix == "pt":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}},
                   folder / "open_clip_pytorch_model.pt")
    else:
        safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()},
                                    folder / "open_clip_model.safetensors")
    model = model.double()
    text = cfg["text_cfg"]
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    tokens = ids(3, text["context_length"], text["vocab_size"], text["vocab_size"] - 1, seed + 2)
    with torch.no_grad():
        image, words = model.encode_image(pixels), model.encode_text(tokens)
        logits, _ = model.get_logits(pixels, tokens)
    save(folder, pixels=pixels, tokens=tokens, image=image, text=words, logits=logits)


def text_tokenizers():
    """CLIP's with its first merges, Gemma's kind and T5's kind, trained on a few words."""
    folder = fresh("clip_tokenizer")
    path = importlib.resources.files(open_clip) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1:301]
    small = folder / "bpe.txt.gz"
    small.write_bytes(gzip.compress(("#\n" + "\n".join(lines)).encode("utf-8"), mtime=0))
    simple = SimpleTokenizer(str(small), context_length=24)
    small.unlink()
    vocab = {token.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): i
             for token, i in simple.encoder.items()}
    clip = CLIPTokenizer(vocab=vocab, merges=[tuple(line.split()) for line in lines if len(line.split()) == 2])
    clip.save_pretrained(folder)
    kept = clip(TEXTS, padding="max_length", truncation=True, max_length=24).input_ids
    (folder / "golden.json").write_text(json.dumps(
        {"texts": TEXTS, "length": 24, "transformers": kept, "open_clip": simple(TEXTS).tolist()}, indent=1))

    corpus = TEXTS[:3] + ["three dogs run at dawn", "mountains of snow", "a photo of a cat"] * 4
    folder = fresh("gemma_tokenizer")
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, special_tokens=[
        "<pad>", "<eos>", "<bos>", "<unk>", *[f"<0x{i:02X}>" for i in range(256)]])
    bpe.train_from_iterator([canonicalize_text(text) for text in corpus], trainer)
    state = json.loads(bpe.to_str())["model"]
    gemma = GemmaTokenizer(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]], padding_side="right",
                           add_bos_token=False, add_eos_token=True)
    gemma.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)])
    gemma.save_pretrained(folder)
    clean = [canonicalize_text(open_clip.tokenizer.basic_clean(text)) for text in TEXTS]
    found = gemma(clean, padding="max_length", truncation=True, max_length=16).input_ids
    (folder / "golden.json").write_text(json.dumps(
        {"texts": TEXTS, "length": 16, "canonical": clean, "ids": found}, indent=1))

    folder = fresh("t5_tokenizer")
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator([canonicalize_text(text) for text in corpus], trainers.UnigramTrainer(
        vocab_size=90, show_progress=False, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"))
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    t5 = PreTrainedTokenizerFast(tokenizer_object=unigram, pad_token="</s>", eos_token="</s>", unk_token="<unk>")
    t5.save_pretrained(folder)
    found = t5(clean, padding="max_length", truncation=True, max_length=16).input_ids
    (folder / "golden.json").write_text(json.dumps({"texts": TEXTS, "length": 16, "canonical": clean, "ids": found}, indent=1))


def zero_shot():
    """A folder with weights and tokenizer, images in folders of classes, and what transformers makes of all of it."""
    text = dict(vocab_size=814, hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=24, eos_token_id=813, bos_token_id=812, pad_token_id=813)
    vision = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8)
    folder = fresh("zero_shot")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    generator = torch.Generator().manual_seed(6)
    names, images = ["a dog", "snow", "three mountains"], []
    for name in names:
        (folder / "images" / name).mkdir(parents=True)
        for i in range(3):
            soft = torch.rand(1, 3, 5, 4, generator=generator)
            image = torch.nn.functional.interpolate(soft, size=(52, 40), mode="bicubic")[0].clamp(0, 1).mul(255).round()
            images.append(Image.fromarray(image.to(torch.uint8).permute(1, 2, 0).numpy()))
            images[-1].save(folder / "images" / name / f"{i}.png")
    pixels = torch.from_numpy(np.stack(processor(images)["pixel_values"])).double()
    clip = CLIPTokenizer.from_pretrained(OUT / "clip_tokenizer")
    tokens = clip([f"a photo of {name}." for name in names], padding="max_length", max_length=24, return_tensors="pt").input_ids
    for seed in range(60, 400):  # The first random model that does not call everything by one name.
        model = randomize(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)), seed).double()
        logits = model(input_ids=tokens, pixel_values=pixels).logits_per_image
        if logits.argmax(1).unique().numel() == len(names):
            break
    image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    words = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
    save(folder, image=image, text=words, logits=logits)
    model.float().save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(OUT / "clip_tokenizer" / name, folder / "model" / name)
    truth = torch.arange(9) // 3
    predicted = [names[k] for k in logits.argmax(1)]
    accuracy = (logits.argmax(1) == truth).double().mean().item()
    (folder / "golden.json").write_text(json.dumps({"names": names, "predicted": predicted, "top1": accuracy}, indent=1))


def preprocessing():
    folder = fresh("preprocessing")
    generator = torch.Generator().manual_seed(5)
    soft = torch.nn.functional.interpolate(torch.rand(2, 3, 9, 7, generator=generator), size=(64, 48), mode="bicubic")
    grain = torch.randn(2, 3, 64, 48, generator=generator) * 25
    images = (soft * 230 + 12 + grain).clamp(0, 255).round().to(torch.uint8)
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    found = {"images": images}
    for size in (32, 80):
        clip = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        siglip = SiglipImageProcessorPil(size={"height": size, "width": size})
        plain = image_transform_v2(PreprocessCfg(size=size), is_train=False)
        found[f"clip_{size}"] = torch.from_numpy(np.stack(clip(pil)["pixel_values"]))
        found[f"siglip_{size}"] = torch.from_numpy(np.stack(siglip(pil)["pixel_values"]))
        found[f"open_clip_{size}"] = torch.stack([plain(image) for image in pil])
    save(folder, **found)


def main():
    with torch.no_grad():
        hf_clip("hf_clip_quick", "quick_gelu", 2, 10, shards="25KB")
        hf_clip("hf_clip", "gelu", 39, 20)
        hf_siglip("hf_siglip", 30)
        small = {"context_length": 9, "vocab_size": 40, "width": 16, "heads": 2, "layers": 2}
        vision = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 24, "head_width": 12}
        openclip("open_clip_quick", {"embed_dim": 12, "quick_gelu": True, "vision_cfg": vision, "text_cfg": small},
                 CLIP, 40, 32, "pt")
        trunk = {"image_size": 32, "timm_model_name": "vit_so400m_patch16_siglip_256", "timm_model_pretrained": False,
                 "timm_pool": "map", "timm_proj": "none"}
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
        create = timm.create_model  # open_clip 3.3 does not pass timm_model_kwargs on yet.
        open_clip.timm_model.timm.create_model = lambda *args, **kwargs: create(*args, **kwargs, **sizes)
        text = {**small, "width": 24, "mlp_ratio": 3.7362, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
                "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"},
                "hf_tokenizer_name": "timm/none", "tokenizer_kwargs": {"clean": "canonicalize"}}
        openclip("open_clip_siglip", {"embed_dim": 24, "init_logit_bias": -10, "vision_cfg": trunk, "text_cfg": text},
                 CustomTextCLIP, 50, 32, "safetensors", custom_text=True, vision_cfg={**trunk, "timm_model_kwargs": sizes})
    text_tokenizers()
    with torch.no_grad():
        zero_shot()
    preprocessing()
    print("tokenizers", tokenizers.__version__, "open_clip", open_clip.__version__)


main()
