"""`hf-farms push` and `prune --push` against a Hub on this machine."""

import json
import shutil

import pytest
import torch
from hub_client import HubClient, contents
from local_hub import LocalHub
from models import tiny
from transformers import TrainingArguments

from hf_farms.demo import demo_model

PRUNE = ("prune", "demo", "--method", "magnitude", "--evaluation", "none", "-q", "-o")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    with LocalHub() as hub, HubClient(hub, folder) as client:
        client.folder = folder
        done = client.cli(*PRUNE, "pruned")
        assert done["status"] == 0, done
        yield client


@pytest.fixture
def hub(client):
    hub = client.hub
    for state in (hub.repos, hub.blobs, hub.roles, hub.faults, hub.requests, hub.uploads):
        state.clear()
    return hub


@pytest.fixture
def pruned(client, tmp_path):
    """A copy of the pruned model, to be changed."""
    shutil.copytree(client.folder / "pruned", tmp_path / "pruned")
    return tmp_path / "pruned"


def edit_report(folder, **changes):
    path = folder / "hf_farms_report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(done, status=1):
    assert done["status"] == status, done
    assert done["stdout"] == "", done
    assert "Traceback" not in done["stderr"], done
    return " ".join(done["stderr"].split())


def made(hub):
    """Requests that changed something."""
    return [request for request in hub.requests if not request.startswith(("GET", "HEAD"))]


def test_push_in_all_formats(client, hub):
    done = client.cli("push", "pruned", "--format", "human")
    assert done["status"] == 0, done
    assert done["stdout"].splitlines()[1:] == [f"  url: {hub.endpoint}/ada/pruned"]
    assert "✓" in done["stdout"]
    assert hub.files("ada/pruned") == contents(client.folder / "pruned")
    assert client.cli("push", "pruned", "-q")["stdout"] == f"{hub.endpoint}/ada/pruned\n"
    assert json.loads(client.cli("push", "pruned", "--json")["stdout"]) == {"url": f"{hub.endpoint}/ada/pruned"}
    assert len(hub.uploads) == len(set(hub.uploads))


def test_the_card_names_the_repository(client, hub, pruned):
    before = contents(pruned)
    assert b'name = "ada/other"' not in before["README.md"]
    assert client.cli("push", pruned, "--repo-id", "ada/other", "--dry-run")["status"] == 0
    assert contents(pruned) == before
    assert client.cli("push", pruned, "--repo-id", "ada/other", "-q")["status"] == 0
    assert b'name = "ada/other"' in hub.files("ada/other")["README.md"]
    (pruned / "README.md").write_text("# By hand")
    assert client.cli("push", pruned, "-q")["status"] == 0
    assert hub.files("ada/pruned")["README.md"] == b"# By hand"


def test_dry_run_shows_repository_files_sizes_and_sparsity(client, hub):
    done = client.cli("push", "pruned", "--dry-run", "--private")
    assert done["status"] == 0, done
    lines = done["stdout"].splitlines()
    assert all(line.startswith("[dry-run] ") for line in lines)
    assert lines[0] == "[dry-run] repository: ada/pruned (new, private, branch main)"
    assert lines[1].startswith("[dry-run] sparsity: 50.00% of the pruned layers, ")
    names = {line.removeprefix("[dry-run] file: ").split(" (")[0] for line in lines if "file: " in line}
    assert names == set(contents(client.folder / "pruned"))
    assert lines[-1].startswith(f"[dry-run] total: {len(names)} files, ")
    shown = json.loads(client.cli("push", "pruned", "--dry-run", "--private", "--json")["stdout"])
    assert shown["dry_run"] is True
    plan = shown["plan"]
    assert {"repo_id": "ada/pruned", "exists": False, "private": True, "branch": "main", "sparsity": 0.5}.items() <= (
        plan.items()
    )
    assert {file["name"]: file["size_bytes"] for file in plan["files"]} == {
        name: (client.folder / "pruned" / name).stat().st_size for name in names
    }
    quiet = client.cli("push", "pruned", "--dry-run", "-q")["stdout"].splitlines()
    assert quiet[0] == "ada/pruned"
    assert set(quiet[1:]) == names
    assert not made(hub)
    assert not hub.repos


def test_dry_run_of_prune_with_push_makes_nothing(client, hub):
    done = client.cli("prune", "demo", "--push", "--dry-run", "-o", "planned")
    assert "[dry-run] push: ada/planned (new, visibility as the namespace has it, branch main)" in done["stdout"]
    assert not made(hub)
    assert not hub.repos
    assert not list(client.folder.glob("planned*"))
    hub.add("ada/planned", {"config.json": b"{}"})
    done = client.cli("prune", "demo", "--push", "--dry-run", "-o", "planned")
    assert "with other files (config.json)" in refused(done)


