/**
 * How often the policy draws each code, and how often images have it, counted over a run, for the loss
 * `update.codeFrequency`: the KL divergence of the first from the second. `scoring.ts` computes its expectation over all codes and
 * `objective.ts` adds it to the loss.
 *
 * For frequencies P and Q it is `sum_k P_k log(P_k / Q_k)`, and P is the mean over places of the policy's probabilities. So its
 * gradient is that of the mean over places of `sum_k p_k log(P_k / Q_k)` with the logarithm held fixed, which this file supplies.
 * Moments of the policy's distribution as a goal are after "A Distributional Approach to Controlled Text Generation" (Khalifa et al.
 * 2021, arXiv 2012.11635). Deviations: the moments are the frequencies of codes, and they are a term of the loss in place of a
 * constraint; P and Q are counted over all steps so far, so P is also that of earlier policies.
 */
import { type StateDict, shapesText } from "../nn/index.js";
import { type Device, expected, keep, onesLike, type Tensor, tidy, toDevice, zeros } from "../torch/index.js";

/** Places without a code that are added to both counts, for each place that was counted, in equal parts to all codes. */
const SMOOTHING = 0.2;

/** Counts of drawn and true codes. They are on the CPU, in float64: the same on every machine. */
export class CodeFrequency implements Disposable {
  /** float64 `[V]`. */
  readonly #drawn: Tensor;
  readonly #true: Tensor;

  constructor(codebookSize: number) {
    this.#drawn = keep(zeros([codebookSize], { dtype: "float64" }));
    this.#true = keep(zeros([codebookSize], { dtype: "float64" }));
  }

  /**
   * @param tokens - int64 `[B, G, T]`: drawn codes.
   * @param trueCodes - int64 `[B, S + T]`: all codes of the images, of which the last T stand where codes were drawn.
   * @param mask - in the shape of the tokens: true where a token counts; default all.
   */
  add(tokens: Tensor, trueCodes: Tensor, mask?: Tensor): void {
    const [b, g, t] = tokens.dims(3);
    const s = trueCodes.size(-1) - t;
    if (trueCodes.ndim !== 2 || trueCodes.size(0) !== b || s < 0)
      throw expected("CodeFrequency.add", `trueCodes int64 [${b}, at least ${t}]`, trueCodes);
    tidy(() => {
      const weights = toDevice((mask ?? onesLike(tokens)).double().expand(b, g, t), "cpu").flatten();
      const count = (counts: Tensor, codes: Tensor): unknown =>
        counts.scatterAdd_(0, toDevice(codes, "cpu").flatten(), weights);
      count(this.#drawn, tokens);
      count(this.#true, trueCodes.narrow(1, s, t).unsqueeze(1).expand(b, g, t));
    });
  }

  /**
   * `log(P_k / Q_k)`; 0 before anything was counted.
   *
   * @returns float32 `[V]`, above 0 for a code that is drawn more often than images have it.
   */
  logRatio(device: Device): Tensor {
    return tidy(() => {
      const v = this.#drawn.size(0);
      const added = this.#drawn.sum().mul(SMOOTHING / v);
      // Without counts both are the same.
      const smooth = (counts: Tensor): Tensor => counts.add(added.clamp(1e-9));
      return toDevice(smooth(this.#drawn).div(smooth(this.#true)).log().float(), device);
    });
  }

  stateDict(): StateDict {
    return { drawn: this.#drawn, true: this.#true };
  }

  /** @throws RangeError for the state of another codebook. */
  loadStateDict(state: Readonly<StateDict>): void {
    const [now, given] = [shapesText(Object.entries(this.stateDict())), shapesText(Object.entries(state))];
    if (now !== given) throw expected("CodeFrequency.loadStateDict", now, given);
    for (const [name, counts] of Object.entries(this.stateDict())) counts.copy_(state[name] as Tensor);
  }

  [Symbol.dispose](): void {
    this.#drawn.dispose();
    this.#true.dispose();
  }
}
