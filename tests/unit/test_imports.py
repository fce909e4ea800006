"""The import rules: config <- engine <- server, which package may import which, and what must never pull in torch.

`MAY_IMPORT` is the one place that holds them. Each rule is checked by reading the sources, which names the file that
breaks it; torch's also by importing in a process of its own, which sees what third-party packages drag in.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What every package of the engine may use: the words that all of them share.
VOCABULARY = {"engine.errors", "engine.sampling_params", "engine.messages", "engine.outputs"}

# Which packages a package may import, imports in functions and for types included; itself and `config` always. A file
# that stands in `engine/` or `server/` itself counts as a package. No two may import each other, directly or not.
MAY_IMPORT: dict[str, set[str]] = {
    "engine": set(),
    "engine.errors": set(),
    "engine.sampling_params": {"engine.errors"},
    "engine.messages": {"engine.sampling_params", "engine.errors"},
    "engine.outputs": {"engine.messages", "engine.sampling_params", "engine.errors"},
    "engine.platform": VOCABULARY,
    "engine.kernels": VOCABULARY,
    "engine.scheduler": VOCABULARY,
    "engine.core": VOCABULARY | {"engine.scheduler", "engine.platform"},
    "engine.admission": VOCABULARY,
    "engine.text": VOCABULARY | {"engine.platform"},
    "engine.grammar": VOCABULARY | {"engine.text", "engine.platform"},
    "engine.attention": VOCABULARY | {"engine.kernels", "engine.platform"},
    "engine.recurrent": VOCABULARY | {"engine.attention", "engine.kernels", "engine.platform"},
    "engine.models": VOCABULARY
    | {"engine.attention", "engine.recurrent", "engine.cpu", "engine.kernels", "engine.platform"},
    "engine.cpu": VOCABULARY | {"engine.attention", "engine.recurrent", "engine.kernels", "engine.platform"},
    "engine.sampling": VOCABULARY | {"engine.grammar", "engine.kernels", "engine.platform"},
    "engine.runner": VOCABULARY
    | {"engine.sampling", "engine.models", "engine.attention", "engine.recurrent", "engine.grammar", "engine.platform"},
    "engine.startup": VOCABULARY
    | {"engine.runner", "engine.cpu", "engine.sampling", "engine.models", "engine.attention", "engine.grammar"}
    | {"engine.text", "engine.kernels", "engine.platform", "engine.scheduler", "engine.recurrent"},
    "engine.supervision": VOCABULARY | {"engine.core", "engine.platform", "engine.startup"},
    "engine.frontend": VOCABULARY
    | {"engine.supervision", "engine.admission", "engine.core", "engine.grammar", "engine.text", "engine.platform"}
    | {"engine.startup"},
    "server": set(),
    "server.errors": set(),
    "server.intake": set(),
    "server.json_values": {"server.errors"},
    "server.reading": {"server.json_values", "server.errors"},
    "server.caller_key": {"server.errors"},
    "server.usage": {"server.errors"},
    "server.context": {"server.reading", "server.intake", "server.caller_key", "server.errors"},
    "server.exposition": set(),
    "server.metrics": {"server.exposition"},
    "server.watching": {"server.context", "server.metrics"},
    "server.requests": {"server.context", "server.caller_key", "server.json_values", "server.errors"},
    "server.apis": {"server.requests", "server.context", "server.reading", "server.json_values", "server.metrics"}
    | {"server.errors", "server.watching", "server.usage"},
    "server.operations": {"server.apis", "server.requests", "server.context"},
    "server.tracing": {"server.operations", "server.apis", "server.requests", "server.errors"},
    "server.http": {"server.operations", "server.apis", "server.requests", "server.context", "server.errors"}
    | {"server.metrics", "server.intake", "server.tracing", "server.caller_key"},
    "server.openapi": {"server.operations", "server.apis", "server.requests", "server.errors"},
    "server.reference": {"server.operations", "server.requests", "server.exposition", "server.watching"}
    | {"server.reading"},
    "server.process": {"server.http", "server.context", "server.intake", "server.exposition"},
    "server.app": {
        "server.http",
        "server.openapi",
        "server.operations",
        "server.context",
        "server.metrics",
        "server.exposition",
        "server.watching",
        "server.tracing",
        "server.usage",
    },
    "server.load": set(),
    "server.commands": {
        "server.app",
        "server.process",
        "server.operations",
        "server.requests",
        "server.context",
        "server.errors",
        "server.load",
        "server.usage",
    },
    "server.cli": set(),  # it loads the command that is asked for, by name
}

# They decide, and never touch a tensor: tested in milliseconds, driven by a simulator, and in the server's process.
TORCH_FREE = (
    *sorted(VOCABULARY),
    "engine.core",
    "engine.frontend",
    "engine.admission",
    "engine.supervision",
    "engine.scheduler",
    "engine.grammar",
    "engine.text",
)
# What the server may use of the engine, and what its commands may use besides (`generate` and `bench` run a core).
SERVER_MAY_USE = VOCABULARY | {"engine.frontend"}
COMMANDS_MAY_USE = {"engine.core", "engine.scheduler", "engine.startup", "engine.supervision", "engine.platform"}
HEAVY = frozenset({"torch", "transformers"})
# Where a module is named by a string, which the table cannot see: the commands, and modules of torch and transformers.
IMPORT_BY_NAME = {
    "orcinus.server.cli",
    "orcinus.server.commands.bench",
    "orcinus.engine.platform.lean_imports",
    "orcinus.engine.attention.flash_backend",
}
IMPORTERS = frozenset({"import_module", "__import__", "run_module", "run_path", "resolve_name", "module_from_spec"})
# Web and OpenAI belong to the server package alone.
WEB = frozenset({"fastapi", "starlette", "uvicorn", "openai", "prometheus_client"})
# What a program in a string does that goes around the package.
AROUND = re.compile(r"\bfrom (config|engine|server)[.\w]* import\b|; ?import (config|engine|server)\b")


def path_of(module: str) -> Path | None:
    """The source of one of our modules, or None."""
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def modules_of(package: str) -> list[str]:
    """Every module of a package, or of a file that stands alone: `orcinus.engine.text.tokenizer`, …"""
    base = ROOT.joinpath("orcinus", *package.split("."))
    if not base.is_dir():
        return [f"orcinus.{package}"]
    paths = [base / "__init__.py"] if package in ("engine", "server") else sorted(base.rglob("*.py"))
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    return [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts]


def package_of(module: str) -> str:
    """The entry of `MAY_IMPORT` that a module of ours belongs to."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2])


