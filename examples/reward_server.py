#!/usr/bin/env python3
"""A reward server in Python: CLIP, PickScore and HPS by transformers, with weights from this machine.

The protocol is in docs/reward_servers.md; use it as a start for your own server.

    pip install torch transformers pillow
    python examples/reward_server.py --clip clip-vit-large-patch14 --pickscore PickScore_v1 --hps HPSv2-hf

Each folder holds a CLIP model with its processor, as transformers saves them (config.json, model.safetensors,
preprocessor_config.json, tokenizer files). PickScore_v1 has no processor: give that of
laion/CLIP-ViT-H-14-laion2B-s32B-b79K with --processor pickscore=FOLDER. Nothing is downloaded.

Scores, with normalised embeddings i of the image and t of the text:
    clip       cos(i, t)
    pickscore  exp(logit_scale) * cos(i, t)          (Kirstain et al. 2023)
    hps        cos(i, t) of a CLIP fine-tuned for HPS (Wu et al. 2023)
"""
import argparse
import base64
import hmac
import io
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

MAX_BYTES = 256 * 2**20  # of a request
REWARDS = ("clip", "pickscore", "hps")


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Scorer:
    """Scores of one CLIP model. Images and texts of a request are one batch."""

    def __init__(self, folder, processor, device, is_scaled):
        import torch
        from transformers import AutoProcessor, CLIPModel

        self.torch = torch
        self.device = device
        self.is_scaled = is_scaled
        self.model = CLIPModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        self.processor = AutoProcessor.from_pretrained(processor, local_files_only=True)
        self.lock = Lock()  # one batch at a time

    def __call__(self, images, texts):
        torch = self.torch
        # Not every tokenizer knows how many codes the model reads.
        most = self.model.config.text_config.max_position_embeddings
        inputs = self.processor(
            text=texts, images=images, return_tensors="pt", padding=True, truncation=True, max_length=most
        )
        with self.lock, torch.no_grad():
            out = self.model(**inputs.to(self.device))
            image = torch.nn.functional.normalize(out.image_embeds.float(), dim=-1)
            text = torch.nn.functional.normalize(out.text_embeds.float(), dim=-1)
            scores = (image * text).sum(-1)
            if self.is_scaled:
                scores = scores * self.model.logit_scale.exp().float()
        return scores.cpu().tolist()


def read_image(turn):
    from PIL import Image

    try:
        return Image.open(io.BytesIO(base64.b64decode(turn["image_b64"], validate=True))).convert("RGB")
    except Exception as error:
        raise Refusal(400, f"expected an image in base64 as image_b64, got {error!r}") from error


def score(scorers, template, body):
    """The answer to POST /score. A reward that fails is reported for its own samples only."""
    requests = body.get("requests") if isinstance(body, dict) else None
    if not isinstance(requests, list) or not requests or not all(isinstance(one, dict) for one in requests):
        raise Refusal(400, "expected a list of requests")
    wanted = {}
    for place, request in enumerate(requests):
        for name in request.get("required_rewards") or []:
            if name not in scorers:
                raise Refusal(400, f"expected rewards among {sorted(scorers)}, got {name}")
            wanted.setdefault(name, []).append(place)
    turns = [(request.get("history") or [{}])[-1] for request in requests]
    images = [read_image(turn) for turn in turns]
    texts = [template.replace("{}", turn.get("text") or "") for turn in turns]
    results = [{} for _ in requests]
    errors = [{} for _ in requests]
    for name, places in wanted.items():
        try:
            values = scorers[name]([images[i] for i in places], [texts[i] for i in places])
            for i, value in zip(places, values, strict=True):
                results[i][name] = {name: value}
        except Exception as error:  # such as too little memory
            for i in places:
                errors[i][name] = repr(error)
    return {"results": results, "errors": errors}


def handler_of(scorers, template, token):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open

        def do_GET(self):
            if self.path == "/health":
                self.send(200, {"status": "ok", "rewards": {name: ["ok"] for name in scorers}})
            elif self.path == "/rewards":
                self.send(200, {"rewards": sorted(scorers)})
            else:
                self.send(404, {"error": "expected POST /score"})

        def do_POST(self):
            try:
                self.send(200, score(scorers, template, self.read_body()))
            except Refusal as error:
                self.send(error.status, {"error": str(error)})
            except Exception as error:
                self.send(500, {"error": repr(error)})

        def read_body(self):
            length = int(self.headers.get("content-length") or 0)
            if length > MAX_BYTES:
                self.close_connection = True
                raise Refusal(413, f"expected at most {MAX_BYTES} bytes")
            body = self.rfile.read(length)
            if self.path != "/score":
                raise Refusal(404, "expected POST /score")
            given = (self.headers.get("authorization") or "").encode()
            if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
                raise Refusal(401, "expected the bearer token of this server")
            try:
                return json.loads(body)
            except ValueError as error:
                raise Refusal(400, "expected JSON") from error

        def send(self, status, body):
            # NaN is not JSON: a score that is none fails its sample.
            data = json.dumps(body, allow_nan=False).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    return Handler


def main():
    parser = argparse.ArgumentParser(description="Reward server: CLIP, PickScore, HPS.")
    for name in REWARDS:
        parser.add_argument(f"--{name}", metavar="FOLDER", help=f"model of the reward {name}")
    parser.add_argument("--processor", metavar="REWARD=FOLDER", action="append", default=[])
    parser.add_argument("--template", default="{}", help="text around each caption, such as 'a photo of {}'")
    parser.add_argument("--device", default=None, help="default: cuda where there is one")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--token-env", metavar="NAME", help="environment variable with a bearer token")
    options = parser.parse_args()
    folders = {name: getattr(options, name) for name in REWARDS if getattr(options, name)}
    if not folders:
        parser.error("expected --clip, --pickscore or --hps with a folder, got none")
    token = os.environ.get(options.token_env) if options.token_env else None
    if options.token_env and not token:
        parser.error(f"expected a token in {options.token_env}, got nothing")
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    processors = dict(pair.split("=", 1) for pair in options.processor)
    scorers = {
        name: Scorer(folder, processors.get(name, folder), device, name == "pickscore")
        for name, folder in folders.items()
    }
    server = ThreadingHTTPServer(("127.0.0.1", options.port), handler_of(scorers, options.template, token))
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
