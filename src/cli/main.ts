/**
 * The command line of `rlar`: its commands and options with their help, and the exit code of each kind of error. The
 * other files of this folder do the work, a file per command.
 */
import { readFileSync } from "node:fs";

import { Argument, Command, CommanderError, Option } from "commander";
import { rlarCommand } from "../config/command.js";
import { presets } from "../config/presets.js";
import { ConfigError } from "../config/resolve.js";
import { LostRankError } from "../distributed/failure.js";
import { print } from "../run/console.js";
import { DivergedError, explained, firstError } from "../run/failure.js";
import { adviceOnRefusal } from "./advice.js";
import { kinds } from "./config.js";
import {
  cfgSchedule,
  codes,
  crop,
  device,
  heads,
  integer,
  integerOption,
  integers,
  json,
  jsonLines,
  number,
  numbers,
  several,
  topK,
  topP,
  weights,
  wrapper,
} from "./option_types.js";
import { watchOutputs } from "./outputs.js";
import { fitProgress, rlProgress, withProgressOnTerminal } from "./progress.js";

/** 0 ok, 2 a wrong command line or configuration, 3 data or a model that cannot be used, 4 diverged, 5 another process lost. */
const EXIT = { usage: 2, data: 3, diverged: 4, lost: 5 } as const;

/**
 * The action of a command. Its file is loaded when the command is called, since LibTorch loads slowly; a number is the exit code.
 *
 * @param memory - what to lower when memory runs out, as a sentence without its full stop.
 */
function command<A extends unknown[]>(
  load: () => Promise<(...args: A) => unknown>,
  memory = "Use a machine with more of it",
) {
  return async (...args: A): Promise<void> => {
    const code = await explained(memory, async () => {
      const action = await withProgressOnTerminal("loading LibTorch", load);
      return await action(...args);
    });
    if (typeof code === "number") process.exitCode = code;
  };
}

/** An example at the end of a command's help, as it can be typed here. Text in single quotes is one word. */
function example(line: string, what: string): string {
  const words = line.match(/'[^']*'|\S+/g) ?? [];
  return `\nExample: ${what}\n  ${rlarCommand(words.map((word) => word.replaceAll("'", "")))}`;
}

const { version } = JSON.parse(readFileSync(new URL("../../../package.json", import.meta.url), "utf8")) as {
  version: string;
};

const program = new Command("rlar")
  .description("Reinforcement-learning fine-tuning of autoregressive image-token models.")
  .version(version, "-V, --version", "print the version")
  .showHelpAfterError(`(${rlarCommand(["--help"])} lists the commands)`)
  .enablePositionalOptions()
  .exitOverride();

program
  .command("demo")
  .description(
    "Fine-tune the shipped policy on the shipped emoji, evaluate it, and write an HTML report. Takes minutes.",
  )
  .addOption(new Option("--seed <n>", "seed of the run").argParser(integer).default(0))
  .addOption(new Option("--dir <folder>", "folder to write to").default("runs/demo"))
  .addOption(
    new Option(
      "--from-scratch",
      "first train new classifiers, tokenizer and policy in place of the shipped ones; takes most of an hour",
    ),
  )
  .addOption(
    new Option("--short", "only a few steps, to see that everything works; the numbers mean nothing"),
  )
  .addHelpText(
    "after",
    example("demo --dir runs/demo", "a few minutes; then open runs/demo/completion/report.html"),
  )
  .action(command(async () => (await import("./demo.js")).demo));

program
  .command("inspect")
  .description("Print which model a file holds, its size, and which of its tensors would be used.")
  .argument("<file>", "safetensors, .pt, .pth or .ckpt; only headers are read, nothing is executed")
  .addOption(wrapper())
  .addOption(weights())
  .addOption(heads())
  .addOption(codes())
  .addOption(new Option("--all", "list every tensor"))
  .addOption(json())
  .addHelpText("after", example("inspect policy.safetensors", "the model in a file and its size"))
  .action(command(async () => (await import("./inspect.js")).inspect));