def imports_in(nodes: Iterator[ast.AST]) -> set[str]:
    """Full names of what is imported; `from a import b` gives both `a` and `a.b`, which may be a module."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def tree_of(module: str) -> ast.Module:
    path = path_of(module)
    assert path is not None, f"there is no module {module}"
    return ast.parse(path.read_text(), filename=str(path))


def all_imports(module: str) -> set[str]:
    """Imports anywhere in the module, inside functions and for types too."""
    return imports_in(ast.walk(tree_of(module)))


def imported_modules(module: str) -> set[str]:
    """Those of our modules that `module` imports, wherever it does."""
    found = {name for name in all_imports(module) if name.startswith("orcinus.") and path_of(name) is not None}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def top(name: str) -> str:
    return name.partition(".")[0]


def packages_in(folder: str) -> set[str]:
    """The entries that `MAY_IMPORT` needs for what lies in a folder."""
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / folder).rglob("*.py")]
    return {folder} | {".".join(each[:2]) for each in parts if each[1] != "__init__"}


def names_in(module: str) -> set[str]:
    """Every name and attribute that a module mentions, those that it imports included."""
    nodes = [*ast.walk(tree_of(module))]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return names | {part for name in all_imports(module) for part in name.split(".")}


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages in `sys.modules` after really importing `modules` in a new interpreter."""
    script = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {top(name) for name in json.loads(done.stdout)}


def test_table_has_every_package_and_no_other() -> None:
    assert set(MAY_IMPORT) == packages_in("engine") | packages_in("server")


