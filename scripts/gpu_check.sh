#!/bin/sh
# All device checks in one run of a few minutes, on a machine with an NVIDIA GPU: set-up with CUDA, what doctor finds, the
# device tests, and the table of bench/gpu.ts, also where a test fails. Arguments go to the bench: scripts/gpu_check.sh --steps 50
set -eu
cd "$(dirname "$0")/.."
export RLAR_CUDA="${RLAR_CUDA:-1}"
npm run build
npm run --silent rlar -- doctor
status=0
npm test -- test/device test/torch/device.test.ts || status=1
npm run --silent bench -- gpu "$@" || status=1
exit "$status"
