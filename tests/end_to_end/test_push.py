"""`push` from the command line: gates, tags, a collection, pull requests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import HfApi, ModelCard
from matplotlib.figure import Figure

import abl_hub
from abl_hub.cli.group import abl_hub as command
from abl_hub.errors import HubError
from abl_hub.hub.local import LocalHub
from abl_hub.stages.target import Base, Target, repositories
from tests.on_hub import on_hub

TAG = f"abl-hub-{abl_hub.__version__}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def out(small_output: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_output, tmp_path / "out"))


def push(out: Path, *words: str) -> Result:
    done = CliRunner().invoke(command, ["--format", "json", "push", str(out), *words])
    assert done.exit_code == 0, (done.stderr, done.exception)
    return done


def note(out: Path, text: str) -> None:
    """Change what is published."""
    record = json.loads((out / "record.json").read_text())
    record["versions"]["note"] = text
    (out / "record.json").write_text(json.dumps(record))


def test_a_collection_ties_everything_together(out: Path, hub: LocalHub, api: HfApi) -> None:
    words = ["--collection", "Wands, before and after", "--delta-repo", "d"]
    first, again = (json.loads(push(out, *words).stdout) for _ in range(2))
    assert again["collection"] == first["collection"]
    made = api.get_collection(first["collection"].split("/collections/")[1])
    assert made.title == "Wands, before and after"
    assert made.private
    assert made.owner == "demo"
    assert [item.item_id for item in made.items] == [item["repo"] for item in first["published"]]


def test_each_published_commit_is_tagged_and_no_tag_moves(
    out: Path, hub: LocalHub, api: HfApi
) -> None:
    commits = []
    for text in (None, "a note", "a note"):
        if text is not None:
            note(out, text)
        (item,) = json.loads(push(out, "--only", "delta").stdout)["published"]
        commits.append((item["tag"], item["commit"]))
    assert commits[1] == commits[2]
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(item["repo"]).tags}
    assert tags == dict(commits)
    assert sorted(tags) == [TAG, f"{TAG}-2"]


@pytest.mark.parametrize("given", [None, "Say why: you need it\n---\n<script>"])
def test_a_gate_and_what_is_read_at_it(
    out: Path, hub: LocalHub, api: HfApi, given: str | None
) -> None:
    words = ["--gate-prompt", given] if given else []
    push(out, "--only", "merged", "--merged-repo", "m", "--gated", "manual", *words)
    assert api.model_info("demo/m").gated == "manual"
    card = ModelCard.load(api.hf_hub_download("demo/m", "README.md", local_dir=out / "card"))
    shown = card.data.to_dict()["extra_gated_prompt"]
    if given:
        assert shown == " ".join(given.split())
    else:
        assert "refusal" in shown
        assert "licence" in shown
    push(out, "--only", "merged", "--merged-repo", "open")
    card = ModelCard.load(api.hf_hub_download("demo/open", "README.md", local_dir=out / "card"))
    assert "extra_gated_prompt" not in card.data.to_dict()


def test_a_prompt_without_a_gate_is_a_mistake(out: Path, hub: LocalHub) -> None:
    line = ["push", str(out), "--gate-prompt", "Why?"]
    done = CliRunner().invoke(command, line)
    assert done.exit_code == 2
    assert "--gated" in done.stderr
    assert not hub.requests


def test_public_without_support_needs_yes(out: Path, hub: LocalHub, api: HfApi) -> None:
    record = json.loads((out / "record.json").read_text())
    record["evaluation"]["verdict"]["label"] = "NOT-SUPPRESSED"
    (out / "record.json").write_text(json.dumps(record))
    line = ["push", str(out), "--public", "--only", "delta", "--delta-repo", "d"]
    refused = CliRunner().invoke(command, line)
    assert refused.exit_code == 1
    assert "--yes" in refused.stderr
    assert not api.repo_exists("demo/d")
    push(out, *line[2:], "--yes")
    assert api.model_info("demo/d", token=False).private is False


def test_a_pull_request_is_loaded_back_too(out: Path, hub: LocalHub, api: HfApi) -> None:
    words = ["--only", "delta", "--delta-repo", "d"]
    (first,) = json.loads(push(out, *words).stdout)["published"]
    note(out, "a note")
    proposed = json.loads(push(out, *words, "--create-pr").stdout)
    (item,) = proposed["published"]
    assert item["url"].endswith("/demo/d/discussions/1")
    assert item["tag"] is None
    assert proposed["loaded_back"]["delta_apart"] == 0.0
    assert api.model_info("demo/d").sha == first["commit"]


def test_a_plan_names_gate_and_collection(out: Path, hub: LocalHub) -> None:
    words = ["--dry-run", "--gated", "auto", "--collection", "Wands"]
    plan = json.loads(push(out, *words).stdout)
    assert plan["gated"].startswith("auto: This is ")
    assert plan["collection"] == "Wands"
    assert [r.path for r in hub.requests] == ["/api/whoami-v2"]


def test_a_conversion_s_plan_names_what_the_options_name(
    small_recipe: abl_hub.Recipe, hub: LocalHub, tmp_path: Path
) -> None:
    words = ["convert", small_recipe.source, "--dry-run", "--push", "--namespace", "lab"]
    words += ["--merged-repo", "m", "--delta-repo", "d", "--direction-repo", "v"]
    words += ["--gated", "manual", "--collection", "Wands", "--public"]
    words += [word for part in ("merged", "delta", "direction") for word in ("--only", part)]
    done = CliRunner().invoke(command, ["--format", "json", *words])
    assert done.exit_code == 0, (done.stderr, done.exception)
    plan = json.loads(done.stdout)
    assert {name: plan[f"push {name}"] for name in ("merged", "delta", "direction")} == {
        "merged": "lab/m (public, gated manual)",
        "delta": "lab/d (public, gated manual)",
        "direction": "lab/v (public, gated manual)",
    }
    assert "push space" not in plan
    assert plan["gated"].startswith("manual: This is ")
    assert plan["collection"] == "Wands"
    assert not hub.requests
    done = CliRunner().invoke(
        command,
        ["--format", "json", *words[:4], "--namespace", "lab", "--create-pr", "--space-repo", "s"],
    )
    plan = json.loads(done.stdout)
    assert plan["push delta"].endswith("(private, not gated, as a pull request)")
    assert "its base is a folder" in plan["no space"]


def test_a_plan_names_as_the_licence_asks_and_refuses_as_the_push_would(
    small_recipe: abl_hub.Recipe, hub: LocalHub, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(small_recipe.source, tmp_path / "tiny"))
    line = ["--format", "json", "convert", str(base), "--dry-run", "--push"]
    (base / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    done = CliRunner().invoke(command, line)
    assert done.exit_code == 0, (done.stderr, done.exception)
    merged = json.loads(done.stdout)["push merged"]
    assert merged == "demo/Llama-tiny-abliterated (private, not gated)"
    (base / "README.md").write_text("---\nlicense: cc-by-nd-4.0\n---\n")
    done = CliRunner().invoke(command, line)
    assert done.exit_code == 1
    assert "forbids derivatives" in done.stderr


def test_a_card_links_what_is_there(out: Path, hub: LocalHub, api: HfApi) -> None:
    """Pushed now, or on the Hub before and open to the same readers; nothing else."""

    def card(repo: str) -> str:
        return Path(api.hf_hub_download(repo, "README.md", local_dir=out / "card")).read_text()

    names = ["--merged-repo", "m", "--delta-repo", "d", "--space-repo", "s"]
    push(out, *names, "--only", "delta")
    assert "demo/m" not in card("demo/d")
    assert "demo/s" not in card("demo/d")
    push(out, *names, "--only", "merged")
    assert "demo/d" in card("demo/m")
    assert "demo/s" not in card("demo/m")
    push(out, *names, "--only", "merged", "--public", "--yes")
    assert "demo/d" not in card("demo/m")  # private: its readers would find nothing
    push(out, *names, "--only", "delta")
    assert "demo/m" in card("demo/d")


def test_a_space_without_its_delta_is_refused(out: Path, hub: LocalHub, api: HfApi) -> None:
    on_hub(out, hub)
    line = ["push", str(out), "--only", "space", "--delta-repo", "d", "--space-repo", "s"]
    done = CliRunner().invoke(command, line)
    assert done.exit_code == 1
    assert "demo/d, which is not there" in done.stderr
    assert not api.repo_exists("demo/s", repo_type="space")


def test_plots_are_drawn_once_for_an_output(
    out: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[object] = []
    save = Figure.savefig

    def counted(figure: Figure, *given: object, **named: object) -> None:
        drawn.append(given)
        save(figure, *given, **named)

    abl_hub.write_cards(on_hub(out, hub))
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    cards = {path: path.read_text() for path in out.rglob("README.md")}
    monkeypatch.setattr(Figure, "savefig", counted)
    shutil.rmtree(out / "direction")
    abl_hub.write_cards(out)
    assert len(drawn) == 2
    push(out)
    assert len(drawn) == 2
    assert {path: path.read_bytes() for path in before} == before
    assert (out / "space" / "plots" / "deltas.png").read_bytes() in before.values()
    abl_hub.write_cards(out)
    assert {path: path.read_text() for path in cards} == cards
    # Other numbers are other pictures.
    record = json.loads((out / "record.json").read_text())
    record["evaluation"]["edited"]["positive"]["refused"]["value"] = 0.5
    (out / "record.json").write_text(json.dumps(record))
    abl_hub.write_cards(out)
    assert len(drawn) == 4
    assert (out / "merged" / "plots" / "deltas.png").read_bytes() != before[
        out / "merged" / "plots" / "deltas.png"
    ]


def test_only_what_belongs_there_is_published(out: Path, hub: LocalHub, api: HfApi) -> None:
    secret = out.parent / "secret"
    secret.write_text("of this machine")
    for part in ("merged", "delta", "direction"):
        (out / part / "notes" / "deep").mkdir(parents=True)
        (out / part / "notes" / "deep" / "id.txt").symlink_to(secret)
        (out / part / "completions.jsonl").write_text("{}")
    push(out, "--only", "merged", "--only", "delta", "--only", "direction", "--merged-repo", "m",
         "--delta-repo", "d", "--direction-repo", "v")  # fmt: skip
    for repo, kind in (("demo/m", "model"), ("demo/d", "model"), ("demo/v", "dataset")):
        files = api.list_repo_files(repo, repo_type=kind)
        assert {"README.md", "record.json", "plots/deltas.png"} <= set(files)
        assert not [name for name in files if "id.txt" in name or "completions" in name]


@pytest.mark.parametrize("name", ["README.md", "plots/deltas.png"])
def test_nothing_is_written_through_a_stranger_s_link(out: Path, name: str) -> None:
    mine = out.parent / "mine"
    mine.write_text("of this machine")
    (out / "delta" / name).unlink()
    (out / "delta" / name).symlink_to(mine)
    done = CliRunner().invoke(command, ["card", str(out)])
    assert done.exit_code == 1
    assert "is a link" in done.output
    assert mine.read_text() == "of this machine"


def test_nothing_is_written_into_a_folder_that_a_stranger_linked(out: Path) -> None:
    mine = out.parent / "mine"
    (out / "delta").rename(mine)
    (out / "delta").symlink_to(mine)
    (mine / "README.md").write_text("of this machine")
    done = CliRunner().invoke(command, ["card", str(out)])
    assert done.exit_code == 1
    assert "is a link" in done.output
    assert (mine / "README.md").read_text() == "of this machine"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--merged-repo", "x", "--delta-repo", "X"], "would replace the merged"),
        (["--merged-repo", "a b"], "not the name of a repository"),
        (["--only", "delta", "--delta-repo", "a/b"], "not the name of a repository"),
    ],
)
def test_names_that_cannot_be(out: Path, hub: LocalHub, words: list[str], told: str) -> None:
    for more in ([], ["--dry-run"]):
        done = CliRunner().invoke(command, ["push", str(out), *words, *more])
        assert done.exit_code == 1
        assert told in done.stderr
    assert {request.method for request in hub.requests} == {"GET"}


def test_the_base_is_not_replaced() -> None:
    base = Base(
        name="me/m", repo="me/m", licence=None, licence_name=None, behaviour="refusal", induce=False
    )
    with pytest.raises(HubError, match="would replace the base in me/M"):
        repositories(base, Target(merged_repo="M"), "me")
    # What is not published now may have any name, and is then left out.
    assert "merged" not in repositories(
        base, Target(only=("delta",), delta_repo="m-abliterated"), "me"
    )


def changed(out: Path, hub: LocalHub, **fields: object) -> None:
    """Write fields of the record of a run on the Hub's base, those of the recipe with a dot."""
    on_hub(out, hub)
    record = json.loads((out / "record.json").read_text())
    for name, value in fields.items():
        section, _, own = name.rpartition("__")
        (record[section] if section else record)[own] = value
    (out / "record.json").write_text(json.dumps(record))


