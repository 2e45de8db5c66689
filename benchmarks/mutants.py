"""Small faults for a module: what `benchmarks/mutation.py` puts into the code to see whether a test notices.

One mutant is one changed place: a comparison, an operator, a number, a condition, a bound of a slice, a call that limits or
orders, a statement that is left out, a value that isn't returned. Texts, annotations, assertions and what is raised stay
as they are: nothing that is computed depends on them.
"""

from __future__ import annotations

import ast
import gc
import importlib.abc
import importlib.util
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any", "amin": "amax", "amax": "amin",
           "argmin": "argmax", "argmax": "argmin", "minimum": "maximum", "maximum": "minimum",
           "floor": "ceil", "ceil": "floor"}  # fmt: skip
DROPPED = frozenset(
    [
        "clip",
        "clamp",
        "clamp_",
        "clamp_min",
        "clamp_max",
        "abs",
        "sqrt",
        "exp",
        "log",
        "round",
        "sorted",
        "reversed",
        "sort",
        "cumsum",
        "flip",
        "float",
        "double",
        "detach",
        "copy",
        "clone",
        "contiguous",
        "strip",
        "lower",
        "sum",
        "mean",
        "squeeze",
        "unsqueeze",
        "transpose",
        "swapaxes",
    ]
)
"""Calls whose first operand stands in for their result."""
SILENT = frozenset(("print", "warn", "warning", "info", "debug", "log", "error"))
"""Calls that only say something."""


@dataclass(frozen=True)
class Mutant:
    """One changed place.

    Attributes:
        module: Path of the module below the root.
        line: Of the place.
        scope: Function or class that holds it; empty in the module's body.
        change: What was there → what is there now.
        code: The whole module with the change; None where it wasn't wanted.
        lines: Lines whose run by a test lets it notice; empty where importing the module is what matters.
    """

    module: str
    line: int
    scope: str
    change: str
    code: CodeType | None
    lines: frozenset[int]

    @property
    def name(self) -> str:
        """What it is called across runs and edits elsewhere in the file."""
        return f"{self.module}:{self.scope}: {self.change}"


def mutants_of(root: Path, module: str, compiled: Collection[str] = ()) -> Iterator[Mutant]:
    """Yield every mutant of a module in the order of its places; each name once.

    Args:
        root: Folder that holds the package.
        module: Path below it.
        compiled: Names of the mutants whose code is wanted.
    """
    source = (root / module).read_text(encoding="utf-8")
    tree = ast.parse(source)
    seen: dict[str, int] = {}
    for parent, field, index, scope, lines in _places(tree):
        node = _get(parent, field, index)
        before = _text(node)
        for new in _replacements(node):
            change = f"{before} → {_text(new)}"
            number = seen[f"{scope}{change}"] = seen.get(f"{scope}{change}", 0) + 1
            change += f" #{number}" if number > 1 else ""
            mutant = Mutant(module, _line(node), scope, change, None, lines)
            if mutant.name in compiled:
                ast.copy_location(new, node)
                _set(parent, field, index, new)
                code = compile(ast.fix_missing_locations(tree), str(root / module), "exec")
                _set(parent, field, index, node)
                mutant = replace(mutant, code=code)
            yield mutant


Place = tuple[ast.AST, str, int | None, str, frozenset[int]]


def _places(tree: ast.Module) -> Iterator[Place]:
    yield from _below(tree, "", frozenset(), False)


def _below(node: ast.AST, scope: str, lines: frozenset[int], inside: bool) -> Iterator[Place]:
    """Every place below a node that may change, with the statement it belongs to."""
    for field, value in ast.iter_fields(node):
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _is_left_alone(node, field, child):
                continue
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{scope}.{child.name}".lstrip(".")
                yield from _below(child, name, lines, inside)
                continue
            # Defaults and decorators run when the function is made.
            body = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and field == "body"
            runs = inside or body
            here = _lines(child) if isinstance(child, ast.stmt) else lines
            here = here if runs else frozenset()
            yield node, field, index, scope, here
            yield from _below(child, scope, here, runs)


def _lines(statement: ast.stmt) -> frozenset[int]:
    """Lines that tell that the statement was reached; of compound ones only the head."""
    body = getattr(statement, "body", None)
    last = body[0].lineno if body else (statement.end_lineno or statement.lineno) + 1
    return frozenset(range(statement.lineno, max(last, statement.lineno + 1)))


def _is_left_alone(node: ast.AST, field: str, child: ast.AST) -> bool:
    if field in ("annotation", "returns", "type_comment", "decorator_list", "bases", "ctx", "op", "ops"):
        return field not in ("op", "ops")  # operators change with their expression
    if isinstance(child, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Global | ast.Assert | ast.Raise):
        return True
    if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
        return True  # docstrings
    if isinstance(child, ast.Subscript) and _text(child.value) in ("Literal", "Annotated", "Mapping"):
        return True
    if isinstance(node, ast.Call) and field == "keywords" and isinstance(child, ast.keyword):
        return child.arg in ("strict", "description")
    return isinstance(child, ast.If) and _text(child.test) == "TYPE_CHECKING"


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for kind in COMPARISONS[type(node.ops[0])]:
            yield ast.Compare(node.left, [kind()], node.comparators)
    elif isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            for kind in COMPARISONS[type(op)][:1]:
                yield ast.Compare(
                    node.left, [*node.ops[:place], kind(), *node.ops[place + 1 :]], node.comparators
                )
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        if len(node.values) == 2:
            yield from node.values
    elif isinstance(node, ast.UnaryOp):
        if not isinstance(node.operand, ast.Constant):
            yield node.operand
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.Slice):
        yield from _slices(node)
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.comprehension):
        for place in range(len(node.ifs)):
            kept = [*node.ifs[:place], *node.ifs[place + 1 :]]
            yield ast.comprehension(node.target, node.iter, kept, node.is_async)
    elif isinstance(node, ast.stmt):
        yield from _statements(node)


