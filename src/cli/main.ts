/**
 * The command line: what can be asked, with units and defaults, and how an error becomes an exit code. Each
 * command's work is in a file of its own.
 */
import { readFileSync } from "node:fs";

import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { rlarCommand } from "../config/command.js";
import { presets } from "../config/presets.js";
import { ConfigError } from "../config/resolve.js";
import { print } from "../run/console.js";
import { DivergedError, firstError } from "../run/failure.js";
import { kinds } from "./config.js";

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

function numbers(text: string): number[] {
  return text.split(",").map(number);
}

const device = (): Option => new Option("--device <device>", "cpu, cuda or cuda:N").default("cpu");
const wrapper = (): Option =>
  new Option("--wrapper <key>", "key of the state dict in the file, where it holds several");
const weights = (): Option =>
  new Option(
    "--weights <which>",
    "ema: the running average of the weights, raw: those of the last step (default: a tokenizer's average where there is one, a policy's raw weights)",
  ).choices(["ema", "raw"]);
const heads = (): Option =>
  new Option("--heads <n>", "attention heads, where the file does not tell").argParser(integer);
const codes = (): Option =>
  new Option("--codes <n>", "codes an image, where the file does not tell").argParser(integer);
const cfgSchedule = (): Option =>
  new Option("--cfg-schedule <s>", "how the scale grows")
    .choices(["constant", "power_cosine"])
    .default("constant");
const topK = (): Option =>
  new Option("--top-k <k>", "keep the k likeliest codes; 0 keeps all").argParser(integer).default(0);
const topP = (): Option =>
  new Option("--top-p <p>", "keep the likeliest codes of this total probability")
    .argParser(number)
    .default(1);
const json = (): Option => new Option("--json", "print one JSON object");
const crop = (): Option =>
  new Option("--crop <crop>", "how an image becomes a square")
    .choices(["center", "smallest_side"])
    .default("center");

/** A command's action: its file is read when it is called, for LibTorch takes a while to load; a number is the exit code. */
function command<A extends unknown[]>(load: () => Promise<(...args: A) => unknown>) {
  return async (...args: A): Promise<void> => {
    const code = await (await load())(...args);
    if (typeof code === "number") process.exitCode = code;
  };
}

/** A worked example at the end of a command's help, as it can be typed here. */
function example(words: string, what: string): string {
  return `\nExample: ${what}\n  ${rlarCommand(words.split(" "))}`;
}

const { version } = JSON.parse(readFileSync(new URL("../../../package.json", import.meta.url), "utf8")) as {
  version: string;
};

const program = new Command("rlar")
  .description("Reinforcement-learning fine-tuning of autoregressive image-token models.")
  .version(version, "-V, --version", "print the version")
  .showHelpAfterError(`(${rlarCommand(["COMMAND", "--help"])} lists the options)`)
  .exitOverride();

program
  .command("demo")
  .description(
    "Fine-tune the shipped policy on the shipped emoji, judge it, and write a page to look at: minutes.",
  )
  .addOption(new Option("--seed <n>", "seed of the run").argParser(integer).default(0))
  .addOption(new Option("--dir <folder>", "where to write").default("runs/demo"))
  .addOption(
    new Option(
      "--from-scratch",
      "train the shipped models anew first: classifiers, tokenizer, policy; most of an hour",
    ),
  )
  .addOption(
    new Option("--short", "a few steps of everything, to see that it works; the numbers mean nothing"),
  )
  .addHelpText("after", example("demo --dir runs/demo", "a few minutes; then open runs/demo/report.html"))
  .action(command(async () => (await import("./demo.js")).demo));

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
  .addHelpText("after", example("inspect policy.safetensors", "which model it is and how large"))
  .action(command(async () => (await import("./inspect.js")).inspect));

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
  .addHelpText(
    "after",
    example("convert last.ckpt model.safetensors", "the weights that are used, bit for bit"),
  )
  .action(command(async () => (await import("./convert.js")).convert));

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
  .addHelpText(
    "after",
    example(
      "reconstruct photos --tokenizer tokenizer.safetensors --size 256 --out reconstruct.png",
      "inputs above reconstructions, with PSNR and SSIM",
    ),
  )
  .action(command(async () => (await import("./reconstruct.js")).reconstruct));

