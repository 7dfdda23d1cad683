"""Artifacts: named by what they hold, complete or absent, and any damage is found."""

import os

import pytest

from pruning import artifacts
from pruning.artifacts import DamagedArtifact, Manifest, Parents
from pruning.recipe import Recipe, Text

TEXT = Text(file="file-1")
RECIPE = Recipe(name="slim", base="demo", target=0.3, calibration=TEXT, evaluation=TEXT, seed=7)
PARENTS = Parents(base="b" * 64, adapters={"task": "a" * 64})


def write_draft(directory, weights=b"\x00" * 64, seconds=1.5):
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "model.safetensors").write_bytes(weights)
    (directory / "plan.json").write_text("{}")
    (directory / "report.json").write_text(f'{{"seconds": {seconds}}}')
    return directory


@pytest.fixture
def draft(tmp_path):
    return write_draft(tmp_path / "draft")


@pytest.fixture
def artifact(tmp_path, draft):
    """A published artifact's directory."""
    digest = artifacts.seal(draft, RECIPE, PARENTS).digest
    artifacts.publish(draft, tmp_path / "store", digest)
    return tmp_path / "store" / digest


def test_a_sealed_directory_says_what_it_holds_and_where_it_comes_from(draft):
    manifest = artifacts.seal(draft, RECIPE, PARENTS)
    assert artifacts.read(draft) == manifest
    assert (manifest.recipe, manifest.parents, manifest.seed) == (RECIPE, PARENTS, 7)
    assert set(manifest.files) == {"model/model.safetensors", "plan.json", "report.json"}
    assert manifest.files["model/model.safetensors"].bytes == 64
    assert set(manifest.versions) == {"graftwork", "torch", "transformers", "peft"}


def test_the_digest_is_that_of_the_content_and_not_of_measurements_or_time(tmp_path):
    digests = [
        artifacts.seal(write_draft(tmp_path / name, **content), recipe, PARENTS).digest
        for name, recipe, content in (
            ("one", RECIPE, {}),
            ("slower, under another name", RECIPE.model_copy(update={"name": "x"}), {"seconds": 9}),
            ("other weights", RECIPE, {"weights": b"\x01"}),
        )
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_moved_file_changes_the_digest(tmp_path):
    one, other = write_draft(tmp_path / "one"), write_draft(tmp_path / "other")
    (other / "plan.json").rename(other / "model" / "plan.json")
    assert artifacts.seal(one, RECIPE, PARENTS).digest != (
        artifacts.seal(other, RECIPE, PARENTS).digest
    )


def test_publishing_renames_the_whole_directory_at_once(tmp_path, draft):
    digest = artifacts.seal(draft, RECIPE, PARENTS).digest
    inode = draft.stat().st_ino
    assert artifacts.publish(draft, tmp_path / "store", digest)
    assert not draft.exists()
    assert [path.name for path in (tmp_path / "store").iterdir()] == [digest]
    assert (tmp_path / "store" / digest).stat().st_ino == inode
    assert artifacts.verify(tmp_path / "store" / digest).digest == digest


def test_publishing_the_same_content_again_leaves_the_first_in_place(tmp_path, artifact):
    again = write_draft(tmp_path / "again", seconds=99)
    digest = artifacts.seal(again, RECIPE, PARENTS).digest
    assert digest == artifact.name
    assert not artifacts.publish(again, artifact.parent, digest)
    assert (artifact / "report.json").read_text() == '{"seconds": 1.5}'
    assert not artifacts.publish(tmp_path / "renamed away", artifact.parent, digest)


def flip_a_byte(artifact):
    path = artifact / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(content)
    return path


def remove_a_file(artifact):
    (artifact / "plan.json").unlink()
    return artifact / "plan.json"


def add_a_file(artifact):
    (artifact / "model" / "extra.bin").write_bytes(b"")
    return artifact / "model" / "extra.bin"


def add_a_link(artifact):
    (artifact / "model" / "link").symlink_to("/etc")
    return artifact / "model" / "link"


def replace_a_file_by_a_link(artifact):
    path = artifact / "plan.json"
    path.rename(artifact.parent / "plan.json")
    path.symlink_to(artifact.parent / "plan.json")
    return path


def edit_the_digest(artifact):
    path = artifact / "manifest.json"
    path.write_text(path.read_text().replace(artifact.name, "0" * 64))
    return path


def empty_the_manifest(artifact):
    (artifact / "manifest.json").write_text("")
    return artifact / "manifest.json"


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        remove_a_file,
        add_a_file,
        add_a_link,
        replace_a_file_by_a_link,
        edit_the_digest,
        empty_the_manifest,
    ],
)
def test_any_damage_is_found_and_the_file_named(artifact, damage):
    artifacts.verify(artifact)
    damaged = damage(artifact)
    with pytest.raises(DamagedArtifact, match=str(damaged)):
        artifacts.verify(artifact)


def test_a_damaged_artifact_is_not_published_again_over_its_name(tmp_path, artifact):
    flip_a_byte(artifact)
    again = write_draft(tmp_path / "again")
    digest = artifacts.seal(again, RECIPE, PARENTS).digest
    with pytest.raises(DamagedArtifact):
        artifacts.publish(again, artifact.parent, digest)


@pytest.mark.parametrize("name", ["../plan.json", "/etc/passwd", "model/../../x", ""])
def test_a_manifest_cannot_name_a_file_outside(artifact, name):
    content = artifacts.read(artifact).model_dump()
    content["files"] = {name: content["files"]["plan.json"]}
    with pytest.raises(ValueError, match="inside"):
        Manifest.model_validate(content)


def test_a_directory_with_a_link_or_a_pipe_cannot_be_sealed(draft):
    os.mkfifo(draft / "pipe")
    with pytest.raises(DamagedArtifact, match="pipe"):
        artifacts.seal(draft, RECIPE, PARENTS)