def _constants(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield from (ast.Constant(value + 1), ast.Constant(value - 1))
    elif isinstance(value, float):
        yield ast.Constant(value * 2 if value else 1.0)
        if value:
            yield ast.Constant(0.0)


def _slices(node: ast.Slice) -> Iterator[ast.AST]:
    if node.lower is not None and not isinstance(node.lower, ast.Constant):
        yield ast.Slice(ast.BinOp(node.lower, ast.Add(), ast.Constant(1)), node.upper, node.step)
    if node.upper is not None and not isinstance(node.upper, ast.Constant):
        yield ast.Slice(node.lower, ast.BinOp(node.upper, ast.Sub(), ast.Constant(1)), node.step)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    named = node.func.id if isinstance(node.func, ast.Name) else ""
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if (named or method) in SWAPPED:
        other = SWAPPED[named or method]
        func = ast.Name(other, ast.Load()) if named else ast.Attribute(node.func.value, other, ast.Load())
        yield ast.Call(func, node.args, node.keywords)
    if method in DROPPED and _text(node.func.value) not in ("np", "torch", "math"):
        yield node.func.value
    elif (named or method) in DROPPED and node.args:
        yield node.args[0]


def _statements(node: ast.stmt) -> Iterator[ast.AST]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        func = node.value.func
        if (func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")) not in SILENT:
            yield ast.Pass()
    elif isinstance(node, ast.AugAssign):
        yield ast.Pass()
        if type(node.op) in OPERATORS:
            yield ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value)
    elif isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple):
        yield ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.If | ast.While):
        if isinstance(node, ast.If):
            yield ast.If(ast.Constant(True), node.body, node.orelse)
        yield type(node)(ast.Constant(False), node.body, node.orelse)
    elif isinstance(node, ast.Continue | ast.Break):
        yield ast.Break() if isinstance(node, ast.Continue) else ast.Continue()


def _line(node: ast.AST) -> int:
    return node.target.lineno if isinstance(node, ast.comprehension) else node.lineno


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _get(parent: ast.AST, field: str, index: int | None) -> ast.AST:
    value = getattr(parent, field)
    return value if index is None else value[index]


def _set(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _text(node: ast.AST) -> str:
    """One line of code for a node; of compound statements the head."""
    if isinstance(node, ast.If | ast.While):
        return f"{type(node).__name__.lower()} {ast.unparse(node.test)}"
    if isinstance(node, ast.comprehension):
        return ast.unparse(node).strip()
    text = ast.unparse(node)
    return " ".join(text.split()) if len(text) < 160 else " ".join(text.split())[:157] + "…"


# Putting a mutant in place.


def dotted(module: str) -> str:
    """Return the name that a module is imported by."""
    return module.removesuffix(".py").replace("/", ".")


def _pairs(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """Codes of two versions of a module that stand at the same place."""
    yield old, new
    ours = [const for const in old.co_consts if isinstance(const, CodeType)]
    theirs = [const for const in new.co_consts if isinstance(const, CodeType)]
    for one, other in zip(ours, theirs, strict=False):
        yield from _pairs(one, other)


def functions_of(root: Path, modules: Collection[str]) -> dict[str, list[FunctionType]]:
    """Return module → its functions, of those that have been imported: methods and nested ones that exist, too."""
    paths = {str(root / module): module for module in modules}
    found: dict[str, list[FunctionType]] = {module: [] for module in modules}
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename in paths:
            found[paths[function.__code__.co_filename]].append(function)
    return found


def put_in(root: Path, mutant: Mutant, functions: Collection[FunctionType]) -> None:
    """Give every function of the mutant's module the code that the mutant has for it."""
    path = root / mutant.module
    old = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    assert mutant.code is not None
    new_of = {(one.co_qualname, one.co_firstlineno): other for one, other in _pairs(old, mutant.code)}
    for function in functions:
        key = (function.__code__.co_qualname, function.__code__.co_firstlineno)
        if key in new_of:
            function.__code__ = new_of[key]


class Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module the mutant's code when it is imported."""

    def __init__(self, root: Path, mutant: Mutant) -> None:
        self.root, self.mutant = root, mutant
        self.name = dotted(mutant.module)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Answer for that module alone."""
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.root / self.mutant.module, loader=self)

    def create_module(self, spec: Any) -> None:
        """Leave it to Python."""

    def exec_module(self, module: Any) -> None:
        """Run the changed code."""
        assert self.mutant.code is not None
        exec(self.mutant.code, module.__dict__)
