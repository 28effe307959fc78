"""Files of a folder and links out of it."""

import os
import socket
import warnings
from pathlib import Path

import pytest

from hf_farms.errors import HfFarmsWarning, OutputError
from hf_farms.files.own_files import copy_file, describe_kind, find_files, foreign_texts, is_own_file
from hf_farms.hub.base_model import read_base_model
from hf_farms.hub.license_files import copy_license_files

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and links")
HASH = "a" * 40


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "private" / "token"
    path.parent.mkdir()
    path.write_text("geheim")
    return path


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def strange(folder, name, secret):
    """Everything that a file of this name may be in place of a file."""
    path = folder / name
    yield "a link to another path", lambda: path.symlink_to(secret)
    yield "a broken link", lambda: path.symlink_to(folder / "nothing")
    yield "a link to another path", lambda: path.symlink_to(secret.parent)
    (folder / "between").symlink_to(secret)
    yield "a link to another path", lambda: path.symlink_to("between")
    yield "a link to another path", lambda: path.symlink_to(os.path.relpath(secret, folder))
    yield "a broken link", lambda: path.symlink_to(name)
    yield "a pipe", lambda: os.mkfifo(path)
    yield "a link to another path", lambda: path.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", ["LICENSE", "LICENCE.md", "license.txt", "NOTICE", "USE_POLICY.md"])
def test_a_license_that_is_no_file_is_left_out_and_said(name, model, secret, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for kind, make in strange(model, name, secret):
        make()
        with pytest.warns(HfFarmsWarning, match=rf"^{name} of .* is not copied, as it is {kind}\."):
            assert copy_license_files(model, out) == ()
        assert read_base_model(model) is None
        assert list(out.iterdir()) == []
        (model / name).unlink()
    (model / name).write_text("terms")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copy_license_files(model, out) == (name,)


def test_what_lies_at_the_target_is_not_written_through(model, secret, tmp_path):
    (model / "LICENSE").write_text("terms")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "LICENSE.tmp").symlink_to(secret)
    (tmp_path / "out" / "LICENSE").symlink_to(secret)
    with pytest.raises(OutputError, match=r"must be a regular file or not exist, got the link .*LICENSE'"):
        copy_license_files(model, tmp_path / "out")
    assert secret.read_text() == "geheim"


def test_a_file_that_became_a_link_meanwhile_is_not_copied(model, secret, tmp_path):
    (model / "LICENSE").symlink_to(secret)
    with pytest.raises(OutputError, match=r"^files must be regular to be copied, got .*, which is a link"):
        copy_file(model / "LICENSE", tmp_path / "copy")


def cached(tmp_path):
    repo = tmp_path / "hub" / "models--a--b"
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots" / "c").mkdir(parents=True)
    (repo / "blobs" / HASH).write_text("terms")
    return repo, repo / "snapshots" / "c" / "LICENSE"


def test_a_file_of_the_hubs_cache_is_one_of_its_own(tmp_path):
    _, license = cached(tmp_path)
    license.symlink_to(f"../../blobs/{HASH}")
    assert is_own_file(license)
    (tmp_path / "out").mkdir()
    assert copy_license_files(license.parent, tmp_path / "out") == ("LICENSE",)
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    # The whole cache may lie elsewhere.
    (tmp_path / "link").symlink_to(tmp_path / "hub")
    assert is_own_file(tmp_path / "link" / license.relative_to(tmp_path / "hub"))


def test_what_only_looks_like_the_cache_is_not(tmp_path, secret):
    repo, license = cached(tmp_path)
    license.symlink_to(f"../../blobs/{'b' * 40}")
    assert not is_own_file(license)
    (repo / "blobs" / ("b" * 40)).symlink_to(secret)
    assert not is_own_file(license)
    license.unlink()
    license.symlink_to("../../../models--x--y/blobs/" + HASH)
    assert not is_own_file(license)
    license.unlink()
    (repo / "blobs" / HASH).unlink()
    (repo / "blobs" / ("b" * 40)).unlink()
    (repo / "blobs").rmdir()
    (repo / "blobs").symlink_to(secret.parent)
    (secret.parent / HASH).write_text("geheim")
    license.symlink_to(f"../../blobs/{HASH}")
    assert not is_own_file(license)


def test_all_kinds_in_a_folder(model, secret):
    for name, (_, make) in zip("abcdefgh", ((k, m) for k, m in strange(model, "x", secret)), strict=True):
        make()
        (model / "x").rename(model / name)
    (model / "sub").mkdir()
    (model / "sub" / "file").write_text("x")
    (model / "linked").symlink_to(secret.parent)
    # Its name must be short.
    here = Path.cwd()
    os.chdir(model)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
            own, others = find_files(model)
    finally:
        os.chdir(here)
    assert set(own) == {"config.json", "sub/file"}
    assert others["linked"] == "a link to another path"
    assert others["socket"] == "a socket"
    assert set(others) == {*"abcdefgh", "between", "linked", "socket"}
    assert describe_kind(model / "never") == "gone"


def test_texts_of_a_model_that_lead_elsewhere(model, secret, tmp_path):
    (model / "chat_template.jinja").symlink_to(secret)
    (model / "model.safetensors").symlink_to(secret)  # only computed with
    (model / "vocab.txt").write_text("own")
    for name in ("LICENSE.txt", "modelcard.json", "model.safetensors.index.json"):
        (model / name).symlink_to(secret)  # no tokenizer is made of them
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool.jinja").symlink_to(secret)
    assert foreign_texts(model) == ("additional_chat_templates/tool.jinja", "chat_template.jinja")
    other = tmp_path / "other"
    (other / "additional_chat_templates").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "additional_chat_templates/tool.jinja"):
        (other / name).write_text("{}")
    farm = tmp_path / "farm"
    farm.mkdir()
    for path in other.iterdir():
        (farm / path.name).symlink_to(path)
    assert foreign_texts(farm) == ()
    (farm / "tokenizer.json").unlink()
    (farm / "tokenizer.json").symlink_to(other / "config.json")
    assert foreign_texts(farm) == ("tokenizer.json",)
