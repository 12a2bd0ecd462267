"""Every way to name a program, and every way to name one wrongly."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import dspy
import pytest

from ratchet.core.errors import BadRequest, UnknownName
from ratchet.programs.targets import resolve_target, save_program

SIGNATURE = "text -> label: Literal['a', 'b']"
SOURCE = '''
import dspy

class Sorter(dspy.Module):
    """Sorts."""

    def __init__(self):
        super().__init__()
        self.sort = dspy.Predict("text -> label")

    def forward(self, text):
        return self.sort(text=text)

instance = Sorter()

def factory():
    return Sorter()

def needs(what):
    return Sorter()

def raises():
    raise OSError("the model is on holiday")

def wrong():
    return "a program"

number = 7

class Shelf:
    inner = Sorter
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a user; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "sorter_program.py").write_text(SOURCE)
    yield tmp_path
    for name in set(sys.modules) - before:
        if "sorter" in name or "broken" in name:
            del sys.modules[name]


# --- all forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["instance", "Sorter", "factory", "Shelf.inner"])
@pytest.mark.parametrize("where", ["sorter_program", "sorter_program.py", "./sorter_program.py"])
@pytest.mark.usefixtures("folder")
def test_an_attribute_of_a_module_or_a_file_is_a_target(where: str, attribute: str) -> None:
    target = resolve_target(f"{where}:{attribute}")
    assert type(target.module).__name__ == "Sorter"
    assert [name for name, _ in target.module.named_predictors()] == ["sort"]
    assert target.text == f"{where}:{attribute}"
    assert target.description.startswith("class Sorter")


def test_a_file_may_be_anywhere_and_import_its_neighbours(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "sorter_parts.py").write_text("WORD = 'part'\n")
    (folder / "deep" / "sorter_main.py").write_text(
        "import dspy\nfrom sorter_parts import WORD\nprogram = dspy.Predict(f'{WORD} -> label')\n"
    )
    target = resolve_target(f"{folder}/deep/sorter_main.py:program")
    assert list(target.module.signature.input_fields) == ["part"]
    assert target.description == ""


def test_an_inline_signature_is_a_target() -> None:
    target = resolve_target(SIGNATURE)
    assert type(target.module) is dspy.Predict
    assert target.module.signature.output_fields["label"].annotation.__args__ == ("a", "b")
    thinking = resolve_target(SIGNATURE, kind="cot", instructions="Sort by colour.")
    assert isinstance(thinking.module, dspy.ChainOfThought)
    assert thinking.module.predict.signature.instructions == "Sort by colour."


# --- saved programs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["predict", "cot"])
def test_a_saved_program_is_a_target_and_plain_dspy_loads_it(tmp_path: Path, kind: str) -> None:
    target = resolve_target(SIGNATURE, kind=kind, instructions="Sort.")
    better = target.module.deepcopy()
    for predictor in better.predictors():
        predictor.signature = predictor.signature.with_instructions("Sort by colour: grün, 緑.")
        predictor.demos = [dspy.Example(text="moss", label="a")]
    path = tmp_path / "program.json"
    save_program(better, path, target)
    assert [each.name for each in tmp_path.iterdir()] == ["program.json"]

    plain = target.module.deepcopy()
    plain.load(str(path))
    again = resolve_target(str(path))
    for loaded in (plain, again.module):
        (predictor,) = loaded.predictors()
        assert predictor.signature.instructions == "Sort by colour: grün, 緑."
        assert [dict(demo) for demo in predictor.demos] == [{"text": "moss", "label": "a"}]
    assert (again.text, again.kind, again.instructions) == (SIGNATURE, kind, "Sort.")

    save_program(again.module, tmp_path / "twice.json", again)
    assert json.loads((tmp_path / "twice.json").read_text()) == json.loads(path.read_text())


@pytest.mark.usefixtures("folder")
def test_a_saved_program_of_a_users_class_is_built_by_that_class() -> None:
    target = resolve_target("sorter_program.py:factory")
    better = target.module.deepcopy()
    better.sort.signature = better.sort.signature.with_instructions("Better.")
    save_program(better, Path("program.json"), target)
    again = resolve_target("program.json")
    assert type(again.module).__name__ == "Sorter"
    assert again.module.sort.signature.instructions == "Better."
    assert again.description.startswith("class Sorter")
    assert resolve_target("sorter_program.py:instance").module.sort.signature.instructions != "Better."


@pytest.mark.usefixtures("folder")
def test_a_saved_program_is_used_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = resolve_target("sorter_program.py:factory")
    save_program(target.module, Path("program.json"), target)
    saved = Path("program.json").resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert type(resolve_target(str(saved)).module).__name__ == "Sorter"


def test_a_program_without_a_target_is_saved_for_dspy_alone(tmp_path: Path) -> None:
    module = dspy.Predict("a -> b")
    save_program(module, tmp_path / "program.json", None)
    dspy.Predict("a -> b").load(str(tmp_path / "program.json"))
    with pytest.raises(BadRequest, match="not saved by Ratchet"):
        resolve_target(str(tmp_path / "program.json"))


# --- what is not there, and what cannot be used --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not understood"),
        ("sorter_program", "give pkg.module:attribute"),
        ("sorter_program:", "is not understood"),
        (":factory", "is not understood"),
        ("no_such_module:factory", "No module named 'no_such_module'"),
        ("sorter program:factory", "cannot be imported"),
        ("no_such_file.py:factory", "the file no_such_file.py of the target"),
        ("sorter_program.py:factroy", "has no 'factroy'; it has factory"),
        ("sorter_program:Shelf.outer", "has no 'Shelf.outer'"),
        ("no_such.json", "the program file no_such.json is not there"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_target_that_is_not_there_is_named(text: str, said: str) -> None:
    with pytest.raises(UnknownName, match=re.escape(said)):
        resolve_target(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (".relative:factory", "importing .relative for the target raised TypeError"),
        ("sorter_program.py:number", "gives int, not a dspy.Module"),
        ("sorter_program.py:wrong", "gives str, not a dspy.Module"),
        ("sorter_program.py:Shelf", "gives Shelf, not a dspy.Module"),
        ("sorter_program.py:raises", "OSError: the model is on holiday"),
        ("sorter_program.py:needs", "missing 1 required positional argument: 'what'"),
        ("text -> label: Nonsense['a'", "is not understood"),
        ("text -> ", "is not understood"),
        (" -> label", "is not understood"),
        ("-> ->", "is not understood"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_is_no_program_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(said)):
        resolve_target(text)


def test_an_unknown_module_kind_is_named() -> None:
    with pytest.raises(UnknownName, match="choose from predict, cot"):
        resolve_target(SIGNATURE, kind="react")


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("import no_such_package", UnknownName, "No module named 'no_such_package'"),
        ("program = (", BadRequest, "SyntaxError"),
        ("raise RuntimeError('not today')", BadRequest, "RuntimeError: not today"),
        ("import sys; sys.exit(3)", BadRequest, "SystemExit"),
        ("\0", BadRequest, "source code"),
    ],
)
@pytest.mark.parametrize("form", ["broken_program.py", "broken_program"])
def test_a_file_that_cannot_be_imported_says_why(
    folder: Path, source: str, error: type[Exception], said: str, form: str
) -> None:
    (folder / "broken_program.py").write_text(source)
    with pytest.raises(error, match=re.escape(said)):
        resolve_target(f"{form}:program")
    (folder / "broken_program.py").write_text("import dspy\nprogram = dspy.Predict('a -> b') # mended")
    if form.endswith(".py"):
        assert resolve_target(f"{form}:program")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "not saved by Ratchet"),
        (b"7", "not saved by Ratchet"),
        (b"{}", "not saved by Ratchet"),
        (b'{"ratchet": 7}', "not saved by Ratchet"),
        (b'{"ratchet": {"target": "a -> b"}}', "not saved by Ratchet"),
        (b'{"ratchet": {"target": 7, "kind": "predict", "instructions": null}}', "not saved by Ratchet"),
        (b'{"ratchet": {"target": "a -> b", "kind": "predict", "instructions": null}}', "does not fit"),
        (
            b'{"ratchet": {"target": "a -> b", "kind": "predict", "instructions": null}, "signature": 3, "lm": null}',
            "does not fit",
        ),
    ],
)
def test_a_program_file_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "program.json"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=said) as caught:
        resolve_target(str(path))
    assert str(path) in str(caught.value)


def test_a_program_file_whose_target_has_changed_says_so(folder: Path) -> None:
    save_program(dspy.Predict("a -> b"), folder / "program.json", resolve_target("sorter_program.py:factory"))
    with pytest.raises(BadRequest, match="does not fit"):
        resolve_target(str(folder / "program.json"))


def test_a_program_file_cannot_name_itself(folder: Path) -> None:
    (folder / "program.json").write_text(
        dedent('{"ratchet": {"target": "program.json", "kind": "predict", "instructions": null}}')
    )
    with pytest.raises(BadRequest, match="not saved by Ratchet"):
        resolve_target("program.json")
