"""Notebooks: cells are short, links lead somewhere, outputs are there, and all of it runs.

A cell whose code only draws or checks is collapsed: its source is hidden until one opens it.

Running takes a while: `python -m pytest --slow tests/test_notebooks.py`, as CI does. The rest
reads the files as they are. A notebook put into notebooks/ is tested from then on.
"""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [*PATHS, ROOT / "README.md"]
EXERCISE = re.compile(r"\*\*(\d)\.\*\*")
SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.DOTALL)
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def collapsed(cell):
    return cell.metadata.get("jupyter", {}).get("source_hidden", False)


def speaks(source):
    """Whether a cell prints, draws or ends in a value, outside of functions it defines."""
    statements = [node for node in ast.parse(source).body if not isinstance(node, ast.FunctionDef)]
    calls = {getattr(call.func, "id", getattr(call.func, "attr", None))
             for node in statements for call in ast.walk(node) if isinstance(call, ast.Call)}
    value = statements and isinstance(statements[-1], ast.Expr)
    return bool(calls & {"print", "show", "display"}) or bool(
        value and not isinstance(statements[-1].value, ast.Call))


def kinds(cell):
    """What a cell's output consists of, and is not empty: text, pictures, error."""
    found = set()
    for output in cell.outputs:
        content = output.get("data", {"text/plain": output.get("text", "")})
        found |= {kind for kind, value in content.items() if value.strip()}
        found |= {"error"} if output.output_type == "error" else set()
    drawn = found & {"image/png", "text/html"}
    return found - ({"text/plain"} if drawn else set())  # <Figure size ...>


def text_of(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("source, expected", [
    ("print(1)", True), ("plt.show()", True), ("x = 1\nx", True), ("x = 1", False),
    ("for x in y:\n    print(x)", True), ("def f():\n    print(1)", False),
    ("torch.testing.assert_close(a, b)", False)])
def test_cells_that_speak_are_told_from_those_that_do_not(source, expected):
    assert speaks(source) == expected


def test_notebooks_are_numbered_and_complete():
    """They are read in order: 00, 01, ... without a gap."""
    assert [path.name[:2] for path in PATHS] == [f"{number:02}" for number in range(len(PATHS))]
    assert len(PATHS) >= 2


@every_notebook
def test_cells_are_short_and_have_no_other_metadata(path):
    """A code cell has at most 8 lines, a collapsed one 20, none beyond 100 columns; text comes
    after five code cells at most. No times, versions or settings of an editor are kept: a new run
    changes outputs alone."""
    notebook = read(path)
    assert path.stat().st_size < 1.5e6
    assert "c" * 6 not in "".join(cell.cell_type[0] for cell in notebook.cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert dict(cell.metadata) in ({}, {"jupyter": {"source_hidden": True},
                                            "tags": ["hide-input"]}), cell.source
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            assert len(lines) <= (20 if collapsed(cell) else 8), cell.source
            assert max(map(len, lines)) <= 100, cell.source


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_local_links_lead_to_files(path):
    """Those of text and pictures; the README's reach every notebook."""
    text = path.read_text() if path.suffix == ".md" else "\n".join(
        cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)
               if not re.match(r"\w+:", target)]
    assert targets
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing
    if path == ROOT / "README.md":
        assert {f"notebooks/{notebook.name}" for notebook in PATHS} <= set(targets)


@every_notebook
def test_committed_outputs_are_those_of_one_run_from_top_to_bottom(path):
    """Counted 1, 2, ...; whatever speaks has an output; no error; no place on the author's disk."""
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert kinds(cell) or not speaks(cell.source), cell.source
        assert "error" not in kinds(cell), cell.source
        assert not re.search(r"(^|[\s'\"])/\w+/", text_of(cell)), text_of(cell)


@every_notebook
def test_three_exercises_with_asserts_and_folded_solutions(path):
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(EXERCISE.findall(text)) == len(SOLUTION.findall(text)) == 3
    checks = [cell.source for cell in code_cells(notebook) if "exercise " in text_of(cell)]
    assert len(checks) == 3 and all("assert" in check for check in checks)


@pytest.mark.slow
@every_notebook
def test_notebook_runs_and_its_solutions_are_right(path):
    """In a fresh kernel every cell has the kinds of output it is committed with.

    The kernel starts in another folder of the project than Jupyter would start it in. Behind each
    solution the cell with its exercise's checks is run once more.
    """
    notebook, cells, check = read(path), [], None
    committed = {cell.id: kinds(cell) for cell in code_cells(notebook)}
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code":
            check = cell.source
        for number, solution in enumerate(SOLUTION.findall(cell.source)):
            assert number == 0, "one solution a cell, behind its checks"
            cells.append(nbformat.v4.new_code_cell(f"{solution}\n{check}"))
    notebook.cells = cells
    NotebookClient(notebook, timeout=600, kernel_name="python3",
                   resources={"metadata": {"path": str(ROOT / "assets")}}).execute()
    for cell in code_cells(notebook):
        if cell.id in committed:
            assert kinds(cell) == committed[cell.id], cell.source
        else:
            assert re.search(r"exercise \d: right", text_of(cell)), cell.source
