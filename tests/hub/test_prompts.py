"""Prompt sets from files and from the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from huggingface_hub import HfApi
from pyarrow import parquet

from abl_hub.errors import ContrastError, SourceError
from abl_hub.hub.local import LocalHub
from abl_hub.hub.prompt_spec import is_local, local_files, with_absolute_files
from abl_hub.hub.prompts import PromptSet, load_prompts
from tests.hub.tiny_repos import put

PROMPTS = ["How tall is a giraffe?", "  What do owls eat? ", "How tall is a giraffe?"]
CLEAN = ("How tall is a giraffe?", "What do owls eat?")


def table_bytes(**columns: list[object]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def contents() -> dict[str, bytes]:
    rows = [{"id": i, "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
    return {
        "p.txt": "\n".join(PROMPTS).encode() + b"\n",
        "p.jsonl": "\n".join(json.dumps(row) for row in rows).encode(),
        "strings.jsonl": "\n".join(json.dumps(prompt) for prompt in PROMPTS).encode(),
        "p.json": json.dumps(rows).encode(),
        "columns.json": json.dumps({"prompt": PROMPTS}).encode(),
        "p.csv": ("id,prompt\n" + "".join(f'{i},"{p}"\n' for i, p in enumerate(PROMPTS))).encode(),
        "p.parquet": table_bytes(id=[0, 1, 2], prompt=list(PROMPTS)),
    }


@pytest.mark.parametrize("name", contents())
def test_every_format_gives_the_same_prompts(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(contents()[name])
    loaded = load_prompts(str(tmp_path / name))
    assert loaded.prompts == CLEAN
    assert loaded.duplicates == 1
    assert (loaded.name, loaded.revision, loaded.split) == (name, None, None)
    assert loaded.categories is None
    (tmp_path / "other.txt").write_text("\n".join(CLEAN))
    assert loaded.digest == load_prompts(str(tmp_path / "other.txt")).digest


def test_a_column_is_chosen_or_asked_for(tmp_path: Path):
    file = tmp_path / "p.csv"
    file.write_text("question,goal,category\nq1,g1,a\nq2,g1,b\nq1,g3,c\n")
    assert load_prompts(str(file)).column == "goal"
    loaded = load_prompts(f"{file}#question")
    assert (loaded.prompts, loaded.categories) == (("q1", "q2"), ("a", "b"))
    with pytest.raises(ContrastError, match=r"no column x.*question, goal, category"):
        load_prompts(f"{file}#x")
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ContrastError, match=r"which column.*a, b.*p.csv#COLUMN"):
        load_prompts(str(file))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.txt", b"one\n\ntwo\n", "row 2 is empty"),
        ("p.txt", b"", "has no prompts"),
        ("p.jsonl", b'{"text": "a"}\n{"text": "  "}', "row 2 is empty"),
        ("p.jsonl", b'{"text": "a"}\n{"other": "b"}', "row 2 is empty.*COLUMN"),
        ("p.json", b'{"text": [1]}', "row 1 is int"),
        ("p.json", b"[", "cannot be read"),
        ("p.txt", b"\xff\xfe\x00", "not text in UTF-8.*Save it again"),
        ("p.JSONL", b'{"text": "caf\xe9"}', "not text in UTF-8"),
        ("p.jsonl", b'{"text": "a"}\nnonsense\n', "line 2 is not JSON"),
        ("p.parquet", b"PAR1 not really", "cannot be read"),
        ("p.parquet", b"PAR1" + bytes(50) + b"\x40\0\0\0PAR1", "cannot be read"),
        ("p.json", b"[" * 100_000, "cannot be read"),
        ("p.json", b'["\\ud800"]', "row 1 is not text"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, name: str, content: bytes, told: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ContrastError, match=told):
        load_prompts(str(tmp_path / name))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path, mark: str):
    odd = ("one\u2028two", "three\x0cfour", "five\x85six")
    for name, lines in (
        ("p.txt", odd),
        ("p.jsonl", [json.dumps({"text": line}, ensure_ascii=False) for line in odd]),
    ):
        for end in ("\n", "\r\n"):
            text = mark + end.join(lines) + end
            (tmp_path / name).write_bytes(text.encode())
            assert load_prompts(str(tmp_path / name)).prompts == odd


@pytest.mark.parametrize("name", ["my + prompts.jsonl", "c#/p.jsonl", "a?b=c + d#e.jsonl"])
def test_a_file_that_exists_wins(tmp_path: Path, name: str):
    file, other = tmp_path / name, tmp_path / "other.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"a": "x", "b": "y"}\n')
    other.write_text("z")
    assert load_prompts(f"{file}#b").prompts == ("y",)
    assert load_prompts(f"{other} + {file}#a").prompts == ("z", "x")
    assert load_prompts(f"{file}#a + {other}").prompts == ("x", "z")


def test_a_text_in_place_of_a_file(tmp_path: Path):
    for spec in ("Why? " * 100, "x" * 300 + ".txt", "nul\0.txt"):
        with pytest.raises(SourceError, match="no file"):
            load_prompts(spec)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([f"kind {n}" for n in range(60)], "60 different values"),
        (["a sentence that says more than the name of a category would say"] * 60, "sentences"),
        (["How tall?", "other"] * 30, "prompts"),
    ],
)
def test_prompts_do_not_pass_for_categories(tmp_path: Path, labels: list[str], told: str):
    file = tmp_path / "p.json"
    prompts = ["How tall?", *(f"Question {n}" for n in range(59))]
    file.write_text(json.dumps({"text": prompts, "category": labels}))
    loaded = load_prompts(str(file))
    assert (loaded.categories, loaded.ignored) == (None, told)
    assert load_prompts(f"{file}#category").categories is None


def from_hub(hub: LocalHub, tmp_path: Path, spec: str) -> PromptSet:
    return load_prompts(spec, token=hub.token, endpoint=hub.endpoint, cache_dir=tmp_path / "cache")


def test_a_hub_data_set_is_pinned_to_its_commit(hub: LocalHub, api: HfApi, tmp_path: Path):
    files = {
        "data/train-00000-of-00001.parquet": table_bytes(text=list(PROMPTS)),
        "data/test-00000-of-00001.parquet": table_bytes(text=["Why is the sky blue?"]),
        "load.py": b"raise SystemExit('a script was run')",
    }
    commit = put(api, "demo/prompts", files, kind="dataset")
    loaded = from_hub(hub, tmp_path, "demo/prompts")
    assert (loaded.name, loaded.revision) == ("demo/prompts", commit)
    assert (loaded.split, loaded.column) == ("train", "text")
    assert (loaded.prompts, loaded.duplicates) == (CLEAN, 1)
    put(api, "demo/prompts", {"data/train-00000-of-00001.parquet": table_bytes(text=["New?"])},
        kind="dataset")  # fmt: skip
    assert from_hub(hub, tmp_path, "demo/prompts").prompts == ("New?",)
    pinned = from_hub(hub, tmp_path, f"demo/prompts@{commit}:test#text")
    assert (pinned.prompts, pinned.revision) == (("Why is the sky blue?",), commit)
    with pytest.raises(SourceError, match=r"no split dev.*train, test"):
        from_hub(hub, tmp_path, "demo/prompts:dev")
    with pytest.raises(ContrastError, match="no column prompt"):
        from_hub(hub, tmp_path, "demo/prompts#prompt")


def test_configurations(hub: LocalHub, api: HfApi, tmp_path: Path):
    card = b"""---