def test_a_pull_request_is_continued_and_not_opened_twice(client, hub):
    hub.add("bob/model", {"README.md": b"# Theirs", "model.safetensors": b"old", "config.json": b"{}"})
    # The answer is lost: the request is there all the same.
    hub.fault("POST /api/models/bob/model/discussions", drop="answer")
    hub.fault("POST /api/models/bob/model/commit", status=400)
    command = ("push", "pruned", "--repo-id", "bob/model", "--create-pr", "-q")
    assert "status 400" in refused(client.cli(*command))
    done = client.cli(*command)
    assert done["stdout"].strip() == f"{hub.endpoint}/bob/model/discussions/1"
    assert [request.title for request in hub.repos["bob/model"].pull_requests] == ["Upload pruned"]
    # One model.safetensors would be loaded instead of our shards.
    assert hub.files("bob/model", "refs/pr/1") == contents(client.folder / "pruned")
    assert hub.files("bob/model")["README.md"] == b"# Theirs"
    hub.repos["bob/model"].files = dict(hub.files("bob/model", "refs/pr/1"))
    hub.repos["bob/model"].pull_requests[0].status = "merged"
    done = client.cli(*command)
    assert "holds all of 'pruned' already: no pull request was opened" in done["stderr"]
    assert len(hub.repos["bob/model"].pull_requests) == 1
    hub.repos["bob/model"].files["config.json"] = b"{}"
    assert client.cli(*command)["stdout"].strip().endswith("/discussions/2")


def test_a_branch_is_made_and_main_stays(client, hub):
    hub.add("ada/model", {"README.md": b"# Here"})
    done = client.cli(
        "push", "pruned", "--repo-id", "model", "--push-revision", "half", "-q", "--commit-message", "Half"
    )
    assert done["stdout"].strip() == f"{hub.endpoint}/ada/model/tree/half"
    assert hub.files("ada/model", "half") == contents(client.folder / "pruned")
    assert hub.files("ada/model") == {"README.md": b"# Here"}


def test_weights_of_an_earlier_model_are_removed(client, hub):
    old = {"hf_farms_report.json": b"{}", "model.safetensors": b"old", "model-00001-of-00002.safetensors": b"old"}
    hub.add("ada/pruned", old | {"notes.txt": b"kept"})
    done = client.cli("push", "pruned", "--dry-run")
    assert "[dry-run] removed: model-00001-of-00002.safetensors, weights of an earlier model" in done["stdout"]
    assert client.cli("push", "pruned", "-q")["status"] == 0
    assert hub.files("ada/pruned") == contents(client.folder / "pruned") | {"notes.txt": b"kept"}


def test_files_of_somebody_else_need_yes(client, hub):
    hub.add("ada/pruned", {"config.json": b"{}", "notes.txt": b"mine"})
    said = refused(client.cli("push", "pruned"))
    assert "repository must be new or one that hf-farms wrote, got 'ada/pruned' with other files" in said
    assert "--yes" in said
    assert not made(hub)
    assert client.cli("push", "pruned", "--yes", "-q")["status"] == 0
    assert hub.files("ada/pruned")["notes.txt"] == b"mine"


def test_the_dense_models_own_repository_is_never_written_to(client, hub, pruned):
    edit_report(pruned, base={"repo_id": "ada/dense"}, model="ada/dense")
    for more in ([], ["--yes"], ["--create-pr"]):
        said = refused(client.cli("push", str(pruned), "--repo-id", "Ada/Dense", *more))
        assert "--repo-id must not be the dense model's own repository, got 'Ada/Dense'" in said
    assert not made(hub)


def test_derivatives_of_gated_models_are_private_unless_told_otherwise(client, hub, pruned):
    edit_report(pruned, base={"repo_id": "meta/gated", "gated": True}, model="meta/gated")
    assert client.cli("push", str(pruned), "-q")["status"] == 0
    assert hub.repos["ada/pruned"].private
    hub.add("ada/open", {})
    said = refused(client.cli("push", str(pruned), "--repo-id", "open"))
    assert "repository must be private, as the dense model is gated, got 'ada/open', which is public" in said
    assert client.cli("push", str(pruned), "--repo-id", "open", "--no-private", "-q")["status"] == 0


def test_the_name_follows_the_license(client, hub, pruned):
    edit_report(pruned, base={"repo_id": "meta/x", "license": "llama3.1"}, model="meta/x")
    assert client.cli("push", str(pruned), "-q")["stdout"].strip() == f"{hub.endpoint}/ada/Llama-pruned"
    done = client.cli("push", str(pruned), "--repo-id", "mine", "-q")
    assert done["status"] == 0
    assert "the license of 'meta/x' requires another name than 'mine', such as 'Llama-mine'." in done["stderr"]


