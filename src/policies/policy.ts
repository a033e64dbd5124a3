/**
 * Interface of policies: logits of the next code, teacher-forced or step by step. The models
 * are in `gpt.ts`, `llamagen.ts` and `ibq_ar.ts`; sampling, losses and updates are elsewhere.
 */
import type { Module } from "../nn/index.js";
import type { Tensor } from "../torch/index.js";

/**
 * The condition of a sequence. A policy accepts only the parts that it was built for and throws for others. An omitted
 * part means the null condition, so `{}` is unconditional.
 */
export interface Condition {
  /** int64 `[B]` in `[0, numClasses]`; `numClasses` itself is the null class of classifier-free guidance. */
  classes?: Tensor;
  /** float `[B, S, C]`: features of a text or of anything else, from an encoder outside this package. */
  features?: Tensor;
  /** bool `[B, S]`, true where a feature is real and not padding; all are by default. */
  isReal?: Tensor;
  /** bool `[B]`, true where the condition is replaced by the null condition, as in pre-training for guidance. */
  isDropped?: Tensor;
}

/** Keys and values of the positions seen so far; allocated once, freed by `dispose()`. */
export interface DecodeCache extends Disposable {
  /** Number of sequences. */
  readonly batch: number;
  /** Capacity in positions, condition tokens included. */
  readonly capacity: number;
  /** Positions filled, condition tokens included. */
  readonly length: number;
  /** Empty the cache, keeping its memory. */
  reset(): void;
  dispose(): void;
}

/** An autoregressive model over codes. Dropout follows `train()` and `eval()`; label drop is explicit. */
export interface ArPolicy extends Module {
  /** V: codes lie in `[0, V)`. */
  readonly vocabSize: number;
  /** Maximum number of codes in a sequence. */
  readonly blockSize: number;
  /** D: width of {@link hidden}. */
  readonly hiddenSize: number;
  /** The options of the constructor. Together with the weights they define the policy. */
  readonly options: object;
  /** Gradient checkpointing: whether the backward pass recomputes the blocks instead of keeping their activations. */
  gradientCheckpointing: boolean;

  /**
   * Hidden states, the input of the output head, at the positions that predict codes 0 ... n.
   *
   * @param tokens - int64 `[B, n]`, n in `[0, blockSize - 1]`: true or sampled codes before the predicted ones.
   * @returns `[B, n + 1, D]`; position i depends on the condition and codes 0 ... i - 1.
   */
  hidden(tokens: Tensor, condition: Condition): Tensor;

  /** Output head: from hidden states `[..., D]` to logits, float32 `[..., V]`. */
  logits(hidden: Tensor): Tensor;

  /** `logits(hidden(tokens, condition))`: float32 `[B, n + 1, V]`. */
  forward(tokens: Tensor, condition: Condition): Tensor;

  /** The null condition of classifier-free guidance (the null class, or the null features) for the same batch. */
  nullCondition(condition: Condition): Condition;

  /**
   * A KV cache for `batch` sequences of up to `maxLen` codes (default blockSize) and their condition. Memory is
   * allocated at the first {@link prefill}: on a GPU in the dtype of the keys (that of the weights or of autocast), on
   * a CPU in float32.
   */
  openCache(batch: number, options?: { maxLen?: number }): DecodeCache;

  /**
   * Fill an empty cache with the condition and the first codes, without autograd.
   *
   * @param tokens - int64 `[B, n]`, n >= 0.
   * @returns float32 `[B, V]`: logits of code n.
   */
  prefill(cache: DecodeCache, tokens: Tensor, condition: Condition): Tensor;

  /**
   * One step: append a code of each sequence, without autograd. Under autocast, run all steps inside one `noGrad`:
   * autocast keeps cast weights only until grad mode changes.
   *
   * @param token - int64 `[B]`.
   * @returns float32 `[B, V]`: logits of the next code.
   */
  decode(cache: DecodeCache, token: Tensor): Tensor;

  /**
   * A cache with `times` consecutive copies of each sequence, so that a group shares one prefill.
   *
   * @param into - an open cache of `batch * times` sequences to fill, instead of new memory.
   */
  repeatCache(cache: DecodeCache, times: number, into?: DecodeCache): DecodeCache;
}
