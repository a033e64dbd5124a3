/**
 * The shape of a training configuration, section by section. Defaults, ranges and what each key is for are in
 * `model_keys.ts`, `update_keys.ts` and `run_keys.ts`, which must have exactly these keys to compile; `rlar config explain`
 * prints them.
 */
import type { Loader } from "../data/index.js";
import type { ArPolicy } from "../policies/index.js";
import type { FrozenTokenizer, ImageTokenizer } from "../tokenizers/index.js";
import type { Tensor } from "../torch/index.js";

/** Where a run is kept. */
export interface RunConfig {
  readonly dir: string | null;
  readonly ifExists: "ask" | "resume" | "new" | "overwrite" | "fail";
}

/** The images. */
export interface DataConfig {
  readonly source: string | null;
  readonly evalSource: string | null;
  readonly evalPart: number;
  readonly label: string | null;
  readonly image: string | null;
  readonly classNames: readonly string[] | null;
  readonly size: number;
  readonly crop: "center" | "smallest_side";
  readonly flip: boolean;
  readonly balance: number;
  readonly group: string | null;
  readonly featureTokens: number | null;
  readonly maxUnreadable: number | null;
  readonly workers: number | null;
}

/** The frozen tokenizer. */
export interface TokenizerSection {
  readonly path: string | null;
  readonly wrapper: string | null;
  readonly weights: "ema" | "raw" | null;
  readonly config: Readonly<Record<string, unknown>>;
  readonly model: FrozenTokenizer | ImageTokenizer | null;
  readonly decodeBatch: number | null;
}

/** The policy: read from `path`, built from `type` and sizes, or given. */
export interface ArSection {
  readonly type: "gpt" | "llamagen" | null;
  readonly path: string | null;
  readonly wrapper: string | null;
  readonly nLayer: number | null;
  readonly nHead: number | null;
  readonly nEmbd: number | null;
  readonly extra: Readonly<Record<string, unknown>>;
  readonly cls: (new (options: never) => ArPolicy) | null;
  readonly policy: ArPolicy | null;
  readonly gradientCheckpointing: boolean;
}

/** Low-rank adapters in place of training all weights. */
export interface LoraSection {
  readonly rank: number | null;
  readonly alpha: number | null;
  readonly targets: readonly string[] | null;
}

/** A policy that is fine-tuned. */
export interface TunedArSection extends ArSection {
  readonly lora: LoraSection;
}

/** What the policy reads while it draws. */
export interface ContextSection {
  readonly type: "free" | "prefix" | "teacher_forced" | "noisy_teacher_forced";
  readonly length: number | null;
  readonly noise: number;
  readonly ramp: number;
}

/** Classifier-free guidance. */
export interface GuidanceSection {
  readonly scale: number;
  readonly schedule: "constant" | "power_cosine";
  readonly power: number;
  readonly interval: readonly [from: number, to: number] | null;
}

/** How sequences are drawn. */
export interface RolloutSection {
  readonly images: number;
  readonly numGenerations: number;
  readonly context: ContextSection;
  readonly start: "condition" | "empty";
  readonly maxLen: number | null;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly guidance: GuidanceSection;
  readonly microBatch: number | null;
  readonly keepGraph: boolean;
}

/** A term of the reward. */
export interface RewardTerm {
  readonly weight: number;
}

/** A term of the reward with a network in a file. */
export interface NetworkTerm extends RewardTerm {
  readonly path: string | null;
}

/** A reward of the user's: images `[B, 3, H, W]` and samples `[B * G, 3, H, W]` to float `[B * G]`, higher is better. */
export type RewardFunction = (images: Tensor, samples: Tensor) => Tensor;

/** What a sample is worth. */
export interface RewardSection {
  readonly normalize: "none" | "batch" | "group";
  readonly credit: "sequence" | "place";
  readonly creditDecay: number;
  readonly l1: RewardTerm;
  readonly l2: RewardTerm;
  readonly psnr: RewardTerm;
  readonly ssim: RewardTerm;
  readonly msSsim: RewardTerm;
  readonly lpips: NetworkTerm;
  readonly perceptual: NetworkTerm;
  readonly latentCosine: RewardTerm;
  readonly patchGan: NetworkTerm;
  readonly custom: RewardTerm & { readonly fn: RewardFunction | null };
  readonly chunk: number | null;
}

/** What every algorithm's section has. */
export interface AlgorithmSection {
  readonly epochs: number;
  readonly aggregation: "grpo" | "bnpo" | "dapo" | "dr_grpo" | "sum";
  readonly advantageClip: number | null;
  readonly targetKl: number | null;
}

/** When rewards count as equal. */
export interface SpreadSection {
  readonly epsilon: number;
  readonly absoluteEpsilon: number;
  readonly minStd: number;
}

export interface ReinforceSection extends AlgorithmSection, SpreadSection {}