def test_the_license_of_a_local_folder_goes_with_what_was_made_from_it(client, hub, tmp_path):
    dense = tmp_path / "my dense"
    shutil.copytree(demo_model(), dense)
    (dense / "README.md").write_text("---\nlicense: llama3.1\nlanguage: en\n---\n")
    (dense / "LICENSE").write_text("terms")
    command = ("prune", str(dense), "--method", "magnitude", "--evaluation", "none", "-q", "-o")
    assert client.cli(*command, str(tmp_path / "sparse"))["status"] == 0
    done = client.cli("push", str(tmp_path / "sparse"), "-q")
    assert done["stdout"].strip() == f"{hub.endpoint}/ada/Llama-sparse", done
    sent = hub.files("ada/Llama-sparse")
    assert sent["LICENSE"] == b"terms"
    assert sent["NOTICE"].startswith(b"Llama 3.1 is licensed")
    card = sent["README.md"].decode()
    assert "license: llama3.1\n" in card
    assert "base_model" not in card.split("---")[1]
    assert "**Built with Llama**" in card
    assert "The license of `my dense` also applies to this model: [Llama 3.1 Community License]" in card
    # Nobody else is told the folder's name.
    assert not any("dense" in request for request in hub.requests)


def test_folders_that_cannot_be_pushed(client, hub, pruned):
    edit_report(pruned, schema_version=99)
    assert "Upgrade hf-farms: pip install -U hf-farms." in refused(client.cli("push", str(pruned)))
    (pruned / "hf_farms_report.json").unlink()
    said = refused(client.cli("push", str(pruned)))
    assert "folder must hold hf_farms_report.json to be pushed under its own name" in said
    assert f"hf-farms push {pruned} --repo-id NAME" in said
    (shard,) = pruned.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-8])
    said = refused(client.cli("push", str(pruned), "--repo-id", "m"))
    assert f"folder must hold all its weights, got '{shard.name}' missing or damaged" in said
    shard.unlink()
    assert "folder must hold config.json and *.safetensors" in refused(
        client.cli("push", str(pruned), "--repo-id", "m")
    )
    assert "folder must be an existing one, got 'nowhere'" in refused(client.cli("push", "nowhere"))
    assert "folder must be an existing one, got 'nnn" in refused(client.cli("push", "n" * 300))
    (client.folder / "empty").mkdir(exist_ok=True)
    assert "folder must hold config.json and *.safetensors, got 'empty'" in refused(client.cli("push", "empty"))
    (client.folder / "begun.partial").mkdir(exist_ok=True)
    assert "Run the same `hf-farms prune` again to resume it." in refused(client.cli("push", "begun"))
    assert not hub.requests, hub.requests


def test_any_saved_model_is_pushed_where_it_is_told_to(client, hub, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "saved")
    assert client.cli("push", str(tmp_path / "saved"), "--repo-id", "plain", "-q")["status"] == 0
    assert hub.files("ada/plain") == contents(tmp_path / "saved")


