/** Numbers of the RL formulas, computed in float64 by an independent program from the formulas alone. */
import { readFileSync } from "node:fs";

type Aggregated = Record<"grpo" | "token_mean" | "dr_grpo" | "seq_mean_token_sum", number>;
type GaeCase = Record<"rewards" | "values" | "adv" | "returns", number[]>;

export interface RlGolden {
  inputs: {
    logp: number[][];
    old: number[][];
    ref: number[][];
    mask: number[][];
    rewards: number[];
    G: number;
  };
  advantages: Record<"grpo_group" | "dr_grpo" | "rloo" | "scale_batch", number[]>;
  pg_loss: Aggregated & { eps_low: number; eps_high: number; L_max: number };
  kl: Record<"k1" | "k2" | "k3", Aggregated>;
  "loss_with_k3_beta0.04": Aggregated;
  clip: Record<"low_mean" | "high_mean" | "region_mean" | "unsigned", number>;
  gspo: { seq_ratio: number[]; loss: number };
  dual_clip_example: { ratio: number; A: number; single: number; dual_c3: number };
  cispo_eps_high_TRL_semantics_max_5: Aggregated;
  "gae_g1_l0.95": GaeCase;
  gae_g1_l1: GaeCase;
  "gae_g0.99_l0.95": GaeCase;
  gae_g1_l0: GaeCase;
  value_loss: Record<"vpred" | "vold" | "ret", number[]> &
    Record<"clip" | "clipped" | "unclipped" | "clipfrac", number>;
  explained_variance: { y: number[]; p: number[]; globl: number; avg_of_two_micro: number };
  kl_gradient_exact: Record<"kl" | "E_k1" | "E_k2" | "E_k3", number> &
    Record<"true_grad" | "E_grad_k1" | "E_grad_k2" | "E_grad_k3" | "grad_forward_kl", number[]>;
  topk_truncation: { kept_mass: number; mean_ratio_full_over_trunc: number };
  cfg: { scale: number; guided: number[]; cond: number[]; KL_guided_cond: number };
  eps_shrink: Record<string, Record<string, number>>;
  fp32_variance: { rewards: number[]; two_pass_std: number; naive_var: number; true_std: number };
  max_abs_adv: Record<string, number>;
  on_policy: { loss: number; grad_wrt_logp: number[] };
  uneven_micro: { correct: number; mean_of_means: number };
}

const file = new URL("../../../test/golden/rl/rl_golden.json", import.meta.url);

export const golden: RlGolden = JSON.parse(readFileSync(file, "utf8")) as RlGolden;
