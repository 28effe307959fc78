"""Names of models; how much memory is free, told from the files of control groups."""

from pathlib import Path

import pytest

from hf_farms.demo import demo_model
from hf_farms.errors import ModelError
from hf_farms.loading.devices import _cgroup_memory, free_memory
from hf_farms.loading.names import ModelRef, resolve

V1_UNLIMITED = 9223372036854771712


def group(folder, limit, taken, *, version):
    folder.mkdir(parents=True, exist_ok=True)
    name, key = ("memory.max", "anon") if version == 2 else ("memory.limit_in_bytes", "total_rss")
    (folder / name).write_text(f"{limit}\n")
    # Page cache, which the kernel takes back, and in version 1 what the group holds without its children.
    (folder / "memory.stat").write_text(f"file 900\nrss 1\n{key} {taken}\n")


def rooms(tmp_path, membership):
    (tmp_path / "self").write_text(membership)
    return sorted(_cgroup_memory(tmp_path / "cgroup", tmp_path / "self"))


def test_version_2_own_group_and_those_around_it(tmp_path):
    mount = tmp_path / "cgroup"
    group(mount, "max", 50, version=2)
    group(mount / "user", 1000, 300, version=2)
    group(mount / "user" / "job", 500, 100, version=2)
    group(mount / "other", 7, 1, version=2)
    assert rooms(tmp_path, "0::/user/job\n") == [400, 700]
    assert rooms(tmp_path, "0::/user\n") == [700]
    assert rooms(tmp_path, "0::/\n") == []


def test_version_1(tmp_path):
    group(tmp_path / "cgroup" / "memory", V1_UNLIMITED, 50, version=1)
    group(tmp_path / "cgroup" / "memory" / "job", 500, 100, version=1)
    assert rooms(tmp_path, "3:cpu:/job\n2:cpuset,memory:/job\n0::/\n") == [400, V1_UNLIMITED - 50]


@pytest.mark.parametrize("name", ["/docker/0123", "/../../outside"])
def test_in_a_container_only_the_root_is_there(name, tmp_path):
    group(tmp_path / "cgroup", 500, 100, version=2)
    assert rooms(tmp_path, f"0::{name}\n") == [400]


def test_without_control_groups(tmp_path):
    assert list(_cgroup_memory(tmp_path, tmp_path / "nothing")) == []
    assert free_memory("cpu") > 0


def test_a_file_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("theirs")
    with pytest.raises(ModelError, match=r"^model must be a folder or a hub id, got the file 'README.md'\.$"):
        resolve("README.md")
    assert resolve("ada/README.md") == "ada/README.md"


@pytest.mark.parametrize("name", ["", "  "])
def test_a_model_without_a_name_is_not_the_working_folder(name):
    with pytest.raises(ModelError, match=f"model must be a hub id, a folder or `demo`, got '{name}'"):
        resolve(name)


def test_a_name_is_the_demo_model_a_folder_or_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "demo").mkdir()
    demo, folder, hub = ModelRef.parse("demo"), ModelRef.parse("here"), ModelRef.parse("ada/m", "v1")
    assert [model.kind for model in (demo, folder, hub)] == ["demo", "folder", "hub"]
    assert [model.folder for model in (demo, folder, hub)] == [None, Path("here"), None]
    assert (demo.path, folder.path, hub.path) == (str(demo_model()), "here", "ada/m")
    twin = ModelRef.parse("demo-healthy")
    assert (twin.kind, twin.folder, twin.path) == ("demo", None, str(demo_model("demo-healthy")))
    assert hub.revision == "v1"
    assert ModelRef.parse(hub, "v2") is hub
    assert ModelRef.parse("x" * 5000).kind == "hub"


def test_what_is_local_is_not_asked_of_the_hub(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    folder = ModelRef.parse(tmp_path)
    assert folder.info is None
    assert folder.base_model.license == "mit"
    assert folder.base_model.local
    assert folder.weights_size == 5
    for name in ("demo", "demo-healthy"):
        assert ModelRef.parse(name).base_model is None
        assert ModelRef.parse(name).weights_size == (demo_model(name) / "model.safetensors").stat().st_size
