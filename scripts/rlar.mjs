#!/usr/bin/env node
// The `rlar` command: sets up what is missing, then runs the command line compiled from src/cli.
process.argv.splice(2, 0, "rlar");
process.env.RLAR_STARTED_AS = "rlar"; // printed commands are typed the same way
await import("./run.mjs");
