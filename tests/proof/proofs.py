"""The list of proofs: which test shows the effect of each setting, and the value of each column of the console.

It is read here, and each test that it names is looked up in its file, without running anything.
"""

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
LIST: Final = Path(__file__).with_name("proofs.toml")
_LEFT_OUT: Final = ("slow", "skip", "skipif", "xfail")
_NODE: Final = re.compile(r"(?P<file>tests/[\w/]+\.py)::(?:(?P<group>Test\w+)::)?(?P<test>test_\w+)(?:\[(?P<id>.+)\])?")

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Proof:
    """`test`, by its pytest node id, proves `thing`, such as the setting pool_mode or a column of SHOW POOLS."""

    section: str
    thing: str
    test: str

    def __str__(self) -> str:
        return f"[{self.section}] {self.thing} = {self.test}"


def read(text: str) -> list[Proof]:
    """Return the proofs in the text of such a list: tables of names, each with one test or several."""
    return list(_proofs("", tomllib.loads(text)))


def _proofs(section: str, table: Mapping[str, object]) -> Iterator[Proof]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _proofs(f"{section}.{name}".lstrip("."), value)
        else:
            for test in value if isinstance(value, list) else [value]:
                yield Proof(section, name, str(test))


def flaw(proof: Proof, root: Path = ROOT) -> str | None:
    """Return what is wrong with a proof; None if pytest collects that test, and the test names what it proves."""
    node = _NODE.fullmatch(proof.test)
    if node is None:
        return "it is not of the form tests/FILE.py::test_NAME"
    path = root / node["file"]
    if not (path.exists() and path.name.startswith("test_")):
        return "there is no such file of tests"
    module = _Module.of(path)
    test = module.test(node["group"], node["test"])
    if test is None:
        return "there is no such test in that file"
    if left_out := set(_marks(test)) & set(_LEFT_OUT):
        return f"it may be left out: {', '.join(left_out)}"
    if node["id"] is not None and not module.has_id(test, node["id"]):
        return "it has no parameters of that id"
    text = module.all_of(test).replace("-", "_").replace("\\n", " ")
    if not re.search(rf"\b{re.escape(proof.thing)}\b", text, re.IGNORECASE):
        return "it does not name what it is to prove"
    return None


@dataclass(frozen=True, slots=True)
class _Module:
    """A file of tests, and what stands at its outermost level by name."""

    lines: list[str]
    outermost: Mapping[str, ast.stmt]

    @staticmethod
    @cache
    def of(path: Path) -> "_Module":
        text = path.read_text()
        return _Module(text.splitlines(), dict(_names(ast.parse(text))))

    def test(self, group: str | None, name: str) -> _Definition | None:
        """Return a test, outside of all classes or in the class `group`."""
        found: ast.stmt | None
        if group is None:
            found = self.outermost.get(name)
        else:
            inside = self.outermost.get(group)
            found = dict(_names(inside)).get(name) if isinstance(inside, ast.ClassDef) else None
        return found if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) else None

    def has_id(self, test: _Definition, id_: str) -> bool:
        """Tell whether `id_` is made of what the test is parametrized with, where that can be read off the text."""
        texts = {
            str(each.value).lower() if isinstance(each.value, bool) else str(each.value)
            for decorator in test.decorator_list
            if "parametrize" in _marks(decorator)
            for part in self._reached(decorator)
            for each in ast.walk(part)
            if isinstance(each, ast.Constant)
        }
        literal = "|".join(map(re.escape, sorted(filter(None, texts), key=len, reverse=True)))
        return bool(literal) and re.fullmatch(rf"(?:{literal})(?:-(?:{literal}))*", id_, re.IGNORECASE) is not None

    def all_of(self, test: _Definition) -> str:
        """Return the text of a test with that of the helpers and fixtures of its file that it uses."""
        return "\n".join(self._text(each) for each in self._reached(test))

    def _reached(self, start: ast.AST) -> list[ast.AST]:
        reached = [start]
        for each in reached:  # it grows meanwhile
            used = {name.id for name in ast.walk(each) if isinstance(name, ast.Name)}
            used |= {argument.arg for argument in ast.walk(each) if isinstance(argument, ast.arg)}
            found = [self.outermost[name] for name in sorted(used & self.outermost.keys())]
            reached += [definition for definition in found if definition not in reached]
        return reached

    def _text(self, node: ast.AST) -> str:
        assert isinstance(node, ast.stmt)
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        return "\n".join(self.lines[first - 1 : node.end_lineno])


def _names(scope: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.stmt]]:
    for each in scope.body:
        if isinstance(each, _Definition):
            yield each.name, each
        elif isinstance(each, ast.Assign | ast.AnnAssign):
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            yield from ((target.id, each) for target in targets if isinstance(target, ast.Name))


def _marks(node: ast.AST) -> Iterator[str]:
    """Yield the names of the marks that a test is decorated with."""
    decorators = node.decorator_list if isinstance(node, _Definition) else [node]
    for decorator in decorators:
        yield from (each.attr for each in ast.walk(decorator) if isinstance(each, ast.Attribute))
