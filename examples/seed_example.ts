/**
 * The example of the original description in TypeScript: an IBQ tokenizer, a GPT policy, GRPO, and a loader of one's
 * own. Sizes are tiny and weights random, so that it runs in seconds on a CPU and shows how the parts are put together;
 * with a trained tokenizer (`ckptPath`) and published sizes it is a real run. Keys may be in snake_case, as here, or in
 * camelCase.
 *
 *   npm run build && node dist/examples/seed_example.js [FOLDER]
 */
import { fileURLToPath } from "node:url";
import {
  buildToklipTokenizer,
  GPT,
  LlamaGen,
  type TrainConfigInput,
  type TrainOptions,
  type TrainResult,
  torch,
  trainRlLoop,
} from "../src/index.js";

const IMAGES = fileURLToPath(new URL("../../test/fixtures/emoji_16px.safetensors", import.meta.url));

/** 32 emoji, four at a time: float32 `[4, 3, 16, 16]`, already in the tokenizer's range [-1, 1]. */
function* myImageLoader(): Generator<torch.Tensor> {
  const { images, labels } = torch.loadSafetensors(IMAGES).tensors as Record<
    "images" | "labels",
    torch.Tensor
  >;
  try {
    for (let first = 0; first < 32; first += 4) {
      using batch = torch.tidy(() => images.narrow(0, first, 4).float().div(127.5).sub(1));
      yield batch;
    }
  } finally {
    images.dispose();
    labels.dispose();
  }
}

/**
 * Train for a few iterations.
 *
 * @param folder - the run's.
 * @param ar - `"gpt"`, or `"llammagen"` as the description spells it.
 */
export async function runSeedExample(
  folder: string,
  ar: "gpt" | "llammagen" = "gpt",
  options: TrainOptions = {},
): Promise<TrainResult> {
  // 1) Build TokLIP tokenizer (frozen)
  const tokInit = {
    ddconfig: {
      double_z: false,
      z_channels: 16,
      resolution: 16,
      in_channels: 3,
      out_ch: 3,
      ch: 8,
      ch_mult: [1, 2, 2], // two halvings: a code stands for 4 x 4 pixels
      num_res_blocks: 1,
      attn_resolutions: [4],
      dropout: 0.0,
    },
    lossconfig: {},
    n_embed: 64,
    embed_dim: 8,
    norm_groups: 4,
    l2_normalize: false,
    use_ema: false,
    stage: null,
  };
  const tokenizer = buildToklipTokenizer(tokInit); // with weights: { ckptPath: "/path/to/toklip_vq.ckpt", device: "cuda" }

  // 2) Prepare cfg for training
  const cfg: TrainConfigInput = {
    vq_model: tokenizer.vq, // or the tokenizer itself, as `tokenizer`
    ar:
      ar === "gpt"
        ? { type: "gpt", cls: GPT, n_layer: 2, n_head: 2, n_embd: 32, lr: 2e-4 }
        : { type: "llammagen", cls: LlamaGen, n_layer: 2, n_head: 2, n_embd: 32, extra: { rope: true } },
    block_size: 16,
    dataloader: myImageLoader, // a function, so that each epoch has a loader of its own
    rollout: { max_len: 16, temperature: 1.0 },
    reward: { type: "l2", normalize: true },
    grpo: { enabled: true, num_generations: 4, clip_range: 0.2 },
    train: { iters: 10, device: "cpu", log_every: 5, save_every: 5, ckpt_path: `${folder}/grpo.safetensors` },
    run: { dir: folder, if_exists: "overwrite" }, // everything of the run is kept here, and it can be resumed
  };
  try {
    return await trainRlLoop(cfg, options);
  } finally {
    tokenizer.dispose();
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { dir, step } = await runSeedExample(process.argv[2] ?? "runs/seed_example");
  console.log(`${step} iterations are in ${dir}`);
}
