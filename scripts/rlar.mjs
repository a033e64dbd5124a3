#!/usr/bin/env node
// The `rlar` command: sets up what is missing, then runs the command line compiled from src/cli.
process.argv.splice(2, 0, "rlar");
await import("./run.mjs");
