#!/bin/sh
# All that is to be known of one GPU, in at most 8 minutes: checks, the step over settings, finetuning, prediction.
#
#     benchmarks/gpu.sh                                   # full scale on the GPU that is there
#     benchmarks/gpu.sh --device cpu --size micro         # the same program at small shapes, without a GPU
#
# PYTHON names the interpreter (3.11 or 3.12, torch 2.11 or newer, transformers 5.17, timm; nothing is installed).
# Writes gpu/*.json and gpu/page.md, or into the folder that --out names.
set -eu
cd "$(dirname "$0")/.."
PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