program
  .command("convert")
  .description("Write the weights of a model as safetensors, with a description of the model as metadata.")
  .argument("<file>", "safetensors, .pt, .pth or .ckpt")
  .argument("<out>", "the safetensors file to write")
  .addOption(wrapper())
  .addOption(weights())
  .addOption(heads())
  .addOption(codes())
  .addOption(new Option("--force", "replace an existing file"))
  .addHelpText(
    "after",
    example("convert last.ckpt model.safetensors", "the weights of a checkpoint, bit for bit"),
  )
  .action(command(async () => (await import("./convert.js")).convert));

program
  .command("average")
  .description(
    "Average policies that were fine-tuned from the same one, or go beyond the average. What chance did to each run cancels in part.",
  )
  .argument("<policies...>", "folders of runs, or files of weights; one alone can only be scaled")
  .addOption(new Option("--out <file>", "the safetensors file to write").makeOptionMandatory())
  .addOption(
    new Option("--base <file>", "the policy that all started from (default: the one that the runs name)"),
  )
  .addOption(
    new Option("--scale <s>", "how far to go from the base: 1 to the average, 1.5 half as far again")
      .argParser(number)
      .default(1),
  )
  .addOption(new Option("--force", "replace an existing file"))
  .addOption(json())
  .addHelpText(
    "after",
    example(
      "average runs/seed_0 runs/seed_1 --scale 1.5 --out policy.safetensors",
      "two runs with different seeds, as one policy",
    ),
  )
  .action(command(async () => (await import("./average.js")).average));

program
  .command("reconstruct")
  .description(
    "Encode and decode images. Write a grid of inputs above reconstructions, and print PSNR and SSIM.",
  )
  .argument("<images>", "an image file, or a folder of images")
  .requiredOption("--tokenizer <file>", "weights of the tokenizer")
  .addOption(new Option("--out <png>", "the grid to write").default("reconstruct.png"))
  .addOption(new Option("--size <px>", "width and height after cropping").argParser(integer).default(256))
  .addOption(crop())
  .addOption(new Option("--limit <n>", "maximum number of images to measure").argParser(integer).default(64))
  .addOption(
    new Option("--columns <n>", "maximum number of images in the grid").argParser(integer).default(8),
  )
  .addOption(
    new Option(
      "--lpips <file>",
      "torchvision's weights of VGG16, AlexNet or SqueezeNet, to print LPIPS as well",
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
      "how well a tokenizer reconstructs your images",
    ),
  )
  .action(command(async () => (await import("./reconstruct.js")).reconstruct, "Lower --size"));

program
  .command("embed")
  .description(
    "Embed images with CLIP, SigLIP, TokLIP, Inception v3 or a classifier. Write the embeddings to a file, or classify the images by class names (zero-shot).",
  )
  .argument(
    "<network>",
    "a model folder of transformers or open_clip, or a file: TokLIP, Inception v3, a classifier from rlar classifier",
  )
  .requiredOption("--data <images>", "the images, as data.source")
  .addOption(
    new Option(
      "--out <file>",
      "safetensors file to write: embeddings [N, E], classes [N] and names; rlar eval --reference reads it",
    ),
  )
  .addOption(
    new Option(
      "--zero-shot <template>",
      "print the accuracy of classifying each image by the nearest text; {} stands for the class name, as in 'a photo of a {}.'; may be repeated: text embeddings are averaged over templates",
    )
      .argParser(several)
      .default([], "none"),
  )
  .addOption(
    new Option(
      "--text-tokenizer <file>",
      "tokenizer.json for texts, or its folder (default: the folder of the weights)",
    ),
  )
  .addOption(
    new Option(
      "--size <px>",
      "crop images to this width and height (default: no crop for CLIP and SigLIP, which resize images themselves; the size of TokLIP; 256 for other networks)",
    ).argParser(integer),
  )
  .addOption(crop())
  .addOption(new Option("--label <name>", "name of what holds the class, as data.label"))
  .addOption(new Option("--limit <n>", "maximum number of images, spread over the set").argParser(integer))
  .addOption(device())
  .addOption(json())
  .addHelpText(
    "after",
    example(
      "embed clip-vit-base-patch32 --data photos --zero-shot 'a photo of a {}.'",
      "accuracy of CLIP on your images; a low one may mean wrong files of weights or texts",
    ),
  )
  .action(command(async () => (await import("./embed.js")).embed, "Lower --limit"));

