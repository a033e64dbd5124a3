/** Types of the command line's values, and the options that several commands have. */
import { InvalidArgumentError, Option } from "commander";

export function number(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("Expected a number.");
  return value;
}

export function integer(text: string): number {
  const value = number(text);
  if (!Number.isInteger(value)) throw new InvalidArgumentError("Expected an integer.");
  return value;
}

export function integers(text: string): number[] {
  return text.split(",").map(integer);
}

export function numbers(text: string): number[] {
  return text.split(",").map(number);
}

export const integerOption = (flags: string, what: string): Option =>
  new Option(flags, what).argParser(integer);
export const device = (): Option => new Option("--device <device>", "cpu, cuda or cuda:N").default("cpu");
export const wrapper = (): Option =>
  new Option("--wrapper <key>", "key of the state dict, for a file with several state dicts");
export const weights = (): Option =>
  new Option(
    "--weights <which>",
    "ema: the exponential moving average of the weights, raw: the weights of the last step (default: ema for a tokenizer that has it, raw for a policy)",
  ).choices(["ema", "raw"]);
export const heads = (): Option =>
  new Option("--heads <n>", "number of attention heads, if the file does not have it").argParser(integer);
export const codes = (): Option =>
  new Option("--codes <n>", "number of codes per image, if the file does not have it").argParser(integer);
export const cfgSchedule = (): Option =>
  new Option("--cfg-schedule <s>", "guidance scale along the sequence: constant, or rising from 1")
    .choices(["constant", "power_cosine"])
    .default("constant");
export const topK = (): Option =>
  new Option("--top-k <k>", "sample from the k most likely codes; 0: from all").argParser(integer).default(0);
export const topP = (): Option =>
  new Option(
    "--top-p <p>",
    "sample from the most likely codes that reach this total probability; 1: from all",
  )
    .argParser(number)
    .default(1);
export const json = (): Option => new Option("--json", "print one JSON object");
export const jsonLines = (): Option =>
  new Option("--json", "print one JSON object per step in place of text");

/** For an option that may be repeated. */
export const several = (text: string, before: string[]): string[] => [...before, text];

export const crop = (): Option =>
  new Option("--crop <crop>", "how images are cropped to squares, as data.crop")
    .choices(["center", "smallest_side"])
    .default("center");
