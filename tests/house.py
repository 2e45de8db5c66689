"""What the package looks like from outside: rooms, imports, names, sizes. `python -m tests.house [ROOM]` lists what is wrong.

The rules are those of CONTRIBUTING.md; `tests/contracts/test_house.py` holds the package to them.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "vitp"
ROOMS = (
    *(
        "core",
        "runtime",
        "records",
        "scenes",
        "io",
        "data",
        "models",
        "metrics",
        "checkpoints",
        "objectives",
        "engine",
    ),
    *(
        "tasks",
        "inference",
        "evaluation",
        "runs",
        "deployment",
        "planning",
        "report",
        "serving",
        "recipes",
        "studies",
        "cli",
    ),
)
"""From the ground up: a room may import from those before it. `models` knows nothing of data, either."""

STRANGERS = {"models": {"scenes", "io", "data"}}
ROOT = {"__init__.py", "__main__.py", "py.typed"}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 450, 60
EVERY_NOUN = {"register", "app", "run"}
"""Names that each file of the command line has: what `vitp.cli` collects, and `run` of it and `__main__`."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One imported module of the package, or one from outside.

    Attributes:
        file: Where, relative to the package.
        line: In it.
        module: Full name, as far as it is a module.
        inside: Within a function.
        typing: Under TYPE_CHECKING.
    """

    file: str
    line: int
    module: str
    inside: bool
    typing: bool

    @property
    def room(self) -> str:
        """The room that imports."""
        return self.file.split("/")[0]

    @property
    def target(self) -> str:
        """The room that is imported, or "" where it is none."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "vitp" and len(parts) > 1 else ""


@cache
def texts() -> dict[str, str]:
    """Return the text of each file, by its path relative to the package."""
    return {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def trees() -> dict[str, ast.Module]:
    """Return the syntax tree of each file, by its path relative to the package."""
    return {file: ast.parse(text) for file, text in texts().items()}


@cache
def imports() -> tuple[Import, ...]:
    """Return all imports of the package."""
    found = []
    for file, tree in trees().items():
        inside = {id(k) for n in ast.walk(tree) if isinstance(n, _Function) for k in ast.walk(n)}
        typing = {id(k) for n in ast.walk(tree) if _is_type_checking(n) for k in ast.walk(n)}
        found += [
            Import(file, node.lineno, module, id(node) in inside, id(node) in typing)
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for module in _modules(node)
        ]
    return tuple(found)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module if node.module != "vitp" else f"vitp.{alias.name}" for alias in node.names][:1]
    return []


def upward_imports() -> list[str]:
    """Return imports that climb, also those for types alone."""
    found = []
    for each in imports():
        if each.room not in ROOMS or each.target not in ROOMS or each.room == each.target:
            continue
        climbs = ROOMS.index(each.target) > ROOMS.index(each.room)
        if climbs or each.target in STRANGERS.get(each.room, ()):
            found.append(f"{each.file}:{each.line} {each.room} → {each.module}")
    return found


def circles() -> list[str]:
    """Return files that need each other, so that none of them can be read first."""
    arrows: dict[str, set[str]] = {file: set() for file in texts()}
    for each in imports():
        stem = each.module.removeprefix("vitp.").replace(".", "/")
        target = next((file for file in (f"{stem}.py", f"{stem}/__init__.py") if file in arrows), each.file)
        if target != each.file and not each.typing and not each.file.endswith("__init__.py"):
            arrows[each.file].add(target)
    while grounds := {file for file, below in arrows.items() if not below & arrows.keys()}:
        arrows = {file: below for file, below in arrows.items() if file not in grounds}
    return [f"{file} → {', '.join(sorted(below & arrows.keys()))}" for file, below in sorted(arrows.items())]


def loose_files() -> list[str]:
    """Return what lies at the package's root and belongs into a room, and rooms that aren't in the list."""
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()} - ROOT
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    return sorted(files | (rooms - {*ROOMS, "assets"}))


def hidden_imports(optional: Iterable[str] = ()) -> list[str]:
    """Return imports inside functions but for those of some modules, the command line and `__init__` files.

    Args:
        optional: Modules from outside, with all below them, that are imported where they are used.
    """
    return [
        f"{each.file}:{each.line} {each.module}"
        for each in imports()
        if each.inside
        and each.room not in ("cli", "__main__.py")
        and not each.file.endswith("__init__.py")
        and not any(f"{each.module}.".startswith(f"{name}.") for name in optional)
    ]


def shared_names() -> list[str]:
    """Return public names of modules that two or more files define."""
    homes = defaultdict(set)
    for file, tree in trees().items():
        for name in _public(tree):
            if not (file.startswith(("cli/", "__main__")) and name in EVERY_NOUN):
                homes[name].add(file)
    return [f"{name}: {', '.join(sorted(files))}" for name, files in sorted(homes.items()) if len(files) > 1]


def _public(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        names: list[str] = []
        if isinstance(node, (*_Function.__args__, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from (name for name in names if not name.startswith("_"))


def long_files() -> list[str]:
    """Return files of more than 450 lines."""
    sizes = {file: len(texts()[file].splitlines()) for file in trees()}
    return [f"{file}: {size} lines" for file, size in sizes.items() if size > MOST_LINES]


def long_functions() -> list[str]:
    """Return functions of more than 60 lines."""
    return [
        f"{file}:{node.lineno} {node.name}: {size} lines"
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, _Function)
        and (size := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
    ]


def long_prose() -> list[str]:
    """Return lines of docstrings and comments of more than 120 characters."""
    found = []
    for file, tree in trees().items():
        lines = texts()[file].splitlines()
        prose = {number for number, line in enumerate(lines, 1) if line.lstrip().startswith("#")}
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                prose |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        found += [f"{file}:{number}" for number in sorted(prose) if len(lines[number - 1]) > 120]
    return found


def hops() -> list[str]:
    """Return private functions of four lines or fewer (without docstring) that are used exactly once."""
    found = []
    for file, tree in trees().items():
        text = texts()[file]
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("_") or node.decorator_list:
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines <= 4 and text.count(node.name) == 2:
                found.append(f"{file}:{node.lineno} {node.name}")
    return found


RULES: dict[str, Callable[[], list[str]]] = {
    "imports go down": upward_imports,
    "files and rooms at the root": loose_files,
    "files that need each other": circles,
    "imports inside functions": hidden_imports,
    "public names of two files": shared_names,
    "files over 450 lines": long_files,
    "functions over 60 lines": long_functions,
    "prose over 120 characters": long_prose,
    "short private functions used once": hops,
}

if __name__ == "__main__":
    for rule, check in RULES.items():
        lines = [line for line in check() if all(word in line for word in sys.argv[1:])]
        print(f"{rule}: {len(lines)}", *lines, sep="\n    ")