program
  .command("sample")
  .description("Sample images from a policy. The same seed gives the same images.")
  .addOption(
    new Option("--run <dir>", "folder of a run: sample from its fine-tuned policy, with its tokenizer"),
  )
  .addOption(
    new Option("--checkpoint <which>", "checkpoint of --run").choices(["last", "best"]).default("last"),
  )
  .addOption(new Option("--policy <file>", "weights of the policy, in place of those of --run"))
  .addOption(new Option("--tokenizer <file>", "weights of the tokenizer, in place of those of --run"))
  .addOption(new Option("--out <png>", "the grid to write, a row per class").default("sample.png"))
  .addOption(
    new Option(
      "--class <classes>",
      "numbers or names of classes, such as 207 or 1,7,7 or cat,dog; may be repeated",
    )
      .argParser(several)
      .default([], "none"),
  )
  .addOption(
    new Option(
      "--data <images>",
      "data set with the names of the classes, if the policy's file does not have them",
    ),
  )
  .addOption(new Option("--label <name>", "name of what holds the class in --data, as data.label"))
  .addOption(
    new Option("--features <file>", "text features as safetensors: features [B, S, C], and isReal [B, S]"),
  )
  .addOption(new Option("--unconditional", "sequences start from no class and no text"))
  .addOption(
    new Option("--per-class <n>", "images per class (default: 4; 1 with --temperature 0)").argParser(integer),
  )
  .addOption(
    new Option("--cfg <scale>", "scale of classifier-free guidance; 1: no guidance")
      .argParser(number)
      .default(1),
  )
  .addOption(cfgSchedule())
  .addOption(
    new Option("--temperature <t>", "sampling temperature; 0 always takes the most likely code (greedy)")
      .argParser(number)
      .default(1),
  )
  .addOption(topK())
  .addOption(topP())
  .addOption(new Option("--seed <n>", "seed of the sampling").argParser(integer).default(0))
  .addOption(wrapper())
  .addOption(weights())
  .addOption(heads())
  .addOption(codes())
  .addOption(
    new Option("--dtype <dtype>", "type that the policy computes in")
      .choices(["float32", "bfloat16"])
      .default("float32"),
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
  .action(
    command(
      async () => (await import("./sample.js")).sample,
      "Lower --per-class, or name fewer classes at a time",
    ),
  );

program
  .command("eval")
  .description(
    "Evaluate a tokenizer, a policy, or two policies with the same seeds, on held-out images: reconstructions, completions, samples from the class alone (free samples) and likelihood.",
  )
  .addOption(new Option("--run <dir>", "folder of a run: compare its policy before (A) and after (B)"))
  .addOption(
    new Option(
      "--checkpoint <which>",
      "checkpoint of --run; best is evaluated on those held-out images that it was not chosen on",
    )
      .choices(["last", "best"])
      .default("last"),
  )
  .addOption(
    new Option("--config <file>", "configuration file of rlar train that names images, tokenizer and policy"),
  )
  .addOption(new Option("--tokenizer <file>", "weights of the tokenizer"))
  .addOption(new Option("--policy <file>", "weights of the policy, or of the first policy (A)"))
  .addOption(
    new Option(
      "--against <file>",
      "weights of a second policy (B); it is compared with A at all temperatures and guidance scales",
    ),
  )
  .addOption(
    new Option(
      "--features <file>",
      "network whose features measure sets of images, for example by the Fréchet distance: a file of Inception v3, rlar classifier or TokLIP, or a folder of CLIP or SigLIP; may be repeated; networks that the reward of --run or --config used are marked",
    )
      .argParser(several)
      .default([], "none"),
  )
  .addOption(
    new Option("--lpips <file>", "torchvision's weights of VGG16, AlexNet or SqueezeNet, to measure LPIPS"),
  )
  .addOption(
    new Option(
      "--reference <file>",
      "also measure the Fréchet distance from this reference set: published mu and sigma (.npz) of Inception v3, or a file of rlar embed; it must have been made with the network of --features",
    ),
  )
  .addOption(new Option("--data <images>", "training images, as data.source"))
  .addOption(new Option("--eval-data <images>", "held-out images, in place of a part of --data"))
  .addOption(
    new Option("--eval-part <p>", "fraction of --data that is held out (default: 0.1)").argParser(number),
  )
  .addOption(
    new Option(
      "--group <regexp>",
      "regular expression for the part of a name that must not occur both among training and held-out images, as data.group",
    ),
  )
  .addOption(new Option("--label <name>", "name of what holds the class, as data.label"))
  .addOption(new Option("--size <px>", "width and height after cropping (default: 256)").argParser(integer))
  .addOption(
    new Option("--crop <crop>", "how images are cropped to squares (default: center)").choices([
      "center",
      "smallest_side",
    ]),
  )
  .addOption(new Option("--unconditional", "sample without class and text"))
  .addOption(
    new Option("--samples <n>", "free samples per policy, temperature and scale; 0: no free samples")
      .argParser(integer)
      .default(2000),
  )
  .addOption(
    new Option(
      "--classes <how>",
      "classes of free samples: as often as in the data (data), or equally often (balanced)",
    )
      .choices(["data", "balanced"])
      .default("data"),
  )
  .addOption(
    new Option(
      "--prefix <k>",
      "numbers of codes that completions are given, such as 16,32,48; none: no completions (default: half of an image's codes)",
    ).argParser((text: string) => (text === "none" ? [] : integers(text))),
  )
  .addOption(new Option("--draws <n>", "completions per image").argParser(integer).default(1))
  .addOption(new Option("--images <n>", "maximum number of held-out images").argParser(integer).default(1000))
  .addOption(
    integerOption(
      "--chosen-on <n>",
      "held-out images that something was chosen on, as eval.images of rlar sweep, and that are therefore not used",
    ),
  )
  .addOption(
    new Option("--train-images <n>", "maximum number of training images").argParser(integer).default(50_000),
  )
  .addOption(
    new Option("--temperatures <t>", "sampling temperatures, such as 1,0.9,0.8")
      .argParser(numbers)
      .default([1], "1"),
  )
  .addOption(
    new Option("--cfg <scales>", "scales of classifier-free guidance, such as 1,1.5,2; 1: no guidance")
      .argParser(numbers)
      .default([1], "1"),
  )
  .addOption(cfgSchedule())
  .addOption(topK())
  .addOption(topP())
  .addOption(
    new Option("--seeds <n>", "seeds of the sampling, such as 0,1,2; several give mean, minimum and maximum")
      .argParser(integers)
      .default([0], "0"),
  )
  .addOption(
    new Option("--resamples <n>", "bootstrap resamples for 95 % intervals; 0: no intervals")
      .argParser(integer)
      .default(200),
  )
  .addOption(new Option("--batch <n>", "sequences per forward pass").argParser(integer).default(128))
  .addOption(heads())
  .addOption(codes())
  .addOption(
    new Option("--dtype <dtype>", "type that the policies compute in")
      .choices(["float32", "bfloat16"])
      .default("float32"),
  )
  .addOption(device())
  .addOption(new Option("--threads <n>", "CPU threads (default: LibTorch's)").argParser(integer))
  .addOption(
    new Option(
      "--out <dir>",
      "folder to write contact sheets to, of completions and of free samples, before and after",
    ),
  )
  .addOption(
    new Option(
      "--npz <file>",
      "file to write the free samples to: arr_0 uint8 [N, H, W, 3], arr_1 their classes",
    ),
  )
  .addOption(
    new Option(
      "--json <file>",
      "JSON file to write: all numbers, intervals, settings, seeds, hashes, and the commit",
    ),
  )
  .addOption(new Option("--explain", "explain the measures, and exit"))
  .addHelpText(
    "after",
    example(
      "eval --run runs/first --features inception.pt --temperatures 1,0.8 --json runs/first/eval.json",
      "a run before and after, at two temperatures",
    ),
  )
  .action(
    command(async () => (await import("./eval.js")).evaluate, "Lower --batch, --images, --samples or --size"),
  );

const preset = (names?: readonly string[]): Option => {
  const option = new Option(
    "--preset <name>",
    `values to start from; ${rlarCommand(["config", "presets"])} describes them`,
  );
  return names === undefined ? option : option.choices(names);
};
const dryRun = (): Option =>
  new Option("--dry-run", "print the whole configuration and the numbers that follow from it, and exit");
const force = (): Option =>
  new Option("--force", "resume a run although its configuration or images changed");

program
  .command("train")
  .description(
    `Fine-tune a policy by reinforcement learning. A file overrides the preset, key=value overrides the file. ${rlarCommand(["config", "explain"])} lists the keys.`,
  )
  .argument("[config...]", "a YAML file (- reads standard input) and key=value, such as train.iters=100")
  .addOption(preset(Object.keys(presets)))
  .addOption(dryRun())
  .addOption(
    new Option(
      "--measure",
      "with --dry-run: time this machine for two seconds, and predict the time of the run",
    ),
  )
  .addOption(force())
  .addOption(jsonLines())
  .addHelpText(
    "after",
    example(
      "train --preset completion data.source=photos data.size=256 tokenizer.path=tokenizer.safetensors ar.path=policy.safetensors run.dir=runs/first",
      "a first run",
    ),
  )
  .addHelpText("after", rlProgress)
  .action(command(async () => (await import("./train.js")).train));

program
  .command("sweep")
  .description(
    `Choose keys of rlar train by successive halving over a YAML file of ranges; run it again to go on with a sweep that was stopped. ${rlarCommand(["config", "explain", "--for", "sweep"])} lists the keys.`,
  )
  .argument("[config...]", "the YAML file, then key=value, such as trials=8 rungs=[8,16]")
  .addOption(json())
  .addHelpText("after", example("sweep sweep.yaml", "the trials, a table, and a page in the sweep's folder"))
  .action(command(async () => (await import("./sweep.js")).sweep));

program
  .command("plan")
  .description(
    "Predict memory, time and disk space of a run of rlar train. Only the headers of model files are read.",
  )
  .argument("[config...]", "as for rlar train")
  .addOption(preset(Object.keys(presets)))
  .addOption(
    integerOption("--processes <n>", "processes that share a batch; the prediction is for one").default(1),
  )
  .addOption(new Option("--no-measure", "do not time this machine; print FLOPs without seconds"))
  .addOption(json())
  .addHelpText(
    "after",
    example(
      "plan --preset completion data.source=photos data.size=256 tokenizer.path=tokenizer.safetensors ar.path=policy.safetensors",
      "memory and time of a first run",
    ),
  )
  .action(command(async () => (await import("./plan.js")).plan));

/** A command of supervised training. All of them have the same options. */
function fitCommand(name: "pretrain" | "tokenizer" | "classifier", description: string, words: string): void {
  const presetNames = Object.keys(kinds[name]?.presets ?? {});
  const fit = program
    .command(name)
    .description(
      `${description} A file overrides the preset, key=value overrides the file. ${rlarCommand(["config", "explain", "--for", name])} lists the keys.`,
    )
    .argument("[config...]", `a YAML file, then key=value, such as ${words}`)
    .addOption(dryRun())
    .addOption(force())
    .addOption(jsonLines())
    .addHelpText(
      "after",
      example(
        `${name} ${words} run.dir=runs/${name}`,
        `the weights will be in runs/${name}/model.safetensors`,
      ),
    )
    .addHelpText("after", fitProgress)
    .action(command(async () => (await import("./fit.js"))[name]));
  if (presetNames.length > 0) fit.addOption(preset(presetNames));
}

fitCommand(
  "pretrain",
  "Train a policy on the codes of images, from random weights or from a file.",
  "data.source=photos tokenizer.path=tokenizer.safetensors ar.type=gpt",
);
fitCommand(
  "tokenizer",
  "Train a tokenizer on images, from random weights or from a file.",
  "data.source=photos data.size=32 model.preset=VQ-4-small",
);
fitCommand(
  "classifier",
  "Train a small image classifier, whose features metrics and rewards can use.",
  "data.source=photos data.size=32",
);

program
  .command("launch")
  .description(
    "Run a training command or eval in several processes on this machine; docs/scale.md explains several machines.",
  )
  .argument("<command...>", "the command with its options and keys, such as train config.yaml")
  .addOption(integerOption("--processes <n>", "processes; with CUDA one per GPU").makeOptionMandatory())
  .addOption(
    integerOption("--max-restarts <n>", "restarts from the last checkpoint when a process fails").default(0),
  )
  .addOption(integerOption("--master-port <port>", "port of the processes' store (default: a free port)"))
  .passThroughOptions()
  .addHelpText("after", example("launch --processes 2 train config.yaml", "one run with two processes"))
  .action(command(async () => (await import("./launch.js")).launch));

program
  .command("emoji")
  .description(
    "Make the data set of the demo from two npm packages: 6,880 emoji in two styles, as one tar file.",
  )
  .addOption(new Option("--out <tar>", "the file to write (default: emoji_32px.tar)"))
  .addOption(new Option("--size <px>", "width and height").choices(["32", "64"]).default("32"))
  .addOption(
    new Option("--google <tgz>", "file of the package emoji-datasource-google, instead of downloading it"),
  )
  .addOption(
    new Option("--fluent <tgz>", "file of the package @lobehub/fluent-emoji-3d, instead of downloading it"),
  )
  .addOption(new Option("--force", "replace an existing file"))
  .addOption(json())
  .addHelpText("after", example("emoji --size 32 --out emoji_32px.tar", "the images of the demo, made again"))
  .action(command(async () => (await import("./emoji.js")).emoji));

program
  .command("config")
  .description(
    "Show a configuration and explain its keys: show [FILE] [key=value...] | explain [KEY...] | presets | schema | docs.",
  )
  .addArgument(
    new Argument(
      "<what>",
      "show: the whole configuration as YAML; explain: what keys mean; presets: which presets there are; schema: JSON Schema for editors; docs: docs/configuration.md",
    ).choices(["show", "explain", "presets", "schema", "docs"]),
  )
  .argument("[args...]", "for show: a file and key=value; for explain: keys or sections")
  .addOption(preset())
  .addOption(
    new Option("--for <command>", "the command whose configuration it is")
      .choices(Object.keys(kinds))
      .default("train"),
  )
  .addHelpText(
    "after",
    example("config explain reward.lpips", "meaning, default and range of the keys of a section"),
  )
  .action(command(async () => (await import("./config.js")).config));

program
  .command("report")
  .description("Write one self-contained HTML page that shows a run, or compares several.")
  .argument("<runs...>", "folders of runs; an eval.json that rlar eval --json wrote there is shown too")
  .addOption(
    new Option(
      "--out <html>",
      "the page to write (default: report.html in the run's folder, comparison.html in the first of several)",
    ),
  )
  .addOption(json())
  .addHelpText(
    "after",
    example("report runs/first runs/second --out compare.html", "a comparison of two runs"),
  )
  .action(command(async () => (await import("./report.js")).report));

program
  .command("doctor")
  .description("Print which LibTorch is in use, and this machine's memory, threads and CUDA.")
  .addOption(json())
  .addHelpText("after", example("doctor", "what to include in a bug report"))
  .action(command(async () => (await import("./doctor.js")).doctor));

program
  .command("completion")
  .description("Print a script that completes commands, options and keys in a shell.")
  .addArgument(new Argument("<shell>", "the shell").choices(["bash", "zsh", "fish"]))
  .addHelpText("after", "\nExample: completion in this shell\n  source <(npx rlar completion bash)")
  .action(
    command(async () => {
      const { completionScript } = await import("./completion.js");
      return (shell: "bash" | "zsh" | "fish"): void => {
        process.stdout.write(completionScript(program, shell));
      };
    }),
  );

for (const command of program.commands) {
  command.exitOverride();
  command.showHelpAfterError(
    `(${rlarCommand([command.name(), "--help"])} lists the options, with an example)`,
  );
}
watchOutputs(EXIT.data);
// `help NAME` prints all commands for a name that is none; NAME alone is refused, with the nearest name.
const [, , word, name] = process.argv;
if (word === "help" && name !== undefined && program.commands.every((command) => command.name() !== name))
  process.argv.splice(2, 1);

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    const advice = adviceOnRefusal(process.argv[2] ?? "", error.message);
    if (advice !== null) print(process.stderr, `${advice}\n`);
    process.exitCode = error.exitCode === 0 ? 0 : EXIT.usage;
  } else {
    const first = firstError(error) as Error;
    print(process.stderr, `rlar: ${process.env.RLAR_DEBUG ? first.stack : first.message}\n`);
    if (first instanceof ConfigError) process.exitCode = EXIT.usage;
    else if (first instanceof LostRankError) process.exitCode = EXIT.lost;
    else process.exitCode = first instanceof DivergedError ? EXIT.diverged : EXIT.data;
  }
}
process.send?.({ done: process.exitCode ?? 0 }); // to scripts/tasks.mjs, which ends what does not end by itself
