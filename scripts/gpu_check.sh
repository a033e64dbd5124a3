#!/bin/sh
# All device checks in one run of a few minutes, on a machine with an NVIDIA GPU: set-up with CUDA, what doctor finds, the
# device tests, and the table of bench/gpu.ts. Arguments go to the bench: scripts/gpu_check.sh --steps 50
set -eu
cd "$(dirname "$0")/.."
export RLAR_CUDA="${RLAR_CUDA:-1}"
npm run build
npm run --silent rlar -- doctor
npm test -- test/device test/torch/device.test.ts
npm run --silent bench -- gpu "$@"
