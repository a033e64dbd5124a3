/**
 * Decodes sampled codes, once for all terms of the reward, and collects further information for the user's reward
 * functions and servers. `rewards.ts` scores the images.
 */
import { setImmediate } from "node:timers/promises";
import type { RewardContext, TrainConfig } from "../config/resolve.js";
import type { Batch } from "../data/index.js";
import { call, cat, noGrad, type Tensor, tidy, zeros } from "../torch/index.js";
import { owning } from "../torch/owning.js";
import { latentsOf } from "./builder.js";
import type { RunParts } from "./parts.js";
import type { Judged, Term } from "./rewards.js";
import { decodeBatchOf } from "./settings.js";

/** Rows and columns of the codes of images; without images, of those that `data.size` asks for. */
export function codeGrid(
  { data }: Pick<TrainConfig, "data">,
  parts: Pick<RunParts, "tokenizer">,
  images: Tensor | undefined,
): readonly [number, number] {
  return gridOf(parts, images === undefined ? [data.size, data.size] : images.shape.slice(2));
}

function gridOf(
  { tokenizer }: Pick<RunParts, "tokenizer">,
  [height, width]: readonly number[],
): readonly [number, number] {
  return [(height as number) / tokenizer.downsample, (width as number) / tokenizer.downsample];
}

/** What is decoded, and what a reward is told about it. */
export interface ToDecode {
  readonly batch: Batch;
  /** int64 `[B, G, T]`. */
  readonly codes: Tensor;
  /** int64 `[B, T]`, of the images. */
  readonly trueCodes: Tensor | null;
  readonly step: number;
}

/** Decoded samples, and the requests for their scores that are under way, by the term's name. It owns all but the images. */
export interface Decoded extends Judged, Disposable {
  readonly sent: Sent;
}

/** Scores of servers that were asked for, by the term's name, a promise for each part of the samples. */
type Sent = Readonly<Record<string, readonly Promise<readonly number[]>[]>>;

/** Decode whole sequences for all terms of the reward, and ask servers for their scores. */
export async function decodeFor(config: TrainConfig, parts: RunParts, given: ToDecode): Promise<Decoded> {
  const { terms, device } = parts;
  const { batch, codes } = given;
  return owning(async (own) => {
    const side = config.data.size;
    const images = batch.images ?? own(zeros([0, 3, side, side], { device }));
    const isTold =
      batch.images === undefined ||
      terms.some(({ call, send, isTold }) => isTold ?? (call ?? send) !== undefined);
    const context = isTold ? contextOf(config, parts, given, own(codes.flatten(0, 1))) : undefined;
    const servers = terms.filter((term) => term.send !== undefined);
    const decoded =
      servers.length === 0 || context === undefined
        ? { ...decodeCodes(parts, images, codes, decodeBatchOf(config)), sent: {} }
        : await decodeAndSend(config, parts, { images, servers, context });
    own(decoded.samples);
    for (const latents of Object.values<Tensor>(decoded.latents ?? {})) own(latents);
    return { ...decoded, ...(context && { context }) };
  });
}

/**
 * Decode whole sequences, `decodeBatch` at a time and each distinct one once.
 *
 * @param images - float32 `[B, 3, H, W]`.
 * @param codes - int64 `[B, G, T]`.
 */
export function decodeCodes(
  { tokenizer, terms }: Pick<RunParts, "tokenizer" | "terms">,
  images: Tensor,
  codes: Tensor,
  decodeBatch: number,
): Judged {
  const grid = gridOf({ tokenizer }, images.shape.slice(2));
  return noGrad(() =>
    tidy(() => {
      const flat = codes.flatten(0, 1);
      const { rows, index } = distinctRows(flat);
      const decoded = tokenizer.decodeCode(rows, grid, decodeBatch);
      const samples = index === null ? decoded : decoded.indexSelect(0, index);
      if (!comparesLatents(terms)) return { images, samples };
      return { images, samples, latents: latentsOf(tokenizer, images, flat, grid) };
    }),
  );
}

/**
 * Decode all sequences, `tokenizer.decodeBatch` at a time, and ask servers for the scores of each part as soon as it is
 * decoded, so that they score it while the next one is.
 */
async function decodeAndSend(
  config: TrainConfig,
  { tokenizer, terms }: RunParts,
  given: { images: Tensor; servers: readonly Term[]; context: RewardContext },
): Promise<Judged & { sent: Sent }> {
  const { images, servers, context } = given;
  const grid = gridOf({ tokenizer }, images.shape.slice(2));
  const sent = Object.fromEntries(
    servers.map(({ name }) => [name, [] as Promise<readonly number[]>[]] as const),
  );
  const pieces: Tensor[] = [];
  const [n, size] = [context.codes.size(0), decodeBatchOf(config)];
  try {
    for (let first = 0; first < n; first += size) {
      const piece = noGrad(() =>
        tidy(() => tokenizer.decodeCode(context.codes.narrow(0, first, Math.min(size, n - first)), grid)),
      );
      pieces.push(piece);
      for (const { name, send } of servers) {
        const scores = send?.(piece, first, context) as Promise<readonly number[]>;
        scores.catch(() => undefined); // the error is reported to the code that waits for all of them
        sent[name]?.push(scores);
      }
      await setImmediate(); // lets Node send the requests
    }
    const { samples, latents } = noGrad(() =>
      tidy(() => ({
        samples: cat(pieces),
        latents: comparesLatents(terms) ? latentsOf(tokenizer, images, context.codes, grid) : undefined,
      })),
    );
    return { images, samples, sent, ...(latents && { latents }) };
  } finally {
    for (const piece of pieces) piece.dispose();
  }
}

const comparesLatents = (terms: readonly Term[]): boolean =>
  terms.some((term) => term.name === "latent_cosine");

/** The context that a reward gets with a batch. */
function contextOf(
  config: TrainConfig,
  { source }: RunParts,
  { batch, codes, trueCodes, step }: ToDecode,
  flat: Tensor,
): RewardContext {
  const names = source?.classNames ?? config.data.classNames;
  const classIds = batch.features === undefined ? (batch.classes.toList() as number[]) : null;
  return {
    imageIds: batch.ids,
    classIds,
    classNames: classIds && names && classIds.map((id) => names[id] ?? String(id)),
    captions: batch.captions ?? null,
    codes: flat,
    trueCodes,
    numGenerations: codes.size(1),
    step,
    seed: config.seed,
  };
}

/** Rows of codes without repetition, and where each row is among them: null where all rows are distinct. */
function distinctRows(codes: Tensor): { rows: Tensor; index: Tensor | null } {
  const [rows, index] = call("aten::unique_dim", [codes, 0, true, true]) as [Tensor, Tensor];
  return rows.size(0) === codes.size(0) ? { rows: codes, index: null } : { rows, index };
}