program
  .command("sample")
  .description("Draw images from a policy; the same seed gives the same images.")
  .addOption(new Option("--run <dir>", "a run's folder: its policy as trained, and its tokenizer"))
  .addOption(
    new Option("--checkpoint <which>", "of --run: the last, or the best")
      .choices(["last", "best"])
      .default("last"),
  )
  .addOption(new Option("--policy <file>", "weights of the policy, rather than those of --run"))
  .addOption(new Option("--tokenizer <file>", "weights of the tokenizer, rather than those of --run"))
  .addOption(new Option("--out <png>", "the grid to write: a row for each class").default("sample.png"))
  .addOption(
    new Option(
      "--class <classes>",
      "numbers or names of classes, such as 207 or 1,7,7 or cat,dog; may be repeated",
    )
      .argParser((text: string, before: string[]) => [...before, text])
      .default([], "none"),
  )
  .addOption(
    new Option("--data <images>", "a data set whose classes have names, where the policy's file has none"),
  )
  .addOption(new Option("--label <name>", "what holds the class in --data, as data.label"))
  .addOption(
    new Option("--features <file>", "text features as safetensors: features [B, S, C], and isReal [B, S]"),
  )
  .addOption(new Option("--unconditional", "sequences start from no class and no text"))
  .addOption(
    new Option("--per-class <n>", "images a class (default: 4; 1 with --temperature 0)").argParser(integer),
  )
  .addOption(new Option("--cfg <scale>", "classifier-free guidance; 1 is none").argParser(number).default(1))
  .addOption(cfgSchedule())
  .addOption(
    new Option("--temperature <t>", "logits are divided by it; 0 takes the likeliest code each time (greedy)")
      .argParser(number)
      .default(1),
  )
  .addOption(topK())
  .addOption(topP())
  .addOption(new Option("--seed <n>", "seed of the draw").argParser(integer).default(0))
  .addOption(wrapper())
  .addOption(weights())
  .addOption(heads())
  .addOption(codes())
  .addOption(
    new Option("--dtype <dtype>", "of the policy").choices(["float32", "bfloat16"]).default("float32"),
  )
  .addOption(device())
  .addOption(json())
  .addHelpText(
    "after",
    example(
      "sample --policy policy.safetensors --tokenizer tokenizer.safetensors --class 207,88 --cfg 2 --seed 1",
      "four images of each of two classes",
    ),
  )
  .action(command(async () => (await import("./sample.js")).sample));