def test_secrets_and_the_state_of_a_training_stay_on_this_machine(client, hub, tmp_path):
    folder, token = tmp_path / "trained", b"hf_good"
    arguments = TrainingArguments(output_dir=folder, hub_token=token.decode(), use_cpu=True, report_to="none")
    tiny("llama").save_pretrained(folder)
    kept = set(contents(folder)) | {"trainer_state.json"}
    state = {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", ".env"}
    # Events of TensorBoard hold all arguments, with their paths.
    state |= {"runs/nov/events.out.tfevents", "checkpoint-notes.md"}
    state |= {f"checkpoint-5/{name}" for name in state} | {"checkpoint-5/model.safetensors", "sub/.env.local"}
    for name in state | kept - set(contents(folder)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"TOKEN=" + token if name in state else b"{}")
    for name in ("training_args.bin", "checkpoint-5/training_args.bin"):
        torch.save(arguments, folder / name)
        assert token in (folder / name).read_bytes()
    command = ("push", str(folder), "--repo-id", "trained")
    lines = client.cli(*command, "--dry-run")["stdout"].splitlines()
    assert {line.removeprefix("[dry-run] file: ").split(" (")[0] for line in lines if "file: " in line} == kept
    assert client.cli(*command, "-q")["status"] == 0
    assert set(hub.files("ada/trained")) == kept
    assert not any(token in data for data in (*hub.files("ada/trained").values(), *hub.blobs.values()))


def test_a_card_that_the_hub_refuses_is_named(client, hub, pruned):
    (pruned / "README.md").write_text("---\nlicense: [\n---\n")
    said = refused(client.cli("push", str(pruned)))
    assert "README.md must be a card that the Hub accepts, got one with: Invalid YAML" in said
    (pruned / "README.md").write_text("# No header\n")
    assert client.cli("push", str(pruned), "-q")["status"] == 0


def test_a_failed_upload_after_a_prune_is_finished_by_the_command_that_is_shown(client, hub):
    hub.fault("PUT /upload", status=403)
    said = refused(client.cli(*PRUNE, "work/other name", "--push", "--repo-id", "mine", "--private"))
    again = "hf-farms push 'work/other name' --repo-id ada/mine --private"
    assert f"The pruned model is complete in work/other name. Run: {again}" in said
    assert hub.files("ada/mine") == {}
    done = client.cli("push", "work/other name", "--repo-id", "ada/mine", "--private", "-q")
    assert done["stdout"].strip() == f"{hub.endpoint}/ada/mine"
    assert hub.files("ada/mine") == contents(client.folder / "work" / "other name")
    assert hub.repos["ada/mine"].private


def test_a_gated_model_without_access_names_the_page(client, hub):
    hub.add("meta/gated", {"config.json": b"{}"}, gated=True)
    said = refused(client.cli("prune", "meta/gated", "--push"))
    assert "'meta/gated' is gated, and access was not granted to this token." in said
    assert f"{hub.endpoint}/meta/gated" in said
    assert not made(hub)


def test_texts_are_looked_for_before_the_repository_is_made(client, hub):
    for option in ("--calibration", "--evaluation"):
        said = refused(client.cli("prune", "demo", "--push", option, "ada/no-such-texts", "-o", "texts"))
        assert f"{option[2:]} text must be a file or a dataset on the Hub, got 'ada/no-such-texts'" in said
    assert not made(hub)


def test_a_disk_that_is_too_small_is_named_before_anything_is_made(client, hub):
    hub.add("meta/huge", {"config.json": b"{}"})
    hub.sizes["meta/huge"] = {"model.safetensors": 10**17}
    said = refused(client.cli("prune", "meta/huge", "--push"))
    assert "output must fit on the disk, got " in said
    assert not made(hub)


def test_the_earlier_name_of_the_branch_still_works_with_a_warning(client, hub):
    done = client.cli("push", "pruned", "--revision", "half", "-q")
    assert done["status"] == 0, done
    assert done["stdout"].strip() == f"{hub.endpoint}/ada/pruned/tree/half"
    assert "--revision of push is deprecated, use --push-revision" in " ".join(done["stderr"].split())
    assert "--revision " not in client.cli("push", "--help")["stdout"].replace("--push-revision ", "")
    said = refused(client.cli("push", "pruned", "--revision", "a", "--push-revision", "b"), status=2)
    assert "push_revision must be given once" in said or "--push-revision must be given once" in said
    said = refused(client.cli("push", "pruned", "--push-revision", "b", "--create-pr"), status=2)
    assert "must be left out with --create-pr, got 'b'" in said


def test_each_check_of_a_push_runs_once(client, hub):
    assert client.cli("push", "pruned", "-q")["status"] == 0
    for request in ("GET /api/whoami-v2", "GET /api/models/ada/pruned", "POST /api/repos/create"):
        assert hub.requests.count(request) == 1, hub.requests
    hub.requests.clear()
    assert client.cli("push", "pruned", "-q")["status"] == 0
    asked = ("GET /api/whoami-v2", "GET /api/models/ada/pruned", "GET /api/models/ada/pruned/tree/main")
    for request in (*asked, "GET /api/models/ada/pruned/auth-check/write"):
        assert hub.requests.count(request) == 1, hub.requests
    assert not any("repos/create" in request for request in hub.requests)


def test_the_hub_is_asked_once_about_each_repository_of_a_prune(client, hub):
    """The requests of a first `prune HUB_ID --push`; those of transformers and of the upload are in the number."""
    files = {path.name: path.read_bytes() for path in demo_model().iterdir() if path.is_file()}
    hub.add("meta/once", {**files, "README.md": b"---\nlicense: mit\n---\n", "LICENSE": b"terms"})
    done = client.cli(*PRUNE[:1], "meta/once", *PRUNE[2:-1], "--push", "--repo-id", "ada/once", "-o", "once")
    assert done["status"] == 0, done
    first = next(i for i, request in enumerate(hub.requests) if "/resolve/" in request)
    # transformers asks about the model once more before its first file.
    own = hub.requests[: first - 1]
    assert own[:4] == [
        "GET /api/models/meta/once",
        "GET /api/whoami-v2",
        "GET /api/models/ada/once",
        "POST /api/repos/create",
    ]
    # Older clients cannot ask whether a token may write.
    assert own[4:] in ([], ["GET /api/models/ada/once/auth-check/write"])
    uploading = next(i for i, request in enumerate(hub.requests) if "validate-yaml" in request)
    assert "LICENSE" in hub.requests[uploading - 1]
    # Two for each shard of the upload: one shard for each of eight blocks, and one for the rest.
    assert len(hub.requests) <= 56, hub.requests