export interface RlooSection extends AlgorithmSection {
  readonly minStd: number;
}

export interface GrpoSection extends AlgorithmSection, SpreadSection {
  readonly clipLow: number;
  readonly clipHigh: number;
  readonly dualClip: number | null;
  readonly level: "token" | "sequence";
  readonly scale: "group" | "batch" | "none";
  readonly objective: "clip" | "cispo";
  readonly ratioCap: number;
}

export interface PpoSection extends AlgorithmSection {
  readonly clipLow: number;
  readonly clipHigh: number;
  readonly dualClip: number | null;
  readonly gamma: number;
  readonly lambda: number;
  readonly valueCoef: number;
  readonly valueClip: number | null;
  readonly valueLr: number;
  readonly detachTrunk: boolean;
  readonly whiten: boolean;
}

export interface SteSection {
  readonly tau: number;
}

/** What all algorithms share. */
export interface UpdateSection {
  readonly miniBatch: number | null;
  readonly microBatch: number | null;
  readonly auxCe: number;
  readonly entropyCoef: number;
  readonly tokenDropout: number;
  readonly maxLen: number | null;
}

/** The pull towards a reference. */
export interface KlSection {
  readonly coef: number;
  readonly estimator: "k1" | "k2" | "k3" | "k3_own" | "exact" | null;
  readonly placement: "loss" | "reward" | null;
  readonly path: string | null;
  readonly target: number | null;
  readonly horizon: number;
  readonly stop: number | null;
}

export interface OptimizerSection {
  readonly lr: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  readonly schedule: "constant" | "linear" | "cosine";
  readonly warmup: number;
  readonly finalLr: number;
  readonly maxGradNorm: number | null;
}

export interface EmaSection {
  readonly decay: number | null;
  readonly warmup: boolean;
}

/** `"auto"` is bfloat16 on CUDA and float32 on the CPU. */
export type Precision = "auto" | "float32" | "bfloat16";

export interface PrecisionSection {
  readonly policy: Precision;
  readonly rewards: Exclude<Precision, "auto">;
}

export interface EvalSection {
  readonly every: number;
  readonly images: number;
  readonly numGenerations: number;
  readonly temperature: number | null;
  readonly topK: number | null;
  readonly topP: number | null;
  readonly perceptual: string | null;
  readonly best: string;
  readonly mode: "max" | "min";
  readonly patience: number;
}

export interface SaveSection {
  readonly every: number;
  readonly keep: number;
  readonly ckptPath: string | null;
}

export interface LogSection {
  readonly every: number;
  readonly imagesEvery: number;
  readonly imageRows: number;
  readonly tensorboard: boolean;
  readonly csv: boolean;
}

export interface LimitsSection {
  readonly nonFiniteInARow: number;
  readonly nonFinite: number;
  readonly ratioGap: number;
}

export interface TrainSection {
  readonly iters: number;
  readonly device: string;
  readonly threads: number | null;
}

/** A whole configuration, every key present. `resolveConfig` makes one. */
export interface TrainConfig {
  readonly preset: string | null;
  readonly seed: number;
  readonly run: RunConfig;
  readonly data: DataConfig;
  readonly dataloader: Loader | null;
  readonly tokenizer: TokenizerSection;
  readonly ar: TunedArSection;
  readonly blockSize: number | null;
  readonly rollout: RolloutSection;
  readonly reward: RewardSection;
  readonly algorithm: "reinforce" | "rloo" | "grpo" | "ppo" | "ste";
  readonly reinforce: ReinforceSection;
  readonly rloo: RlooSection;
  readonly grpo: GrpoSection;
  readonly ppo: PpoSection;
  readonly ste: SteSection;
  readonly update: UpdateSection;
  readonly kl: KlSection;
  readonly optimizer: OptimizerSection;
  readonly ema: EmaSection;
  readonly precision: PrecisionSection;
  readonly eval: EvalSection;
  readonly save: SaveSection;
  readonly log: LogSection;
  readonly limits: LimitsSection;
  readonly train: TrainSection;
}

type Leaf =
  | readonly unknown[]
  | ((...args: never[]) => unknown)
  | Tensor
  | ArPolicy
  | ImageTokenizer
  | Iterable<unknown>;

/** `T` with every key optional, all the way down to values. */
export type PartialDeep<T> = {
  readonly [K in keyof T]?: T[K] extends Leaf | null ? T[K] : T[K] extends object ? PartialDeep<T[K]> : T[K];
};

/** What a program passes: any part of a configuration; spellings and other names of its keys are taken too. */
export type ConfigInput<T> = PartialDeep<T> | Readonly<Record<string, unknown>>;

/**
 * What a program passes: any part of a {@link TrainConfig}. `snake_case` spellings of the keys are taken too, and the
 * names in `CONFIG_ALIASES`, so that a configuration in the form of the original description works as it is.
 */
export type TrainConfigInput = ConfigInput<TrainConfig>;