program
  .command("eval")
  .description(
    "Judge a tokenizer, a policy, or two policies with equal seeds: reconstruction, completion, free samples, likelihood.",
  )
  .addOption(
    new Option("--run <dir>", "a run's folder: its images, tokenizer and policies, before and after"),
  )
  .addOption(
    new Option(
      "--checkpoint <which>",
      "of --run: the last, or the best, which is judged on the held-out images that it was not chosen on",
    )
      .choices(["last", "best"])
      .default("last"),
  )
  .addOption(new Option("--config <file>", "a training's configuration: its images, tokenizer and policy"))
  .addOption(new Option("--tokenizer <file>", "weights of the tokenizer"))
  .addOption(new Option("--policy <file>", "A: weights of the policy, or of the one before"))
  .addOption(
    new Option(
      "--against <file>",
      "B: weights of the policy after, set against all that A reaches at any temperature and scale",
    ),
  )
  .addOption(
    new Option(
      "--features <file>",
      "a network to measure sets by, of rlar classifier or Inception v3; repeat it for several; those that the reward of --run or --config used are marked",
    )
      .argParser((file: string, before: string[]) => [...before, file])
      .default([], "none"),
  )
  .addOption(new Option("--lpips <file>", "torchvision's VGG16, AlexNet or SqueezeNet weights, for LPIPS"))
  .addOption(new Option("--data <images>", "images of the training, as data.source"))
  .addOption(new Option("--eval-data <images>", "held-out images, rather than a part of the others"))
  .addOption(new Option("--eval-part <p>", "part that is held out (default: 0.1)").argParser(number))
  .addOption(new Option("--group <regexp>", "what must not be on both sides, as data.group"))
  .addOption(new Option("--label <name>", "what holds the class, as data.label"))
  .addOption(new Option("--size <px>", "side of the squares (default: 256)").argParser(integer))
  .addOption(
    new Option("--crop <crop>", "how an image becomes a square (default: center)").choices([
      "center",
      "smallest_side",
    ]),
  )
  .addOption(new Option("--unconditional", "sequences start from no class and no text"))
  .addOption(new Option("--samples <n>", "free samples a row; 0 for none").argParser(integer).default(2000))
  .addOption(
    new Option("--classes <how>", "their classes: as the training images, or all alike")
      .choices(["data", "balanced"])
      .default("data"),
  )
  .addOption(
    new Option(
      "--prefix <k>",
      "codes given to completions, such as 16,32,48, or none (default: half of them)",
    ).argParser((text: string) => (text === "none" ? [] : integers(text))),
  )
  .addOption(new Option("--draws <n>", "completions an image").argParser(integer).default(1))
  .addOption(new Option("--images <n>", "most held-out images").argParser(integer).default(1000))
  .addOption(new Option("--train-images <n>", "most training images").argParser(integer).default(50_000))
  .addOption(
    new Option("--temperatures <t>", "logits are divided by it, such as 1,0.9,0.8")
      .argParser(numbers)
      .default([1], "1"),
  )
  .addOption(
    new Option("--cfg <scales>", "classifier-free guidance, such as 1,1.5,2; 1 is none")
      .argParser(numbers)
      .default([1], "1"),
  )
  .addOption(cfgSchedule())
  .addOption(topK())
  .addOption(topP())
  .addOption(
    new Option("--seeds <n>", "of the draws, such as 0,1,2: then mean, least and greatest")
      .argParser(integers)
      .default([0], "0"),
  )
  .addOption(new Option("--resamples <n>", "for 95 % intervals; 0 for none").argParser(integer).default(200))
  .addOption(new Option("--batch <n>", "sequences at a time").argParser(integer).default(128))
  .addOption(heads())
  .addOption(codes())
  .addOption(
    new Option("--dtype <dtype>", "of the policies").choices(["float32", "bfloat16"]).default("float32"),
  )
  .addOption(device())
  .addOption(
    new Option("--threads <n>", "of the processor (default: as many as there are)").argParser(integer),
  )
  .addOption(new Option("--out <dir>", "a folder for pages of samples and completions"))
  .addOption(new Option("--npz <file>", "the free samples: arr_0 uint8 [N, H, W, 3], arr_1 their classes"))
  .addOption(new Option("--json <file>", "everything: numbers, intervals, settings, seeds, hashes, commit"))
  .addOption(new Option("--explain", "say what each measure is, and stop"))
  .addHelpText(
    "after",
    example(
      "eval --run runs/first --features inception.pt --temperatures 1,0.8 --json runs/first/eval.json",
      "a run before and after, at two temperatures",
    ),
  )
  .action(command(async () => (await import("./eval.js")).evaluate));

const preset = (names?: readonly string[]): Option => {
  const option = new Option(
    "--preset <name>",
    `values to start from; ${rlarCommand(["config", "presets"])} tells of them`,
  );
  return names === undefined ? option : option.choices(names);
};
const dryRun = (): Option =>
  new Option("--dry-run", "print the whole configuration and the numbers that follow from it, and stop");
const force = (): Option =>
  new Option("--force", "go on with a run although its configuration or images changed");

program
  .command("train")
  .description(
    `Fine-tune a policy. Defaults < preset < file < key=value; ${rlarCommand(["config", "explain"])} lists the keys.`,
  )
  .argument("[config...]", "a YAML file, then key=value such as train.iters=100 reward.lpips.weight=1")
  .addOption(preset(Object.keys(presets)))
  .addOption(dryRun())
  .addOption(
    new Option("--measure", "with --dry-run: time this machine for two seconds, and say how long it takes"),
  )
  .addOption(force())
  .addOption(json())
  .addHelpText(
    "after",
    example(
      "train --preset completion data.source=photos data.size=256 tokenizer.path=tokenizer.safetensors ar.path=policy.safetensors run.dir=runs/first",
      "a first run",
    ),
  )
  .action(command(async () => (await import("./train.js")).train));

program
  .command("plan")
  .description(
    "Say how large a run of rlar train is, whether it fits into memory and how long it takes; reads headers alone.",
  )
  .argument("[config...]", "as for rlar train")
  .addOption(preset(Object.keys(presets)))
  .addOption(new Option("--no-measure", "do not time this machine: operations instead of seconds"))
  .addOption(json())
  .addHelpText(
    "after",
    example(
      "plan --preset completion data.source=photos data.size=256 tokenizer.path=tokenizer.safetensors ar.path=policy.safetensors",
      "memory and time of the same run",
    ),
  )
  .action(command(async () => (await import("./plan.js")).plan));

