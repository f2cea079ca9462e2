"""Folders by URL: what is refused, and that a file is there as a whole or not at all."""

import importlib.util
from pathlib import Path

import pytest
from remote_toys import mounted

from fl_core.errors import ConfigError, ResourceError
from fl_core.remote import RemoteFolder, check_disk, check_url

SECRETS = [
    "s3://AKIAEXAMPLE:se/cret@bucket/runs",
    "s3://token@bucket/runs",
    "sftp://user:password@host/runs",
    "https://user:password@host/runs",
    "az://container/runs?sig=abc",
    "memory://runs#token",
]


@pytest.fixture(params=["file", "memory", "s3", "far"])
def remote(request, tmp_path):
    if request.param in ("s3", "far"):
        with mounted(request.param):
            yield RemoteFolder(f"{request.param}://bucket/lab")
    else:
        yield RemoteFolder(f"{request.param}://{tmp_path}/lab")


@pytest.mark.parametrize("url", SECRETS)
def test_a_url_with_a_secret_is_refused_and_the_secret_is_not_shown(url):
    (fault,) = check_url("mirror", url)
    assert fault.startswith("mirror = ")
    assert "credentials" in fault
    for secret in ("AKIAEXAMPLE", "se/cret", "token", "password", "abc"):
        assert secret not in fault


@pytest.mark.parametrize("url", ["bucket/runs", "runs", "./x", "file://runs", "file:runs", "~/x"])
def test_a_relative_place_is_refused(url):
    (fault,) = check_url("shared_store", url)
    assert "is relative" in fault
    assert "s3://bucket/folder" in fault


@pytest.mark.parametrize("url", ["s4://bucket/runs", "https://host/runs", "://x"])
def test_a_protocol_that_holds_no_folders_is_refused_with_those_that_do(url):
    (fault,) = check_url("mirror", url)
    assert "no protocol that fsspec knows" in fault
    assert "gs" in fault


@pytest.mark.parametrize("url", ["s3://", "memory:///", "simplecache::s3://bucket/x"])
def test_a_url_that_names_no_folder_is_refused(url):
    assert len(check_url("mirror", url)) == 1


@pytest.mark.parametrize(
    "url",
    [
        None,
        "s3://bucket/runs",
        "gs://bucket",
        "abfs://container@account.dfs.core.windows.net/runs",
        "sftp://user@host:22/runs",
        "hdfs://namenode:8020/user@site/runs",
        "file:///mnt/shared",
        "/mnt/shared",
        "memory://x",
    ],
)
def test_what_names_a_folder_passes(url):
    assert check_url("mirror", url) == []


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        (Path("s3://bucket/runs"), "s3://bucket/runs"),
        (Path("file:///mnt/runs"), "file:///mnt/runs"),
        (Path("sftp://user:password@host/runs"), "sftp://***@host/runs"),
    ],
)
def test_a_path_that_was_a_url_is_told_from_a_folder_of_the_disk(place, shown):
    (fault,) = check_disk("folder", place, "set mirror.")
    assert fault.startswith(f"folder = '{shown}' is a URL")
    for folder in ("runs", "/mnt/runs", "~/runs", "/mnt/a:/b", "C:/runs", "a:b/c"):
        assert check_disk("folder", Path(folder), "") == []


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(ConfigError, match=r"s3://bucket/runs needs .* pip install s3fs"):
        RemoteFolder("s3://bucket/runs").probe("mirror")


def test_files_come_back_as_they_were_sent(remote, tmp_path):
    (tmp_path / "large").write_bytes(bytes(range(256)) * 1000)
    remote.write("a.json", b"{}")
    remote.upload("deep/er/large", tmp_path / "large")
    remote.write("empty", b"")
    assert remote.read("a.json") == b"{}"
    assert remote.read("empty") == b""
    assert remote.download("deep/er/large", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "large").read_bytes()
    assert remote.sizes() == {"a.json": 2, "empty": 0}
    assert remote.folders() == ["deep"]
    assert remote.child("deep/er").sizes() == {"large": 256_000}
    assert remote.size("deep/er/large") == 256_000
    assert remote.read_many(["a.json", "none", "empty"]) == {"a.json": b"{}", "empty": b""}
    remote.write("deep/a.json", b"[2]")
    both = remote.read_many(["deep/a.json", "a.json", "deep/none"])
    assert both == {"a.json": b"{}", "deep/a.json": b"[2]"}
    remote.write("a.json", b"[1]")
    assert remote.read("a.json") == b"[1]"


def test_what_is_absent_is_absent_and_no_error(remote, tmp_path):
    assert remote.read("none") is None
    assert remote.size("none") is None
    assert not remote.download("none", tmp_path / "none")
    assert remote.sizes() == {}
    assert remote.folders() == []
    assert remote.read_many([]) == {}
    remote.remove("none")
    remote.remove_all()


def test_a_folder_is_removed_with_all_that_is_in_it(remote):
    remote.write("a", b"1")
    remote.write("b/c", b"2")
    remote.remove("a")
    assert remote.sizes() == {}
    remote.remove_all()
    assert remote.read("b/c") is None


def test_a_probe_leaves_nothing(remote):
    remote.probe("mirror")
    assert remote.sizes() == {}


@pytest.mark.parametrize("protocol", ["s3", "far"])
def test_an_upload_that_is_cut_off_leaves_what_was_there(protocol):
    def cut(what, path):
        if what == "put":
            raise OSError("the line went dead")

    with mounted(protocol) as kind:
        remote = RemoteFolder(f"{protocol}://bucket/lab")
        remote.write("a", b"before")
        kind.before = staticmethod(cut)
        with pytest.raises(ResourceError, match=r"bucket/lab cannot be written.*dead"):
            remote.write("a", b"after")
        with pytest.raises(ResourceError):
            remote.write("new", b"after")
        with pytest.raises(ConfigError, match=r"mirror: .*cannot be written"):
            remote.probe("mirror")
        assert remote.read("a") == b"before"
        assert remote.sizes() == {"a": 6}
        assert [name.rpartition("/")[2] for name in kind.store] == ["a"]
