"""The repository keeps its promises: the files a project needs, and documents that name only what exists."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import unquote

import yaml

from orcinus.server.errors import ERROR_TABLE
from tests.unit.test_imports import MAY_IMPORT, VOCABULARY

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):.*## ", MAKEFILE, flags=re.MULTILINE))
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for folder in ("docs", "deploy", "examples") for path in (ROOT / folder).rglob("*.md")),
    ],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
PACKAGES = ("config", "engine", "server")
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_licence_is_the_one_that_the_package_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    licence = (ROOT / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence


def test_changelog_has_what_is_unreleased_before_this_version_and_its_date() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    first, second, *_ = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert first == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", second)


def test_package_is_marked_as_typed() -> None:
    assert (ROOT / "orcinus/py.typed").is_file()


def test_every_folder_is_the_package_of_the_same_name() -> None:
    links = {package: ROOT / "orcinus" / package for package in PACKAGES}
    assert all(link.is_symlink() for link in links.values())
    assert {package: link.resolve() for package, link in links.items()} == {name: ROOT / name for name in PACKAGES}


def test_every_module_says_what_it_owns() -> None:
    modules = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert not [name_of(path) for path in modules if not ast.get_docstring(ast.parse(path.read_text()))]


def test_no_docstring_of_a_class_or_function_begins_with_a_question_word() -> None:
    """It begins with a verb: "What a step brought" leaves the reader to guess whether it is told, held or returned."""
    question = re.compile(r"(What|How|Whoever|Who|Whatever|Where|When|Which|Why)\b")
    folders = (*PACKAGES, "bench", "demo", "examples", ".ci")
    found = []
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                found += [f"{name_of(path)}:{node.lineno} {docstring[:40]}"] * bool(question.match(docstring))
    assert not found


# --- the Makefile is the one door -----------------------------------------------------------------------


def test_makefile_has_the_usual_targets_and_declares_them_phony() -> None:
    assert {"install", "serve", "test", "test-all", "lint", "type", "format", "bench", "help"} <= TARGETS
    assert set(re.findall(r"^\.PHONY: (\S+)$", MAKEFILE, flags=re.MULTILINE)) == TARGETS


def test_make_alone_lists_every_target() -> None:
    listing = subprocess.run(["make"], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60).stdout
    assert {line.split()[0] for line in listing.splitlines() if re.match(r"  [a-z]", line)} == TARGETS


def found_in_documents(pattern: str) -> list[tuple[Path, str]]:
    """Return what a pattern finds, with the document that has it."""
    return [(path, name) for path in DOCUMENTS for name in re.findall(pattern, path.read_text(), flags=re.MULTILINE)]


def test_documents_name_only_targets_that_exist() -> None:
    named = found_in_documents(r"(?:^|`)make ([a-z][a-z-]*)")
    assert named
    assert not [(name_of(path), target) for path, target in named if target not in TARGETS]


def targets_of_ci() -> set[str]:
    (loop,) = re.findall(r"^for target in (.*); do$", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
    return set(loop.split())


def targets_of_the_workflow() -> set[str]:
    """Of GitHub: a step may call several."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    lines = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    return {word for line in lines for call in re.findall(r"make ([a-z -]+)", line) for word in call.split()}


def test_ci_and_the_hooks_call_only_targets_that_exist() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["entry"].removeprefix("make ") for hook in hooks} <= TARGETS
    assert targets_of_ci() | targets_of_the_workflow() <= TARGETS


def test_ci_runs_all_that_a_change_must_pass_wherever_it_runs() -> None:
    needed = {"test", "lint", "type", "docs-check", "smoke"}
    assert targets_of_ci() == needed | {"test-slow"}  # one after the other: what `make test` ran is not run again
    assert targets_of_the_workflow() == needed | {"test-all"}


