"""Is a backbone better than the one it started from? Frozen probes of several, on the same labels.

    python examples/is_it_better.py DATA BACKBONE…

DATA is a folder made by `vitp data compile`, with train and test images. Without BACKBONE the starter is compared with
a ViT of its shape with random weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import vitp


def main(data: Path, *backbones: str) -> dict[str, dict[str, float]]:
    """Print a table for each backbone; return backbone → measure → mean over three draws of labels."""
    labelled = vitp.read_compiled(data)
    towers = {name: vitp.load_backbone(name) for name in backbones or ("starter",)}
    towers["random"] = vitp.random_backbone(next(iter(towers.values())), seed=0)
    means = {}
    for name, tower in towers.items():
        table = vitp.run_probes(tower, labelled, seeds=(0, 1, 2))
        print(f"\n{name}\n{table.to_markdown()}")
        means[name] = {f"{row.task}, {row.metric}": row.mean for row in table.rows}
    return means


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
