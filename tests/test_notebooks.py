"""Notebooks: cells are short, links lead somewhere, outputs are there, and all of it runs.

A cell whose code only draws is collapsed. No cell tests the author's text, or it would raise when a
reader changes something: only exercises assert. Two kinds of sentences are tested from here, with
the data of tests/notebooks/NAME.toml. *Invitations* have one of these forms, and a promise:

    **Change** `OLD` to `NEW`: what you will see.
    **Change** `OLD` to `NEW` or `OTHER`: ...               (each is tried)
    **Change** `OLD` to `NEW`, and `OLD2` to `NEW2`: ...    (both at once)

Each OLD stands exactly once in the visible code before the invitation. The test runs the changed
cell and all cells from there to the invitation. The data has one entry for each, in their order:

    [[change]]
    old = "K = 370"               # the first OLD of the invitation
    check = '''assert ...'''      # knows the notebook's names, with their new values;
                                  # `before`, a dict of their old values; `new`, the NEW in use;
                                  # `printed`, all that these cells printed
    through = "render("           # optional: then run on, through the last cell that contains this

*Sentences about results* are checked just before the text cell that contains their words:

    [[holds]]
    words = "the second is better"
    check = "assert second < first"

All of it happens in one run of the notebook, on one thread. A change is tried in a fork of the
kernel and leaves no trace. It takes a while: `python -m pytest --slow tests/test_notebooks.py`.
"""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [*PATHS, ROOT / "README.md"]
EXERCISE = re.compile(r"\*\*(\d)\.\*\*")
CODE = r"`([^`]+)`"
CHANGE = re.compile(rf"{CODE} to ({CODE}(?:,? or {CODE})*)")
SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.DOTALL)
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def collapsed(cell):
    return cell.metadata.get("jupyter", {}).get("source_hidden", False)


def kinds(cell):
    """What a cell's output consists of, and is not empty: text, pictures, error."""
    found = set()
    for output in cell.outputs:
        content = output.get("data", {"text/plain": output.get("text", "")})
        found |= {kind for kind, value in content.items() if value.strip()}
        found |= {"error"} if output.output_type == "error" else set()
    drawn = found & {"image/png", "text/html"}
    return found - {"text/plain"} if drawn else found  # <Figure size ...>