/** A command that learns from examples; all of them are told the same way what to do. */
function fitCommand(name: "pretrain" | "tokenizer" | "classifier", description: string, words: string): void {
  program
    .command(name)
    .description(
      `${description} Defaults < preset < file < key=value; ${rlarCommand(["config", "explain", "--for", name])} lists the keys.`,
    )
    .argument("[config...]", `a YAML file, then key=value such as ${words}`)
    .addOption(preset(Object.keys(kinds[name]?.presets ?? {})))
    .addOption(dryRun())
    .addOption(force())
    .addOption(json())
    .addHelpText(
      "after",
      example(`${name} ${words} run.dir=runs/${name}`, "the weights are in model.safetensors"),
    )
    .action(command(async () => (await import("./fit.js"))[name]));
}

fitCommand(
  "pretrain",
  "Train a policy on the codes of images, from random weights or going on from a file.",
  "data.source=photos tokenizer.path=tokenizer.safetensors ar.type=gpt",
);
fitCommand(
  "tokenizer",
  "Train a tokenizer, from random weights or going on from a file.",
  "data.source=photos data.size=32 model.preset=VQ-4-small",
);
fitCommand(
  "classifier",
  "Train a small classifier of images, whose features metrics and rewards can use.",
  "data.source=photos data.size=32",
);

program
  .command("emoji")
  .description("Make the default data set: 6,880 emoji in two styles, from two npm packages, as one tar.")
  .addOption(new Option("--out <tar>", "the file to write (default: emoji_32px.tar)"))
  .addOption(new Option("--size <px>", "width and height").choices(["32", "64"]).default("32"))
  .addOption(new Option("--google <tgz>", "the package emoji-datasource-google, rather than fetch it"))
  .addOption(new Option("--fluent <tgz>", "the package @lobehub/fluent-emoji-3d, rather than fetch it"))
  .addOption(new Option("--force", "replace an existing file"))
  .addOption(json())
  .addHelpText("after", example("emoji --size 32 --out emoji_32px.tar", "the images of the demo, made again"))
  .action(command(async () => (await import("./emoji.js")).emoji));

program
  .command("config")
  .description("show [FILE] [key=value...] | explain [KEY...] | presets | schema | docs")
  .argument("<what>", "show, explain, presets, schema or docs")
  .argument("[args...]", "a file and key=value, or keys")
  .addOption(preset())
  .addOption(
    new Option("--for <command>", "whose configuration").choices(Object.keys(kinds)).default("train"),
  )
  .addHelpText("after", example("config explain reward.lpips", "what a key means, its default and range"))
  .action(command(async () => (await import("./config.js")).config));

program
  .command("report")
  .description("Write a run, or several beside each other, as one HTML page that needs nothing else.")
  .argument("<runs...>", "folders of runs; an eval.json in one, from rlar eval --json, goes on the page")
  .addOption(
    new Option(
      "--out <html>",
      "the page to write (default: report.html in the run's folder, comparison.html in the first of several)",
    ),
  )
  .addOption(json())
  .addHelpText(
    "after",
    example("report runs/first runs/second --out compare.html", "two runs beside each other"),
  )
  .action(command(async () => (await import("./report.js")).report));

program
  .command("doctor")
  .description("Say what this machine has: LibTorch, memory, threads, CUDA.")
  .addOption(json())
  .addHelpText("after", example("doctor", "LibTorch, memory, threads, CUDA"))
  .action(command(async () => (await import("./doctor.js")).doctor));

program
  .command("completion")
  .description("Print a script that completes commands, options and keys: source <(rlar completion bash).")
  .argument("<shell>", "bash, zsh or fish")
  .action(
    command(async () => {
      const { completionScript } = await import("./completion.js");
      return (shell: string): void => {
        if (shell !== "bash" && shell !== "zsh" && shell !== "fish") {
          throw new ConfigError([`completion: expected bash, zsh or fish, got ${shell}.`]);
        }
        process.stdout.write(completionScript(program, shell));
      };
    }),
  );

for (const command of program.commands) command.exitOverride();

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : EXIT.usage;
  } else {
    const first = firstError(error) as Error;
    print(process.stderr, `rlar: ${process.env.RLAR_DEBUG ? first.stack : first.message}\n`);
    if (first instanceof ConfigError) process.exitCode = EXIT.usage;
    else process.exitCode = first instanceof DivergedError ? EXIT.diverged : EXIT.data;
  }
}