def test_table_has_no_cycle() -> None:
    done: set[str] = set()
    while left := set(MAY_IMPORT) - done:
        free = {package for package in left if MAY_IMPORT[package] & left <= {package}}
        assert free, f"these import each other: {sorted(left)}"
        done |= free


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_package_imports_only_what_the_table_allows(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    if top(package) == "server":
        allowed |= SERVER_MAY_USE | (COMMANDS_MAY_USE if package == "server.commands" else set())
    for module in modules_of(package):
        used = {package_of(name) for name in imported_modules(module) if not name.startswith("orcinus.config")}
        assert used <= allowed, f"{module} imports {sorted(used - allowed)}"


def test_config_imports_nothing_of_the_others() -> None:
    for module in modules_of("config"):
        assert all(name.startswith("orcinus.config") for name in imported_modules(module)), module


def test_every_folder_with_modules_is_a_package() -> None:
    """Without `__init__.py` it can be imported in a checkout, and is left out of the wheel."""
    for folder in ("config", "engine", "server"):
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path.parent


@pytest.mark.parametrize("package", [*MAY_IMPORT, "config"])
def test_nothing_is_imported_in_a_way_that_the_table_cannot_see(package: str) -> None:
    """Such are `from orcinus import LLM`, `import orcinus.engine`, which gives all of it, and a name in a string."""
    for module in modules_of(package):
        whole = {
            alias.name for node in ast.walk(tree_of(module)) if isinstance(node, ast.Import) for alias in node.names
        }
        assert "orcinus" not in all_imports(module) | {top(name) for name in whole}, module
        assert bool(names_in(module) & IMPORTERS) == (module in IMPORT_BY_NAME), module


def test_every_entry_of_the_table_is_used() -> None:
    """An arrow that nothing draws is permission to draw it: it goes when its last import goes."""
    unused = []
    for package, allowed in MAY_IMPORT.items():
        used = {package_of(name) for module in modules_of(package) for name in imported_modules(module)}
        unused += [f"{package} -> {other}" for other in sorted(allowed - VOCABULARY - used)]
    assert not unused


def test_nothing_is_imported_around_the_package() -> None:
    """`import engine` works in a checkout, by accident, and loads every module a second time (decision 24)."""
    for folder in ("config", "engine", "server", "bench", "demo", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = [*ast.walk(ast.parse(path.read_text()))]
            names = {top(name) for name in imports_in(iter(nodes))}
            assert not names & {"config", "engine", "server"}, path
            texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            assert not [text for text in texts if AROUND.search(text)], f"{path}, in a program for another process"
            assert "tests" not in names or folder in ("tests", "bench"), path
            assert "bench" not in names or folder in ("tests", "bench"), path
            assert "demo" not in names or folder in ("tests", "demo", "bench"), path


@pytest.mark.parametrize("package", [package for package in MAY_IMPORT if top(package) == "engine"] + ["config"])
def test_engine_knows_nothing_of_the_web(package: str) -> None:
    for module in modules_of(package):
        web = {top(name) for name in all_imports(module)} & WEB
        assert not web, f"{module} imports {sorted(web)}"


@pytest.mark.parametrize(
    "package", [*TORCH_FREE, "config", *(package for package in MAY_IMPORT if top(package) == "server")]
)
def test_torch_free_package_names_no_torch(package: str) -> None:
    for module in modules_of(package):
        assert "torch" not in {top(name) for name in all_imports(module)}, module


def test_importing_all_that_is_torch_free_loads_no_torch() -> None:
    modules = [module for package in (*TORCH_FREE, "config") for module in modules_of(package)]
    assert not loaded_by(*modules) & HEAVY


@pytest.mark.parametrize("module", ["orcinus", "orcinus.server.app", "orcinus.server.cli"])
def test_importing_the_server_loads_no_torch(module: str) -> None:
    assert not loaded_by(module) & HEAVY


def test_load_generator_is_a_client_like_any_other() -> None:
    for module in modules_of("server.load"):
        ours = {package_of(name) for name in imported_modules(module) if not name.startswith("orcinus.config")}
        assert ours <= {"server.load", "engine.errors"}, module


def test_scheduler_and_model_runner_share_messages_and_nothing_else() -> None:
    runner = {package_of(name) for module in modules_of("engine.runner") for name in imported_modules(module)}
    scheduler = {package_of(name) for module in modules_of("engine.scheduler") for name in imported_modules(module)}
    assert runner & scheduler <= VOCABULARY
    assert "engine.scheduler" not in runner


def test_checker_sees_imports_in_functions_and_for_types() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
def load():
    import transformers
"""
    assert imports_in(ast.walk(ast.parse(source))) >= {"torch", "transformers"}