def text_of(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def claims(path):
    """The data about a notebook: {"change": [...], "holds": [...]}."""
    file = ROOT / "tests" / "notebooks" / f"{path.stem}.toml"
    return {"change": [], "holds": []} | (tomllib.loads(file.read_text()) if file.exists() else {})


def on_one_line(text):
    return " ".join(text.split())


def invitations(source):
    """The changes that a text invites to: for each a list of alternatives {old: new}."""
    found = []
    for sentence in on_one_line(source).split("**Change**")[1:]:
        olds, end = {}, 0
        for match in CHANGE.finditer(sentence):
            if sentence[end:match.start()] not in (" ", ", and ", " and "):
                break  # the promise has begun
            olds[match[1]], end = re.findall(CODE, match[2]), match.end()
        assert olds and sentence[end] == ":", f"**Change** without `OLD` to `NEW`: ...{sentence}"
        found.append([dict(zip(olds, news, strict=True)) for news in zip(*olds.values(),
                                                                        strict=True)])
    return found


def changed(cells, replacements):
    """The code of the cells with the replacements, from the first changed cell on."""
    sources, first = [cell.source for cell in cells], len(cells)
    for old, new in replacements.items():
        places = [number for number, cell in enumerate(cells) if not collapsed(cell)
                  and cell.cell_type == "code" and old in cell.source]
        count = sum(cells[place].source.count(old) for place in places)
        assert count == 1, f"{old!r} stands {count} times in the visible code"
        sources[places[0]] = sources[places[0]].replace(old, new)
        first = min(first, *places)
    return [source for source, cell in zip(sources[first:], cells[first:], strict=True)
            if cell.cell_type == "code"]


def tried(path, notebook):
    """(number of a text cell, code to run before it): what the data says of the notebook."""
    cells, data = notebook.cells, claims(path)
    entries = iter(data["change"])
    for number, cell in enumerate(cells):
        if cell.cell_type != "markdown":
            continue
        for entry in data["holds"]:
            if on_one_line(entry["words"]) in on_one_line(cell.source):
                yield number, f"holds_({entry['check']!r})"
        for alternatives in invitations(cell.source):
            entry = next(entries, {"old": None})
            for replacements in alternatives:
                assert entry["old"] in replacements, f"no entry for {replacements}"
                last = max([number] + [later for later, cell in enumerate(cells)
                                       if cell.cell_type == "code"
                                       and entry.get("through", "\0") in cell.source])
                sources = changed(cells[:last + 1], replacements)
                count = len(changed(cells[:number], replacements))
                yield number, (f"try_({sources[:count]!r}, {sources[count:]!r}, "
                               f"{list(replacements.values())[0]!r}, {entry['check']!r})")
    assert next(entries, None) is None, "an entry without an invitation"


TOOLS = r"""
def holds_(check):
    exec(check, dict(globals()))

def try_(sources, further, new, check):
    import io, os, sys, traceback
    read, write = os.pipe()
    if os.fork() == 0:
        shell, message = get_ipython(), ""
        shell.display_pub.publish = lambda *_, **__: None
        sys.stdout = sys.stderr = io.StringIO()
        here, before = globals(), dict(globals())
        try:
            for source in sources:
                exec(compile(source, "changed cell", "exec"), here)
            exec(check, here | {"before": before, "new": new, "printed": sys.stdout.getvalue()})
            for source in further:
                exec(compile(source, "later cell", "exec"), here)
        except BaseException:
            message = f"{traceback.format_exc()}\nprinted: {sys.stdout.getvalue()}"
        os.write(write, message.encode()[-60_000:])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        message = pipe.read().decode(errors="replace")
    os.wait()
    assert not message, f"with {new}:\n{message}"
"""


@every_notebook
def test_cells_are_short_and_have_no_other_metadata(path):
    """A code cell has at most 8 lines, a collapsed one 20, none beyond 100 columns; text comes
    after five code cells at most. A new run changes outputs alone, no times or versions."""
    notebook = read(path)
    assert path.stat().st_size < 1.5e6 and len(notebook.cells) <= 120
    assert "c" * 6 not in "".join(cell.cell_type[0] for cell in notebook.cells)
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert dict(cell.metadata) in ({}, {"jupyter": {"source_hidden": True},
                                            "tags": ["hide-input"]}), cell.source
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            assert len(lines) <= (20 if collapsed(cell) else 8), cell.source
            assert max(map(len, lines)) <= 100, cell.source


@every_notebook
def test_every_invitation_and_every_claim_has_its_place(path):
    """Each `OLD` stands once in the visible code above, and each sentence once in the text."""
    notebook = read(path)
    assert len(list(tried(path, notebook))) >= 3
    text = on_one_line(" ".join(cell.source for cell in notebook.cells))
    for entry in claims(path)["holds"]:
        assert text.count(on_one_line(entry["words"])) == 1, entry["words"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_local_links_lead_to_files(path):
    """Those of text and pictures; the README's reach every notebook."""
    text = path.read_text() if path.suffix == ".md" else "\n".join(
        cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    text = re.sub("```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)  # code
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)
               if not re.match(r"\w+:", target)]
    assert targets
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing
    if path == ROOT / "README.md":
        assert {f"notebooks/{notebook.name}" for notebook in PATHS} <= set(targets)


@every_notebook
def test_what_the_text_names_is_in_the_code(path):
    """Options, functions and values in `code`: former ones stand nowhere but in weights/."""
    notebook = read(path)
    rooms = (ROOT, *(ROOT / room for room in ("networks", "sets", "tasks", "benchmarks")))
    code = "\n".join([source.read_text() for room in rooms for source in room.glob("*.py")]
                     + [cell.source for cell in code_cells(notebook)])
    for cell in notebook.cells:
        text = re.sub("```.*?```", "", cell.source, flags=re.DOTALL)
        for span in re.findall(CODE, text) if cell.cell_type == "markdown" else ():
            for word in re.findall(r'\b[a-z]+(?:_\w+)+\b(?!\.jpg)|(?<==)"\w+"', span):
                assert re.search(rf"(?<!\w){word}(?!\w)", code), span


@every_notebook
def test_committed_outputs_are_those_of_one_run_from_top_to_bottom(path):
    """Counted 1, 2, ...; no error, no place on the author's disk, no module's repr, nothing long.
    """
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert "error" not in kinds(cell), cell.source
        assert not re.search(r"(^|[\s'\"])/\w+/", text_of(cell)), text_of(cell)
        printed = text_of(cell) + "".join(output.get("data", {}).get("text/plain", "")
                                          for output in cell.outputs)
        limit = 60 if cell.source.startswith("listing(") else 30  # the project's code
        assert len(printed.splitlines()) <= limit, cell.source
        assert not re.search(r"^ +\(\w+\): \w+\(", printed, re.MULTILINE), cell.source


@every_notebook
def test_three_exercises_assert_and_nothing_else_does(path):
    """Their solutions are folded. `assert_close` of two ways to compute is no hidden test."""
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(EXERCISE.findall(text)) == len(SOLUTION.findall(text)) == 3
    checks = [cell.source for cell in code_cells(notebook) if "exercise " in text_of(cell)]
    assert len(checks) == 3 and checks == [cell.source for cell in code_cells(notebook) if any(
        isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))]


def run(notebook, extra=()):
    """Run a notebook in a fresh kernel, with more cells: those of `tried`, and its solutions.

    The kernel starts in another folder of the project than Jupyter would start it in. Behind each
    solution the cell with its exercise's checks is run once more.
    """
    check, cells = None, [nbformat.v4.new_code_cell(TOOLS)]
    for number, cell in enumerate(notebook.cells):
        cells += [nbformat.v4.new_code_cell(code) for place, code in extra if place == number]
        cells.append(cell)
        if cell.cell_type == "code":
            check = cell.source
        for count, solution in enumerate(SOLUTION.findall(cell.source)):
            assert count == 0, "one solution a cell, behind its checks"
            cells.append(nbformat.v4.new_code_cell(f"{solution}\n{check}"))
    notebook.cells = cells
    NotebookClient(notebook, timeout=600, startup_timeout=300, kernel_name="python3",
                   resources={"metadata": {"path": str(ROOT / "assets")}}).execute()


@pytest.mark.slow
@every_notebook
def test_notebook_runs_and_keeps_what_it_promises(path, monkeypatch):
    """Every cell has the kinds of output it is committed with, and the solutions are right.

    Every change that the text invites to shows what is promised; sentences about results hold.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(path)
    committed = {cell.id: kinds(cell) for cell in code_cells(notebook)}
    run(notebook, list(tried(path, notebook)))
    for cell in code_cells(notebook):
        if cell.id in committed:
            assert kinds(cell) == committed[cell.id], cell.source
        elif "exercise " in cell.source and not cell.source.startswith("try_("):
            assert re.search(r"exercise \d: right", text_of(cell)), cell.source
