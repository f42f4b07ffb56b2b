"""What other people's files say is shown as text and never obeyed; their JSON is bounded and has the expected types."""

import json
from dataclasses import dataclass
from typing import Annotated

import pytest
from pydantic import Field

from common.command import command, run
from common.errors import UserError
from common.json_file import MAX_BYTES, checked, read_json
from common.results import new_result, read_result, write_result
from common.text import printable, printable_values

ESCAPES = "\x1b]0;title\x07 \x1b[2J \x9b1A \u202e \ud800 \r \x00"


@dataclass(frozen=True)
class Sizes:
    count: Annotated[int, Field(ge=1)] = 1
    part: "Sizes | None" = None


def raises(error):
    raise error


def test_characters_that_do_not_print_become_escapes():
    assert printable("a naïve → “text” – 日本") == "a naïve → “text” – 日本"
    assert printable("\x1b[2J\n\t") == r"\x1b[2J\n\t"
    assert printable("\x1b[2J\n\t", keep="\n") == "\\x1b[2J\n\\t"
    shown = printable(ESCAPES)
    assert shown == r"\x1b]0;title\x07 \x1b[2J \x9b1A \u202e \ud800 \r \x00"
    assert shown.isprintable()
    assert shown.encode("ascii")
    assert printable_values({"\x07": ["\x1b", 1, None, {"a": True}]}) == {r"\x07": [r"\x1b", 1, None, {"a": True}]}


def test_neither_an_error_nor_a_report_can_write_to_the_terminal(capsys):
    assert run(lambda: raises(UserError(f"got {ESCAPES}\nmore"))) == 2
    assert run(lambda: raises(FileNotFoundError(2, "no file", f"{ESCAPES}.zip"))) == 2
    assert run(lambda: command(Sizes, lambda _: f"a\n{ESCAPES}", None, "read {}")([])) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == 2
    assert (out + err).replace("\n", "").isprintable()
    assert out == "read a\n" + printable(ESCAPES) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 200_000, "nested too deep"),
        ("[" * 500 + "]" * 500, "nested at most 100 deep"),
        ("", "Expecting value"),
        ("\xff", "codec can't decode"),
        ('{"a": ' + "9" * 5000 + "}", "limit"),
        (" " * (MAX_BYTES + 1), "at most 33,554,432 bytes"),
    ],
)
def test_json_that_cannot_be_read_is_damaged(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"a\.json is damaged: .*{message}"):
        read_json(tmp_path / "a.json")


def test_values_of_other_types_are_named_with_their_field():
    assert checked({"count": 2, "part": {}}, Sizes, "a.json") == Sizes(2, Sizes())
    for content, message in (
        ({"count": 0}, "count: input should be greater than or equal to 1, got 0"),
        ({"count": "2"}, "count: input should be a valid integer, got '2'"),
        ({"count": float("inf")}, "count: .*"),
        ({"part": {"count": -1}}, r"part\.count: .* got -1"),
        ([1], r"input should be an object, got \[1\]"),
    ):
        with pytest.raises(UserError, match=rf"^a\.json is damaged: {message}\Z"):
            checked(content, Sizes, "a.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 5}, "rows: .*valid array"),
        ({"rows": [5]}, r"rows\.0: .*object"),
        ({"rows": [{"scores": [1.0, float("nan")]}]}, r"rows\.0\.scores\.1: .*finite"),
        ({"rows": [{"scores": "1"}]}, r"rows\.0\.scores: .*valid array"),
        ({"rows": [{"agent": 5}]}, r"rows\.0\.agent: .*valid string"),
        ({"seeds": 5}, "seeds: .*valid array"),
        ({"protocol": "machado2018"}, "protocol: "),
        ({"seconds": float("inf")}, "seconds: .*finite"),
        ({"command": None}, "command: .*valid string"),
    ],
)
def test_results_of_other_types_are_refused(tmp_path, fields, message):
    result = new_result("a", None, [0])
    write_result(tmp_path / "a.json", result)
    assert read_result(tmp_path / "a.json") == result
    (tmp_path / "a.json").write_text(json.dumps(result | fields))
    with pytest.raises(UserError, match=rf"a\.json is damaged: {message}"):
        read_result(tmp_path / "a.json")
