#!/bin/sh
# One piece (at most 8 minutes) of a study at `small` scale on one GPU; the same command again does the next piece.
#
#     benchmarks/gpu_study.sh                                     # cheap-labels, a ViT-S/16 from random weights
#     benchmarks/gpu_study.sh --language FOLDER                   # before a trained language model
#     benchmarks/gpu_study.sh --device cpu --scale micro          # the same program at small shapes, without a GPU
#
# PYTHON names the interpreter (3.11 or 3.12, torch 2.11 or newer, transformers 5.17, timm; nothing is installed).
# Writes into gpu_study/, or the folder that --out names; rows of finished cells into the file that --rows names, with
# which another machine goes on.
set -eu
cd "$(dirname "$0")/.."
PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu_study.py "$@"
