"""The house rules that a program can check, each a function from one parsed module to the places that break it.

tests/test_house.py runs them over the package, and proves on planted sources that each can fail.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

MAX_FUNCTION_LINES = 40
MAX_NESTING = 3
MAX_PARAMETERS = 6
MAX_POSITIONAL = 3
FRONT_DOOR = {"compress": 8}  # model, data, and what a user may say about the job; anything less would be a bag of settings
MAX_FILE_LINES = 400
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
BANNED_NAMES = ("utils", "util", "helpers", "helper", "manager", "base", "misc", "common")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Violations = Iterator[str]
_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


@dataclass(frozen=True)
class Module:
    """path: relative to the repository. source: its text."""

    path: PurePath
    source: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def at(self, node: ast.AST, why: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {why}"


def short_functions(module: Module) -> Violations:
    """40 lines at most, the docstring not counted."""
    for function in module.functions():
        length = (function.end_lineno or 0) - function.lineno + 1 - _docstring_lines(function)
        if length > MAX_FUNCTION_LINES:
            yield module.at(function, f"{function.name} has {length} lines; {MAX_FUNCTION_LINES} are allowed")


def shallow_nesting(module: Module) -> Violations:
    """Blocks inside blocks, three deep at most."""
    for function in module.functions():
        depth = max((_depth(statement) for statement in function.body), default=0)
        if depth > MAX_NESTING:
            yield module.at(function, f"{function.name} nests {depth} deep; {MAX_NESTING} are allowed")


def few_parameters(module: Module) -> Violations:
    """Six parameters at most, without self and cls."""
    for function in module.functions():
        count = len(_positional(function)) + len(function.args.kwonlyargs)
        allowed = FRONT_DOOR.get(function.name, MAX_PARAMETERS)
        if count > allowed:
            yield module.at(function, f"{function.name} takes {count} parameters; {allowed} are allowed")


def keywords_after_three(module: Module) -> Violations:
    """Public functions and methods take three parameters by position; further ones are keyword-only."""
    for function in _public_functions(module.tree):
        count = len(_positional(function))
        if count > MAX_POSITIONAL:
            yield module.at(function, f"{function.name} takes {count} parameters by position; {MAX_POSITIONAL} are allowed")


def short_files(module: Module) -> Violations:
    """400 lines at most."""
    lines = module.source.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{module.path}: {lines} lines; {MAX_FILE_LINES} are allowed"


def telling_names(module: Module) -> Violations:
    """No module or package is named after nothing in particular."""
    for part in module.path.with_suffix("").parts:
        if part.strip("_") in BANNED_NAMES:
            yield f"{module.path}: the name {part!r} says nothing"


def no_assert(module: Module) -> Violations:
    """Assertions vanish under python -O; the package raises errors of its own."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Assert):
            yield module.at(node, "assert outside tests")


def no_bare_except(module: Module) -> Violations:
    """A bare except also swallows Ctrl-C; an except whose whole body is `pass` hides what happened."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield module.at(node, "bare except")
        if isinstance(node, ast.ExceptHandler) and all(isinstance(statement, ast.Pass) for statement in node.body):
            yield module.at(node, "an exception is dropped without a word")


def no_pickle(module: Module) -> Violations:
    """Nothing that can run code while it loads: pickle and its relatives, torch.load as it was, numpy's allow_pickle."""
    for node in ast.walk(module.tree):
        # the name of the error that a refused file raises may be imported, alone
        if PICKLES & set(_imported(node)) and ast.unparse(node) != "from pickle import UnpicklingError":
            yield module.at(node, "imports pickle or a relative")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load" and not _passes(node, "weights_only"):
            yield module.at(node, "torch.load without weights_only=True")
        if isinstance(node, ast.Call) and _passes(node, "allow_pickle"):
            yield module.at(node, "allow_pickle=True")


def no_print(module: Module) -> Violations:
    """Only the command line speaks; everything else returns data or tells its Progress."""
    if "cli" in module.path.parts:
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield module.at(node, "print outside cli/")


def module_docstring(module: Module) -> Violations:
    """Every module that holds anything says what it is."""
    if module.tree.body and not ast.get_docstring(module.tree):
        yield f"{module.path}: no module docstring"


def public_docstrings(module: Module) -> Violations:
    """Every public function and class of a module says what it gives."""
    for node in module.tree.body:
        is_public = isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")
        if is_public and not ast.get_docstring(node):
            yield module.at(node, f"{node.name} has no docstring")


RULES: tuple[Callable[[Module], Violations], ...] = (
    short_functions,
    shallow_nesting,
    few_parameters,
    keywords_after_three,
    short_files,
    telling_names,
    no_assert,
    no_bare_except,
    no_pickle,
    no_print,
    module_docstring,
    public_docstrings,
)


def _docstring_lines(function: Function) -> int:
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0


def _depth(node: ast.AST) -> int:
    """How many blocks lie inside each other in a statement; an elif is as deep as its if, an inner function stands alone."""
    if isinstance(node, Function | ast.ClassDef):
        return 0
    if isinstance(node, ast.If) and len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
        return max(1 + max((_depth(child) for child in node.body), default=0), _depth(node.orelse[0]))
    deepest = max((_depth(child) for child in ast.iter_child_nodes(node)), default=0)
    return deepest + isinstance(node, _BLOCKS)


def _positional(function: Function) -> list[str]:
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def _public_functions(owner: ast.Module | ast.ClassDef) -> Iterator[Function]:
    for node in owner.body:
        if isinstance(node, Function | ast.ClassDef) and node.name.startswith("_"):
            continue
        if isinstance(node, Function):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from _public_functions(node)


def _imported(node: ast.AST) -> list[str]:
    """The packages that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [(node.module or "").partition(".")[0]] if isinstance(node, ast.ImportFrom) else []


def _passes(call: ast.Call, name: str) -> bool:
    """True when the call has the keyword `name` with the constant True."""
    return any(word.arg == name and isinstance(word.value, ast.Constant) and word.value.value is True for word in call.keywords)
