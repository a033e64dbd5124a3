/**
 * The reference policy of the KL divergence: opens it, and updates it towards the policy during a run with
 * `kl.refreshEvery`.
 *
 * The step is that of TR-DPO (Gorbatovski et al. 2024, eq. 4 and 5, arXiv 2404.09656) as TRL has it in `sync_ref_model`:
 * `reference <- mix * policy + (1 - mix) * reference` over all parameters. Deviation: the interval counts rollouts, and
 * not steps of the optimizer.
 */
import type { TrainConfig } from "../config/resolve.js";
import { shapesText } from "../nn/index.js";
import type { ArPolicy, Lora } from "../policies/index.js";
import { call, type Device, expected, noGrad, type Tensor, tidy } from "../torch/index.js";
import { clonePolicy, openPolicy, WithoutAdapters } from "./builder.js";

/**
 * The policy of `kl.path`, or a copy of the policy; null if no KL is measured.
 *
 * With LoRA and without refreshes, the reference is the policy without its adapters, which needs no memory for a copy.
 *
 * @param own - takes over what is opened.
 * @throws RangeError for a file of another architecture where the reference is refreshed.
 */
export function openReference(
  config: TrainConfig,
  {
    policy,
    lora,
    device,
    codebookSize,
  }: { policy: ArPolicy; lora: Lora | null; device: Device; codebookSize: number },
  own: <T extends Disposable>(part: T) => T,
): ArPolicy | null {
  const { path, coef, stop, refreshEvery } = config.kl;
  const { nHead } = config.ar;
  if (coef === 0 && stop === null) return null;
  const isRefreshed = refreshEvery > 0;
  if (path === null && lora !== null && !isRefreshed) return new WithoutAdapters(policy, lora);
  const reference = own(
    path === null
      ? clonePolicy(policy)
      : openPolicy(path, {
          device,
          codebookSize,
          ...(nHead !== null && { nHead }),
          blockSize: policy.blockSize,
        }).policy,
  );
  if (isRefreshed && shapesText(reference.namedParameters()) !== shapesText(policy.namedParameters())) {
    const remedy = "Give a file of the same architecture, or set kl.refreshEvery=0";
    throw expected(
      "kl.path",
      "the policy's own parameters with kl.refreshEvery",
      `others in ${path}`,
      remedy,
    );
  }
  reference.eval().requiresGrad_(false);
  return reference;
}

/**
 * Update the reference, if there is one, towards the policy with its adapters: `mix * policy + (1 - mix) * reference`.
 *
 * @param mix - in (0, 1]; 1 copies the policy.
 */
export function refreshReference(
  {
    policy,
    lora,
    reference,
  }: { readonly policy: ArPolicy; readonly lora: Lora | null; readonly reference: ArPolicy | null },
  mix: number,
): void {
  if (reference === null) return;
  noGrad(() =>
    tidy(() => {
      const weights = new Map<string, Tensor>([
        ...policy.namedParameters(),
        ...Object.entries(lora?.mergedWeights() ?? {}),
      ]);
      const named = reference.namedParameters();
      const averages = named.map(([, parameter]) => parameter);
      const values = named.map(([name, { dtype }]) => (weights.get(name) as Tensor).to({ dtype }));
      call("aten::_foreach_mul_.Scalar", [averages, 1 - mix]);
      call("aten::_foreach_add_.List", [averages, values, mix]);
    }),
  );
}