def unmarked_scaled_tests(path: Path) -> list[str]:
    """The tests of a file that try more in the thorough profile, and that no mark tells from the others."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [
        function.name
        for function in functions
        if any("scaled(" in ast.unparse(node) for node in function.body) and function.name.startswith("test_")
        if not any("mark.scaled" in ast.unparse(decorator) for decorator in function.decorator_list)
        if function.name != "test_numbers_are_scaled_by_the_profile_and_never_to_nothing"
    ]


def test_what_the_quick_tests_leave_out_is_what_the_slow_ones_run() -> None:
    """Slow tests, and those that a profile makes smaller: hypothesis' own, and those that ask `scaled` for a number."""
    left_out = re.search(r"^LEFT_OUT := -m '(.+)'$", MAKEFILE, flags=re.MULTILINE)
    assert left_out is not None
    assert left_out[1].split(" or ") == ["slow", "hypothesis", "scaled"]
    assert not [f"{name_of(path)}::{name}" for path in TESTS for name in unmarked_scaled_tests(path)]


def test_modules_that_the_makefile_runs_exist() -> None:
    modules = re.findall(r"python -m (?:orcinus\.)?((?:server|bench)[\w.]*)", MAKEFILE)
    assert modules
    for module in modules:
        assert ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file(), module


# --- documents ------------------------------------------------------------------------------------------


def test_readme_is_short_enough_to_be_read_to_its_end() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_every_page_is_on_the_map_of_the_documentation() -> None:
    folder = ROOT / "docs"
    pages = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")} - {"README.md"}
    listed = set(re.findall(r"\]\(([\w/.-]+)\)", (folder / "README.md").read_text()))
    assert {page for page in pages if not page.startswith("decisions/0")} <= listed


def test_errors_page_has_every_status_and_code() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (?:`(\w+)`|–) \|", (ROOT / "docs/errors.md").read_text(), flags=re.MULTILINE)
    described = {(int(status), code or None) for statuses, code in rows for status in statuses.split(",")}
    assert {(kind.status, kind.code) for kind in ERROR_TABLE.values()} <= described


def test_links_of_documents_lead_somewhere() -> None:
    links = [(path, link.partition("#")[0]) for path, link in found_in_documents(r"\]\(([^)\s]+)\)")]
    local = [(path, link) for path, link in links if link and not re.match(r"[a-z]+:", link)]
    assert local
    assert not [(name_of(path), link) for path, link in local if not (path.parent / unquote(link)).exists()]


def test_documents_name_only_source_files_that_exist() -> None:
    named = found_in_documents(r"`((?:config|engine|server|tests|deploy|demo|bench|docs)/[\w./-]+)`")
    assert named
    assert not [(name_of(path), name) for path, name in named if not (ROOT / name).exists()]


def test_every_decision_is_listed_in_order() -> None:
    folder = ROOT / "docs/decisions"
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert [int(name[:4]) for name in listed] == list(range(1, len(listed) + 1))


def test_every_decision_says_why_and_what_follows() -> None:
    headings = {
        name_of(path): re.findall(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)
        for path in (ROOT / "docs/decisions").glob("[0-9]*.md")
    }
    wanted = ["Context", "Decision", "Consequences", "Measured"]
    assert not {name: found for name, found in headings.items() if found != wanted}


def test_example_in_the_architecture_page_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), flags=re.DOTALL)
    exec(compile(example, "docs/architecture.md", "exec"), {})


def test_table_of_packages_in_the_architecture_page_is_the_table_of_imports() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `(engine|server)\.(\w+)` \|[^|]*\|[^|]*\|(.*)\|$", page, flags=re.MULTILINE)
    shown = {
        f"{folder}.{name}": {f"{folder}.{other}" for other in re.findall(r"`(\w+)`", others)}
        for folder, name, others in rows
    }
    packages = {package for package in MAY_IMPORT if "." in package} - VOCABULARY
    assert shown == {package: MAY_IMPORT[package] - VOCABULARY for package in packages}


def test_steps_in_the_architecture_page_are_named_after_folders() -> None:
    headings = re.findall(r"^### \d\. (.*): ", (ROOT / "docs/architecture.md").read_text(), flags=re.MULTILINE)
    assert len(headings) == 8
    for heading in headings:
        names = re.findall(r"`([\w/.]+)`", heading)
        assert ", ".join(f"`{name}`" for name in names) == heading
        assert all((ROOT / name).exists() for name in names), heading
