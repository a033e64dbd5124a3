/**
 * Reads what a launcher tells each of its processes: torchrun, SLURM's srun, Open MPI's mpirun, a Kubernetes PyTorchJob and
 * `rlar launch`. Nothing is opened here.
 */
import { expected } from "../torch/errors.js";

/** The place of this process among all of a run. */
export interface ProcessPlace {
  /** From 0; of all processes. */
  readonly rank: number;
  readonly size: number;
  /** From 0; of those on this machine. It chooses the GPU. */
  readonly localRank: number;
  /** Where the store is. */
  readonly host: string;
  readonly port: number;
  /** A file in place of a server, or null. */
  readonly file: string | null;
  /** Whether the launcher serves the store, so that rank 0 must not. */
  readonly isServedByLauncher: boolean;
  /** Differs between runs and restarts that may meet in one store. */
  readonly runId: string;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** Port that PyTorch takes where none is given. */
const PORT = 29500;

/** Variables of each launcher: rank, size, local rank. The first whose rank and size are there counts. */
const LAUNCHERS = [
  ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
  ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
  ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
] as const;

/**
 * The place of this process, or null where no launcher started it.
 *
 * `RLAR_STORE` names a file on a disk that all processes share, in place of `MASTER_ADDR` and `MASTER_PORT`.
 *
 * @throws RangeError for variables that contradict each other or are no numbers.
 */
export function readEnvironment(env: Environment = process.env): ProcessPlace | null {
  const names = LAUNCHERS.find(([rank, size]) => isSet(env, rank) && isSet(env, size));
  if (names === undefined) {
    const [one, other] = isSet(env, "RANK") ? ["WORLD_SIZE", "RANK"] : ["RANK", "WORLD_SIZE"];
    if (isSet(env, other)) throw expected(one, `a number beside ${other}`, "nothing", "Set both or none");
    return null;
  }
  // A shell inside of an allocation has these as well; srun alone says which step of the job it is.
  if (names[0] === "SLURM_PROCID" && !isSet(env, "SLURM_STEP_ID")) return null;
  const size = wholeNumber(env, names[1], 1);
  const rank = wholeNumber(env, names[0], 0);
  if (rank >= size) throw expected(names[0], `a number below ${names[1]}=${size}`, rank);
  // A pod of a PyTorchJob has one process and no local rank.
  const localRank = isSet(env, names[2]) ? wholeNumber(env, names[2], 0) : 0;
  const id = env.TORCHELASTIC_RUN_ID ?? env.SLURM_JOB_ID ?? "run";
  return {
    rank,
    size,
    localRank,
    host: hostOf(env, size),
    port: isSet(env, "MASTER_PORT") ? wholeNumber(env, "MASTER_PORT", 1) : PORT,
    file: isSet(env, "RLAR_STORE") ? (env.RLAR_STORE as string) : null,
    isServedByLauncher: env.TORCHELASTIC_USE_AGENT_STORE === "True",
    runId: `${id}/${restartsOf(env)}`,
  };
}

/**
 * How often the launcher has started the processes of this run again after one failed.
 *
 * @throws RangeError for a variable that is no number.
 */
export function restartsOf(env: Environment = process.env): number {
  const name = ["TORCHELASTIC_RESTART_COUNT", "RLAR_RESTART_COUNT"].find((each) => isSet(env, each));
  return name === undefined ? 0 : wholeNumber(env, name, 0);
}

const isSet = (env: Environment, name: string): boolean => (env[name] ?? "") !== "";

function wholeNumber(env: Environment, name: string, least: number): number {
  const text = env[name] as string;
  const value = Number(text);
  if (text.trim() !== "" && Number.isSafeInteger(value) && value >= least) return value;
  throw expected(name, `a whole number from ${least}`, text);
}

function hostOf(env: Environment, size: number): string {
  if (isSet(env, "MASTER_ADDR")) return env.MASTER_ADDR as string;
  if (isSet(env, "RLAR_STORE")) return "";
  const nodes = env.SLURM_JOB_NODELIST ?? env.SLURM_NODELIST ?? "";
  if (nodes !== "") return firstHost(nodes);
  if (size === 1) return "127.0.0.1";
  const remedy = "Name the machine of rank 0 there, or a shared file in RLAR_STORE";
  throw expected("MASTER_ADDR", "the address of rank 0", "nothing", remedy);
}

/** The first of SLURM's list of hosts, such as `node003` of `node[003-005,9],login`. */
export function firstHost(nodes: string): string {
  const [, before = "", first, after = ""] = /^([^,[]*)(?:\[([^\],-]+)[^\]]*\])?([^,]*)/.exec(nodes) ?? [];
  return first === undefined ? before : `${before}${first}${after}`;
}
