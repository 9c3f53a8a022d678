"""SGLang's functions, names and attributes as its source says them: nothing of it is imported or run.

A folder that holds the package `sglang` is read with `ast`: an installed one, or an unpacked wheel.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from sglang_dspark.serving.base.signatures import Parameter


class Source:
    """The package below `folder`, which contains `sglang/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._module = cache(self._parsed)

    def has(self, target: str) -> bool:
        """Whether the dotted name is there: a module, a class, a function, a variable, a method, or an attribute that
        a class sets on itself."""
        return self._find(target) is not None

    def parameters(self, target: str) -> list[Parameter] | None:
        """Of a function or method, None where there is none of that name."""
        found = self._find(target)
        node = found[1] if found else None
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return None
        given = node.args
        positional = [*given.posonlyargs, *given.args]
        if any(isinstance(one, ast.Name) and one.id == "classmethod" for one in node.decorator_list):
            positional = positional[1:]
        without = len(positional) - min(len(given.defaults), len(positional))
        out = [Parameter(one.arg, False, number >= without) for number, one in enumerate(positional)]
        out += [Parameter(given.vararg.arg, rest=True)] if given.vararg else []
        out += [
            Parameter(one.arg, True, default is not None)
            for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
        ]
        return out + ([Parameter(given.kwarg.arg, rest=True)] if given.kwarg else [])

    def value(self, target: str) -> object:
        """A constant's value; ValueError where it is not a literal."""
        found = self._find(target)
        node = found[1] if found else None
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            return ast.literal_eval(node.value)
        raise ValueError(f"{target} is no literal")

    def _parsed(self, name: str) -> ast.Module | None:
        path = self.folder.joinpath(*name.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text("utf-8"))
        return None

    def _find(self, target: str) -> tuple[str, ast.AST] | None:
        """(module, node) of a dotted name; the longest prefix that is a module is one."""
        parts = target.split(".")
        for cut in range(len(parts), 0, -1):
            name = ".".join(parts[:cut])
            tree = self._module(name)
            if tree is not None or (cut < len(parts) and self.folder.joinpath(*parts[:cut]).is_dir()):
                return None if tree is None else self._inside(name, tree, parts[cut:])
        return None

    def _inside(self, module: str, node: ast.AST, parts: list[str]) -> tuple[str, ast.AST] | None:
        if not parts:
            return module, node
        if isinstance(node, ast.ClassDef):
            return self._member(module, node, parts)
        found = _named(node, parts[0])
        if isinstance(found, ast.ImportFrom):
            origin = _origin(module, found, self._is_package(module))
            return self._find(".".join([origin, _original(found, parts[0]), *parts[1:]]))
        if isinstance(found, ast.Import):
            return self._find(".".join([_original(found, parts[0]), *parts[1:]]))
        if found is None:
            submodule = f"{module}.{parts[0]}"
            tree = self._module(submodule)
            return None if tree is None else self._inside(submodule, tree, parts[1:])
        return self._inside(module, found, parts[1:])

    def _member(self, module: str, node: ast.ClassDef, parts: list[str]) -> tuple[str, ast.AST] | None:
        """In a class, or in what it is derived from."""
        found = _named(node, parts[0]) or _set_on_self(node, parts[0])
        if found is not None:
            return self._inside(module, found, parts[1:])
        for base in node.bases:
            tree, written = self._module(module), ast.unparse(base)
            above = None if tree is None else self._inside(module, tree, written.split("[")[0].split("."))
            if above is not None and isinstance(above[1], ast.ClassDef):
                inherited = self._member(above[0], above[1], parts)
                if inherited is not None:
                    return inherited
        return None

    def _is_package(self, module: str) -> bool:
        return self.folder.joinpath(*module.split(".")).is_dir()


def _named(scope: ast.AST, name: str) -> ast.AST | None:
    """What a module or class binds a name to, inside `if` and `try` as well; the last one counts.

    A class that is afterwards made again from itself (`C = defstruct("C", ...)`) is the class that was written out.
    """
    defined: ast.AST | None = None
    found: ast.AST | None = None
    pending = list(getattr(scope, "body", []))
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.If | ast.Try | ast.With):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            pending[:0] = inner + [one for handler in getattr(node, "handlers", []) for one in handler.body]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined = node if node.name == name else defined
        elif isinstance(node, ast.Assign):
            found = node if any(isinstance(one, ast.Name) and one.id == name for one in node.targets) else found
        elif isinstance(node, ast.AnnAssign):
            found = node if isinstance(node.target, ast.Name) and node.target.id == name else found
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found = node if any((one.asname or one.name.split(".")[0]) == name for one in node.names) else found
    return defined or found


def _set_on_self(node: ast.ClassDef, name: str) -> ast.AST | None:
    """The first `self.NAME = ...` of a class."""
    for inner in ast.walk(node):
        targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
        for target in targets if isinstance(inner, ast.Assign | ast.AnnAssign) else []:
            for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                on_self = isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "self"
                if on_self and one.attr == name:
                    return inner
    return None


def _original(node: ast.Import | ast.ImportFrom, name: str) -> str:
    return next(one.name for one in node.names if (one.asname or one.name.split(".")[0]) == name)


def _origin(module: str, node: ast.ImportFrom, package: bool) -> str:
    """The module that a `from` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (1 if package else 0)]
    return ".".join([*parts, *([node.module] if node.module else [])])
