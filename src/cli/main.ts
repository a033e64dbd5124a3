/**
 * The command line: what can be asked, with units and defaults, and how an error becomes an exit code. Each
 * command's work is in a file of its own.
 */
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";

import { ConfigError } from "../rl_ar_finetune/config.js";
import { presets } from "../rl_ar_finetune/presets.js";
import { DivergedError } from "../rl_ar_finetune/train_loop.js";
import { convert } from "./convert.js";
import { doctor } from "./doctor.js";
import { inspect } from "./inspect.js";
import { reconstruct } from "./reconstruct.js";
import { sample } from "./sample.js";
import { config, train } from "./train.js";

/** 0 ok, 2 a wrong command line or configuration, 3 data or a model that cannot be used, 4 diverged. */
const EXIT = { usage: 2, data: 3, diverged: 4 } as const;

function number(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("Expected a number.");
  return value;
}

function integer(text: string): number {
  const value = number(text);
  if (!Number.isInteger(value)) throw new InvalidArgumentError("Expected an integer.");
  return value;
}

function integers(text: string): number[] {
  return text.split(",").map(integer);
}

const device = (): Option => new Option("--device <device>", "cpu, cuda or cuda:N").default("cpu");
const wrapper = (): Option =>
  new Option("--wrapper <key>", "which state dict of the file, where it holds several");
const weights = (): Option =>
  new Option(
    "--weights <which>",
    "average or last weights (default: the average where there is one)",
  ).choices(["ema", "raw"]);
const heads = (): Option =>
  new Option("--heads <n>", "attention heads, where the file does not tell").argParser(integer);
const codes = (): Option =>
  new Option("--codes <n>", "codes an image, where the file does not tell").argParser(integer);
const json = (): Option => new Option("--json", "print one JSON object");
const crop = (): Option =>
  new Option("--crop <crop>", "how an image becomes a square")
    .choices(["center", "smallest_side"])
    .default("center");

const program = new Command("rlar")
  .description("Reinforcement-learning fine-tuning of autoregressive image-token models.")
  .showHelpAfterError("(rlar --help, or rlar COMMAND --help, tells more)")
  .exitOverride();

program
  .command("inspect")
  .description("Say which model a file holds, how large it is, and which of its weights would be used.")
  .argument("<file>", "safetensors, .pt, .pth or .ckpt; nothing in it is executed and no weight is read")
  .addOption(wrapper())
  .addOption(weights())
  .addOption(heads())
  .addOption(codes())
  .addOption(new Option("--all", "list every tensor"))
  .addOption(json())
  .action(inspect);

program
  .command("convert")
  .description("Write the weights that would be used as safetensors, with what they are in the metadata.")
  .argument("<file>", "safetensors, .pt, .pth or .ckpt")
  .argument("<out>", "the safetensors file to write")
  .addOption(wrapper())
  .addOption(weights())
  .addOption(heads())
  .addOption(codes())
  .addOption(new Option("--force", "replace an existing file"))
  .action(convert);

program
  .command("reconstruct")
  .description(
    "Encode and decode images; write them above their reconstructions, and print how close they are.",
  )
  .argument("<images>", "an image, or a folder of images")
  .requiredOption("--tokenizer <file>", "weights of the tokenizer")
  .addOption(new Option("--out <png>", "the grid to write").default("reconstruct.png"))
  .addOption(new Option("--size <px>", "side of the squares, in pixels").argParser(integer).default(256))
  .addOption(crop())
  .addOption(new Option("--limit <n>", "most images to take").argParser(integer).default(64))
  .addOption(new Option("--columns <n>", "most images in the grid").argParser(integer).default(8))
  .addOption(
    new Option(
      "--lpips <file>",
      "torchvision's VGG16, AlexNet or SqueezeNet weights, to print LPIPS as well",
    ),
  )
  .addOption(device())
  .addOption(wrapper())
  .addOption(weights())
  .addOption(json())
  .action(reconstruct);

program
  .command("sample")
  .description("Draw images from a policy; the same seed gives the same images.")
  .requiredOption("--policy <file>", "weights of the policy")
  .requiredOption("--tokenizer <file>", "weights of the tokenizer")
  .addOption(new Option("--out <png>", "the grid to write: a row for each class").default("sample.png"))
  .addOption(new Option("--class <ids>", "classes, such as 207 or 1,7,7").argParser(integers))
  .addOption(
    new Option("--features <file>", "text features as safetensors: features [B, S, C], and isReal [B, S]"),
  )
  .addOption(new Option("--per-class <n>", "images a class").argParser(integer).default(4))
  .addOption(new Option("--cfg <scale>", "classifier-free guidance; 1 is none").argParser(number).default(1))
  .addOption(
    new Option("--cfg-schedule <s>", "how the scale grows")
      .choices(["constant", "power_cosine"])
      .default("constant"),
  )
  .addOption(new Option("--temperature <t>", "logits are divided by it").argParser(number).default(1))
  .addOption(
    new Option("--top-k <k>", "keep the k likeliest codes; 0 keeps all").argParser(integer).default(0),
  )
  .addOption(
    new Option("--top-p <p>", "keep the likeliest codes of this total probability")
      .argParser(number)
      .default(1),
  )
  .addOption(new Option("--seed <n>", "seed of the draw").argParser(integer).default(0))
  .addOption(heads())
  .addOption(codes())
  .addOption(
    new Option("--dtype <dtype>", "of the policy").choices(["float32", "bfloat16"]).default("float32"),
  )
  .addOption(device())
  .addOption(json())
  .action(sample);

const preset = (): Option =>
  new Option("--preset <name>", "values to start from; rlar config presets tells of them").choices(
    Object.keys(presets),
  );

program
  .command("train")
  .description(
    "Fine-tune a policy. Defaults < preset < file < key=value; rlar config explain lists the keys.",
  )
  .argument("[config...]", "a YAML file, then key=value such as train.iters=100 reward.lpips.weight=1")
  .addOption(preset())
  .addOption(
    new Option("--dry-run", "print the whole configuration and the numbers that follow from it, and stop"),
  )
  .addOption(new Option("--force", "go on with a run although its configuration or images changed"))
  .addOption(json())
  .action(async (args, options) => {
    process.exitCode = await train(args, options);
  });

program
  .command("config")
  .description("show [FILE] [key=value...] | explain [KEY...] | presets | schema")
  .argument("<what>", "show, explain, presets or schema")
  .argument("[args...]", "a file and key=value, or keys")
  .addOption(preset())
  .action(config);

program
  .command("doctor")
  .description("Say what this machine has: LibTorch, memory, threads, CUDA.")
  .addOption(json())
  .action(doctor);

for (const command of program.commands) command.exitOverride();

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : EXIT.usage;
  } else {
    const { message, stack } = error as Error;
    process.stderr.write(`rlar: ${process.env.RLAR_DEBUG ? stack : message}\n`);
    if (error instanceof ConfigError) process.exitCode = EXIT.usage;
    else process.exitCode = error instanceof DivergedError ? EXIT.diverged : EXIT.data;
  }
}
