"""What is kept of the code that a run was made from: the commit, and a patch that makes the tree from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launcher import provenance


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    return subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository of one commit."""
    root = tmp_path / "tree"
    (root / "deep").mkdir(parents=True)
    git(root, "init", "--quiet")
    (root / ".gitignore").write_text("ignored\n")
    (root / "train.py").write_text("one\n")
    (root / "gone.py").write_text("gone\n")
    (root / "weights").write_bytes(bytes(range(256)))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    return root


def rebuilt(tree: Path, folder: Path, patch: bytes) -> dict[str, bytes]:
    """The files of a clean clone to which the patch was applied, by name."""
    git(folder.parent, "clone", "--quiet", str(tree), str(folder))
    if patch:
        (folder.parent / "read.patch").write_bytes(patch)
        git(folder, "apply", str(folder.parent / "read.patch"))
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


def test_a_commit_is_known_by_its_sha_and_whether_the_tree_is_it(tree: Path, tmp_path: Path) -> None:
    sha = git(tree, "rev-parse", "HEAD").strip()
    assert provenance.commit_of(tree) == provenance.Commit(sha, False, b"")
    (tree / "train.py").write_text("two\n")
    found = provenance.commit_of(tree)
    assert (found.sha, found.dirty, found.left_out) == (sha, True, None)
    assert b"-one\n+two\n" in found.patch
    assert provenance.commit_of(tmp_path) == provenance.Commit(None, False, b"")


def test_the_patch_makes_the_tree_from_the_commit(tree: Path, tmp_path: Path) -> None:
    (tree / "train.py").write_text("two\n")
    (tree / "gone.py").unlink()
    (tree / "weights").write_bytes(bytes(reversed(range(256))))
    (tree / "staged.py").write_text("staged\n")
    git(tree, "add", "staged.py")
    (tree / "new.py").write_text("new, without an end of line")
    (tree / "empty.py").write_text("")
    (tree / "deep" / "ÿ [*] name.bin").write_bytes(os.urandom(1000))
    (tree / "ignored").write_text("nobody's business")
    for key, value in (("diff.noprefix", "true"), ("color.diff", "always"), ("diff.external", "false")):
        git(tree, "config", key, value)
    before = (git(tree, "status", "--porcelain"), (tree / ".git" / "index").read_bytes())

    patch = provenance.commit_of(tree).patch

    assert (git(tree, "status", "--porcelain"), (tree / ".git" / "index").read_bytes()) == before
    wanted = files(tree)
    del wanted["ignored"]
    assert rebuilt(tree, tmp_path / "clone", patch) == wanted


def test_a_project_below_its_repository_takes_its_own_new_files(tree: Path, tmp_path: Path) -> None:
    (tree / "train.py").write_text("two\n")
    (tree / "beside.py").write_text("not synced")
    (tree / "deep" / "new.py").write_text("new")
    found = rebuilt(tree, tmp_path / "clone", provenance.commit_of(tree / "deep").patch)
    assert (found["train.py"], found["deep/new.py"]) == (b"two\n", b"new")
    assert "beside.py" not in found


def test_secrets_stay_out_of_the_patch(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "my.env").write_text("HF_TOKEN=hf_secret\n")
    (tree / "new.py").write_text("new\n")
    monkeypatch.chdir(tree)
    for named in (tree / "my.env", Path("my.env"), tree / "deep" / ".." / "my.env"):
        found = provenance.commit_of(tree, named)
        assert b"new.py" in found.patch
        assert b"hf_secret" not in found.patch
    assert b"hf_secret" in provenance.commit_of(tree, tree.parent / "other.env").patch


def test_what_is_too_large_is_left_out_whole_and_said(tree: Path, tmp_path: Path) -> None:
    most = 100_000
    (tree / "train.py").write_text("two\n")
    (tree / "new.py").write_text("new")
    (tree / "data.bin").write_bytes(b"x" * (most + 1))
    found = provenance.commit_of(tree, most=most)
    assert found.left_out == "new files: 1 of 0.1 MB, such as data.bin"
    wanted = files(tree)
    del wanted["data.bin"]
    assert rebuilt(tree, tmp_path / "clone", found.patch) == wanted

    (tree / "data.bin").write_bytes(os.urandom(most - 1000))  # a patch writes it as longer text
    found = provenance.commit_of(tree, most=most)
    assert found.left_out == "new files: 2 of 0.1 MB, such as data.bin"
    del wanted["new.py"]
    assert rebuilt(tree, tmp_path / "another", found.patch) == wanted

    (tree / "weights").write_bytes(os.urandom(most))
    found = provenance.commit_of(tree, most=most)
    assert (found.dirty, found.patch) == (True, b"")
    assert found.left_out == "all changes: they make no patch of 0.1 MB at most"
    assert provenance.commit_of(tree).left_out is None
