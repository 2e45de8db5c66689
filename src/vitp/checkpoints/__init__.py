"""Weights in and out: the layouts in which vision towers and vision-language models are published, and our own.

Each file needs those above it only:

    tensors       files of named tensors, shards and PyTorch files included
    hub           a source that isn't here
    layouts       one model, four sets of names
    published     configurations of others as ours and back
    state_dicts   the vision transformer in a file of a training run; timm's conversions
    description   our own `config.json` and `vitp_backbone.json`, provenance, digests
    checkpoint    `read_checkpoint`: whatever a user names → `Checkpoint`
    loading       `load_backbone`, `load_vlm`: `Checkpoint` → model, strictly and with a report
    writing       models and checkpoints → folders
    card, export  a vision tower → a folder for timm, transformers and vitp
    verify        what was written against what it was made of
    convert, formats, swap   the commands `vitp convert`, `vitp export --format` and `vitp swap`
"""