configs:
- config_name: one
  data_files: one.jsonl
- config_name: two
  data_files: two.jsonl
---
"""
    files = {"README.md": card, "one.jsonl": b'{"text": "1"}', "two.jsonl": b'{"text": "2"}'}
    put(api, "demo/prompts", files, kind="dataset")
    assert from_hub(hub, tmp_path, "demo/prompts:two/train").prompts == ("2",)
    with pytest.raises(SourceError, match=r"cannot be read.*[Cc]onfig"):
        from_hub(hub, tmp_path, "demo/prompts")


@pytest.mark.parametrize("spec", ["none.txt", "demo/none.csv", "/none/p.jsonl", "word", "a b/c"])
def test_no_such_file(spec: str):
    with pytest.raises(SourceError, match="no file"):
        load_prompts(spec)


def test_no_such_data_set(hub: LocalHub, api: HfApi, tmp_path: Path):
    with pytest.raises(SourceError, match="dataset demo/none was not found"):
        from_hub(hub, tmp_path, "demo/none")
    put(api, "demo/prompts", {"a.txt": b"a"}, kind="dataset")
    with pytest.raises(SourceError, match="no revision 'v2'"):
        from_hub(hub, tmp_path, "demo/prompts@v2")


def test_a_prompt_set_does_not_print_its_prompts(tmp_path: Path):
    (tmp_path / "p.txt").write_text("do not print me")
    assert "print me" not in repr(load_prompts(str(tmp_path / "p.txt")))


def test_rows_with_a_value_and_conversations_of_one_turn(hub: LocalHub, api: HfApi, tmp_path: Path):
    rows = table_bytes(
        prompt=["a", "b", "c"], label=["safe", "unsafe", "safe"], turns=[["x"], ["y"], ["z"]]
    )
    commit = put(api, "demo/labelled", {"data/test-00000-of-00001.parquet": rows}, kind="dataset")
    found = from_hub(hub, tmp_path, "demo/labelled:test#prompt?label=safe")
    assert found.prompts == ("a", "c")
    assert found.spec == f"demo/labelled@{commit}:test#prompt?label=safe"
    assert from_hub(hub, tmp_path, found.spec).digest == found.digest
    assert from_hub(hub, tmp_path, "demo/labelled:test#turns").prompts == ("x", "y", "z")
    with pytest.raises(ContrastError, match="no column kind"):
        from_hub(hub, tmp_path, "demo/labelled:test#prompt?kind=safe")
    with pytest.raises(ContrastError, match="no prompts with label=none"):
        from_hub(hub, tmp_path, "demo/labelled:test#prompt?label=none")


def test_sets_put_together_keep_their_order_and_their_commits(
    hub: LocalHub, api: HfApi, tmp_path: Path
):
    commits = []
    for name, prompts in (("one", ["a", "b"]), ("two", ["b", "c"])):
        file = {"data/train-00000-of-00001.parquet": table_bytes(prompt=prompts)}
        commits.append(put(api, f"demo/{name}", file, kind="dataset"))
    both = from_hub(hub, tmp_path, "demo/one:train#prompt + demo/two:train#prompt")
    assert both.prompts == ("a", "b", "c")
    assert both.duplicates == 1
    assert both.spec == (f"demo/one@{commits[0]}:train#prompt + demo/two@{commits[1]}:train#prompt")
    put(api, "demo/two", {"data/train-00000-of-00001.parquet": table_bytes(prompt=["d"])},
        kind="dataset")  # fmt: skip
    assert from_hub(hub, tmp_path, both.spec).digest == both.digest


def test_a_configuration_stays_in_what_is_pinned(hub: LocalHub, api: HfApi, tmp_path: Path):
    both = "".join(
        f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("one", "two")
    )
    card = f"---\nconfigs:\n{both}---\n".encode()
    files = {"README.md": card, "one.jsonl": b'{"text": "1"}', "two.jsonl": b'{"text": "2"}'}
    put(api, "demo/two-configs", files, kind="dataset")
    found = from_hub(hub, tmp_path, "demo/two-configs:two/train")
    assert found.spec is not None
    assert from_hub(hub, tmp_path, found.spec).prompts == ("2",)


def test_a_row_without_a_category_is_in_none(tmp_path: Path):
    rows = [
        {"prompt": "q1", "category": "a"},
        {"prompt": "q2", "category": None},
        {"prompt": "q3", "category": " "},
        {"prompt": "q4"},
        {"prompt": "q5", "category": 7},
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    loaded = load_prompts(str(file))
    assert loaded.categories == ("a", None, None, None, "7")
    assert loaded.category_of == {"q1": "a", "q5": "7"}
    assert load_prompts(f"{file} + {file}").category_of == loaded.category_of


@pytest.mark.parametrize(
    "files",
    [
        "{secret}",
        "../../../../../../../../../../../../../../../../{secret}",
        "data/../../../../../x.txt",
        "file://{secret}",
        "http://127.0.0.1:9/x.txt",
        "[ok.txt, {secret}]",
        "[{{split: train, path: [ok.txt, {secret}]}}]",
        "ok.txt\n  data_dir: /etc",
    ],
)
def test_a_card_names_no_data_outside(hub: LocalHub, api: HfApi, tmp_path: Path, files: str):
    secret = tmp_path / "secret.txt"
    secret.write_text("of this machine\n")
    config = f"- config_name: default\n  data_files: {files.format(secret=secret)}\n"
    card = f"---\nconfigs:\n{config}---\n".encode()
    put(api, "demo/outside", {"README.md": card, "ok.txt": b"ok\n"}, kind="dataset")
    with pytest.raises(SourceError, match="outside of its repository"):
        from_hub(hub, tmp_path, "demo/outside")


@pytest.mark.parametrize(
    "files",
    [
        {"README.md": b"---\ndataset_info: [1, 2]\n---\n", "train.txt": b"a\n"},
        {"README.md": b"---\nconfigs: 3\n---\n", "train.txt": b"a\n"},
        {"README.md": b"---\n1: 2\n---\n", "train.txt": b"a\n"},
        {"train.parquet": b"PAR1" + bytes(50) + b"\x40\0\0\0PAR1"},
        {"train.jsonl": b'{"a": \n'},
    ],
)
def test_a_data_set_that_cannot_be_read(
    hub: LocalHub, api: HfApi, tmp_path: Path, files: dict[str, bytes]
):
    put(api, "demo/unreadable", files, kind="dataset")
    with pytest.raises(SourceError, match="cannot be read"):
        from_hub(hub, tmp_path, "demo/unreadable")


def test_values_and_revisions_end_where_they_do(hub: LocalHub, api: HfApi, tmp_path: Path):
    rows = table_bytes(prompt=["a", "b"], label=["x + y", "z"])
    commit = put(api, "demo/sums", {"data/train-00000-of-00001.parquet": rows}, kind="dataset")
    for spec in ("demo/sums?label=x + y", "demo/sums@main?label=x + y"):
        found = from_hub(hub, tmp_path, spec)
        assert found.prompts == ("a",)
        assert found.revision == commit
        assert from_hub(hub, tmp_path, found.spec or "").digest == found.digest
    both = from_hub(hub, tmp_path, "demo/sums?label=x + y + demo/sums?label=z")
    assert both.prompts == ("a", "b")


def test_training_validation_and_test_prompts_are_given_apart(tmp_path: Path):
    for name, lines in {
        "train.txt": ["a", "b", "C ", "d"],
        "more.txt": ["e"],
        "val.txt": ["c", "f"],
        "test.txt": ["F", "g"],
    }.items():
        (tmp_path / name).write_text("\n".join(lines))
    spec = " | ".join(
        [
            f"{tmp_path}/train.txt + {tmp_path}/more.txt",
            f"{tmp_path}/val.txt",
            f"{tmp_path}/test.txt",
        ]
    )
    found = load_prompts(spec)
    assert found.prompts == ("a", "b", "d", "e", "c", "F", "g")
    assert found.duplicates == 2
    assert [found.part_of[p] for p in found.prompts] == ["train"] * 4 + ["validation"] + [
        "test"
    ] * 2
    assert is_local(spec)
    assert with_absolute_files(spec) == spec
    with pytest.raises(SourceError, match=r"no file .*gone\.txt"):
        load_prompts(spec.replace("val.txt", "gone.txt"))
    # Two are no splits, and a set with splits of its own is no part of another.
    with pytest.raises(SourceError, match="no file"):
        load_prompts(f"{tmp_path}/train.txt | {tmp_path}/val.txt")
    with pytest.raises(ContrastError, match="brings its own splits"):
        load_prompts(f"paper-harmful + {spec}")
    assert load_prompts(f"{tmp_path}/train.txt").part_of == {}


@pytest.mark.parametrize("between", [" + ", " | "])
def test_names_of_sets_among_others_are_no_files(between: str, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("a")
    spec = between.join(["harmbench", f"{tmp_path}/mine.txt", "paper-harmless"])
    assert local_files(spec) == (tmp_path / "mine.txt",)
    assert not is_local(spec)
    assert with_absolute_files(spec) == spec


def test_a_value_may_hold_what_sets_splits_apart(hub: LocalHub, api: HfApi, tmp_path: Path):
    rows = table_bytes(prompt=["a", "b"], label=["x | y | z", "w"])
    put(api, "demo/apart", {"data/train-00000-of-00001.parquet": rows}, kind="dataset")
    assert from_hub(hub, tmp_path, "demo/apart:train#prompt?label=x | y | z").prompts == ("a",)
