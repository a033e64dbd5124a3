/**
 * Checks whether a run may resume from a checkpoint: it needs the same configuration, images and frozen models, or `--force`.
 * Errors list the differences. The training loops restore the content of a checkpoint.
 */
import { createHash } from "node:crypto";
import {
  type ConfigChange,
  changesText,
  changesThatMatter,
  diffConfigs,
  plainConfig,
} from "../config/explain.js";
import type { Resumed } from "../config/kind.js";
import { ConfigError, type ConfigKind, type TrainConfig } from "../config/resolve.js";
import { trainKind } from "../config/train_kind.js";
import { type AdamW, type AdamWState, Module, type StateDict } from "../nn/index.js";

/** SHA-256 of weights, in hexadecimal: of their names, types, shapes and every bit. Waits for a GPU. */
export function weightsFingerprint(state: Readonly<StateDict>): string {
  const hash = createHash("sha256");
  for (const [name, tensor] of Object.entries(state)) {
    hash.update(`${name} ${tensor.dtype} [${tensor.shape.join()}]\n`);
    const { buffer, byteOffset, byteLength } = tensor.toArray();
    hash.update(new Uint8Array(buffer, byteOffset, byteLength));
  }
  return hash.digest("hex");
}

/** A frozen model's fingerprint under its name; nothing for a program's own object, which has no weights to look at. */
export function fingerprintOf(name: string, model: object): Record<string, string> {
  const network = model instanceof Module ? model : "network" in model ? model.network : null;
  return network instanceof Module ? { [name]: weightsFingerprint(network.stateDict()) } : {};
}

/** What a run is made of; a checkpoint holds it among its values. */
export interface RunIdentity {
  /** As `plainConfig` gives it. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Fingerprint of the data set. */
  readonly data: string | null;
  /** Fingerprints of the models that are used and not trained, by what they are. */
  readonly frozen?: Readonly<Record<string, string>>;
}

/** A run with its configuration as resolved. */
type PresentRun<T extends object> = Omit<RunIdentity, "config"> & {
  readonly config: T;
  readonly kind?: ConfigKind<T>;
};

/** The differences between a run and its checkpoint that change its results. */
export interface RunChanges {
  /** Keys of the configuration, in the order of the schema, and what a change of each does. */
  readonly config: readonly (ConfigChange & { readonly onResume: Resumed })[];
  /** What else differs: `images`, and names of frozen models. */
  readonly parts: readonly string[];
}

/**
 * Refuse to resume a run with another configuration, other images or other frozen models than it was begun with.
 *
 * Keys that say only where the run is kept and what is watched may differ; so may `train.iters` where the learning rate
 * does not depend on it.
 *
 * @param options.force - allow every difference.
 * @throws ConfigError with every difference that matters, unless forced.
 */
export function requireSameRun<T extends object = TrainConfig>(
  saved: RunIdentity,
  now: PresentRun<T>,
  options: { force?: boolean } = {},
): RunChanges {
  const { config, kind = trainKind as unknown as ConfigKind<T> } = now;
  const differing = diffConfigs(saved.config, plainConfig(config, kind));
  const changes = changesThatMatter(differing, config, kind).map((change) => {
    return { ...change, onResume: kind.onResume(change.path, config) };
  });
  const frozen = Object.entries(saved.frozen ?? {}).filter(([name, before]) => {
    const here = now.frozen?.[name];
    return here !== undefined && here !== before;
  });
  const isSameData = saved.data === now.data;
  const parts = [...(isSameData ? [] : ["images"]), ...frozen.map(([name]) => name)];
  if (options.force === true) {
    requireFixed(changes);
    return { config: changes, parts };
  }
  const problems: string[] = [];
  if (changes.length > 0) {
    const list = changesText(changes).replaceAll("\n", "; ");
    problems.push(
      `resume: expected the configuration that the run was begun with, got ${list}. ` +
        "Undo it, start a new run, or resume with --force.",
    );
  }
  if (!isSameData) {
    problems.push(
      `resume: expected the images that the run was begun with (fingerprint ${shortPrint(saved.data)}), got others (${shortPrint(now.data)}). ` +
        "Give the same data set, start a new run, or resume with --force.",
    );
  }
  for (const [name, before] of frozen) {
    problems.push(
      `resume: expected the ${name} that the run was begun with (weights ${shortPrint(before)}), got another (${shortPrint(now.frozen?.[name] ?? null)}). ` +
        "Give the same one (a program's own policy as it was before the run), start a new run, or resume with --force.",
    );
  }
  if (problems.length > 0) throw new ConfigError(problems);
  return { config: changes, parts };
}

/**
 * Restore an optimizer's moments from a checkpoint. Learning rate, betas, eps and weight decay stay the configuration's:
 * in a run that is resumed as it was begun they are the same.
 */
export function loadOptimizer(optimizer: AdamW, state: AdamWState): void {
  const numbers = optimizer.groups.map(({ lr, betas, eps, weightDecay }) => ({
    lr,
    betas,
    eps,
    weightDecay,
  }));
  optimizer.loadStateDict(state);
  for (const [i, group] of optimizer.groups.entries()) Object.assign(group, numbers[i]);
}

/**
 * Refuse changes that the checkpoint's weights decide, such as another number of heads. Where its files lie may change: they
 * are not read for their weights. A key without a value leaves the decision to the checkpoint.
 *
 * @throws ConfigError that names the keys.
 */
function requireFixed(changes: RunChanges["config"]): void {
  const fixed = changes.filter(({ path, after, onResume }) => {
    const isPlace = /\.(path|wrapper|weights|policy)$/.test(path);
    return onResume === "fixed" && !isPlace && after !== null && after !== undefined;
  });
  if (fixed.length === 0) return;
  const list = changesText(fixed).replaceAll("\n", "; ");
  throw new ConfigError([
    `resume: expected what the checkpoint's weights were made with, with --force too, got ${list}. Undo it, or start a new run.`,
  ]);
}

/** What is said of keys whose forced change does more than to count from now on. */
export type Effects = readonly (readonly [key: RegExp, effect: string])[];

/** Keys on which the numbers of an evaluation depend: with another value they cannot be compared with earlier ones. */
export const JUDGES: RegExp =
  /^(eval\.(?!every$|patience$)|reward\.|data\.(?!source$|workers$)|tokenizer\.(?!path$|decodeBatch$)|rollout\.(temperature|top|guidance|context|start))/;

/**
 * Lines that tell the user what a forced resume changes.
 *
 * @param step - steps that are done.
 * @param effects - the first entry whose pattern a key matches says what becomes of it.
 */
export function forcedNotes(changes: RunChanges, step: number, effects: Effects = []): string[] {
  const count = `counts from step ${step + 1} on`;
  const lines = changes.config.map((change) => {
    const usual = change.onResume === "fixed" ? KEPT : count;
    const effect = effects.find(([key]) => key.test(change.path))?.[1] ?? usual;
    return `--force: ${changesText([change])}: ${effect}`;
  });
  return [...lines, ...changes.parts.map((name) => `--force: other ${name}: ${count}`)];
}

/** Of keys that say what the weights are before the first step. */
const KEPT = "has no effect on the weights, which are the checkpoint's";

const shortPrint = (fingerprint: string | null): string => fingerprint?.slice(0, 12) ?? "none";