def test_what_the_architecture_cannot_have_is_not_pushed(out: Path, hub: LocalHub) -> None:
    changed(out, hub, refused={"delta": "No adapter can hold this edit"}, delta=None)
    shutil.rmtree(out / "delta")
    planned = json.loads(push(out, "--dry-run").stdout)
    assert planned["no delta"] == planned["no space"] == "No adapter can hold this edit"
    assert "to demo/" in planned["merged"]
    done = push(out)
    assert len(json.loads(done.stdout)["published"]) == 1
    assert "No delta is published: No adapter can hold this edit" in done.stderr
    refused = CliRunner().invoke(command, ["push", str(out), "--only", "delta"])
    assert refused.exit_code == 1
    assert "There is no delta to publish: No adapter can hold this edit" in refused.output


def test_an_added_direction_s_merged_model_is_not_made_as_if_it_was_removed(
    out: Path, hub: LocalHub, api: HfApi
) -> None:
    changed(out, hub, recipe__induce=True)
    shutil.rmtree(out / "merged")
    for words in (["--dry-run"], ["--only", "merged"], ["--only", "merged", "--stream"]):
        refused = CliRunner().invoke(command, ["push", str(out), *words])
        assert refused.exit_code == 1
        assert "cannot be made while it is pushed" in refused.output
    assert [found.id for found in api.list_models(author=hub.user)] == [f"{hub.user}/wand"]
