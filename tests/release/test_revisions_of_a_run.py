"""Sharded weights, revisions and copies of a real run's releases, through the stage."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import UserError, WorldError
from pipeline.evaluation.comparison import Judged, compare_and_tell
from pipeline.evaluation.generation import Asked, generate_and_tell
from pipeline.evaluation.sample import Sampling
from pipeline.recipe_reader import parse_recipe
from pipeline.release.provenance import file_hashes, read_provenance
from pipeline.release.stage import release
from pipeline.release.standing import verify_and_tell, wrong_files
from pipeline.run_folder import RunFolder
from tests.evaluation.tiny_run import make_model, write_checkpoint

pytestmark = pytest.mark.slow
SHARD_BYTES = 20_000


@pytest.fixture(scope="module")
def sharded(run, tmp_path_factory):
    """A run of its own on the same shards, with two checkpoints and small files of weights."""
    content = run.recipe.resolved()
    content["release"]["max_shard_bytes"] = SHARD_BYTES
    content["data"]["shards"] = str(run.shards)
    content["name"] = "sharded"
    folder = RunFolder(tmp_path_factory.mktemp("sharded"), parse_recipe(content, "sharded"))
    folder.write_recipe()
    for step in (5, 20):
        write_checkpoint(folder, make_model(folder), step)
    return folder


def provenance_of(path):
    found = read_provenance(path)
    assert found is not None
    return found


def of(folder, **options):
    return release(folder.recipe, folder, command="adaponder release sharded", **options)


def test_main_and_a_step_stand_beside_each_other_and_at_a_url(sharded, tmp_path, capsys):
    url = (tmp_path / "published").as_uri()
    main = of(sharded, url=url)
    step = of(sharded, revision="step5", url=url)
    assert (main, step) == (sharded.release, sharded.release / "revisions" / "step5")
    assert [provenance_of(path).identity.step for path in (main, step)] == [20, 5]
    # Cut between tensors, none lost, every file's hash in the provenance.
    index = json.loads((main / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(set(index.values()))
    assert len(files) > 2 and all(name in provenance_of(main).files for name in files)
    weights = {name: tensor for file in files for name, tensor in load_file(main / file).items()}
    expected = make_model(sharded).state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert max((main / name).stat().st_size for name in files) < 2 * SHARD_BYTES + max(
        4 * tensor.numel() for tensor in expected.values()
    )
    # main is made anew with its revisions kept, and all of it stands at the URL too.
    (main / "README.md").write_text("edited")
    of(sharded, url=url)
    assert not wrong_files(main) and not wrong_files(step)
    assert not wrong_files(tmp_path / "published")
    assert file_hashes(tmp_path / "published" / "revisions" / "step5") == file_hashes(step)
    capsys.readouterr()
    of(sharded, revision="step5", url=url)
    told = capsys.readouterr().out
    assert "released already, nothing to do" in told and "has it already, nothing to do" in told
    verify_and_tell(main)
    weights_file = step / files[0]
    content = weights_file.read_bytes()
    weights_file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WorldError, match="1 file"):
        verify_and_tell(main)
    assert str(weights_file) in capsys.readouterr().err
    shutil.rmtree(sharded.release)


def test_a_release_generates_and_compares_as_its_checkpoint(sharded, run, tmp_path, capsys):
    main = of(sharded)
    checkpoint = sharded.checkpoints / "step-00000020"
    moved = tmp_path / "elsewhere"
    shutil.copytree(main, moved)
    asked = Asked(["token <passes>"], 8, 3, Sampling())
    texts = []
    for where in (main, moved, checkpoint):
        capsys.readouterr()
        generate_and_tell(str(where), None, "latest", asked, None, True)
        (found,) = json.loads(capsys.readouterr().out)
        texts.append(found["pieces"])
    assert texts[0] == texts[1] == texts[2]
    judged = Judged(rows_per_source=4, batch_rows=4, draws=50, seed=1, shards=None)
    compare_and_tell((str(main), str(checkpoint)), None, asked, judged, None, True)
    found = json.loads(capsys.readouterr().out)["overall"]["loss_difference"]
    # Weights that lie elsewhere in memory may be summed in another order.
    assert [found["value"], *found["interval"]] == pytest.approx([0.0] * 3, abs=1e-6)
    with pytest.raises(UserError, match="lie outside their runs: say by --shards"):
        compare_and_tell((str(moved), str(moved)), None, asked, judged, None, True)
    judged = dataclasses.replace(judged, shards=run.shards)
    compare_and_tell((str(moved), str(moved)), None, asked, judged, None, True)
    shutil.rmtree(sharded.release)


def test_provenance_tells_what_was_compared_at_every_depth(sharded):
    main = of(sharded)
    provenance = provenance_of(main)
    assert provenance.depth_difference is not None
    assert 0 <= provenance.depth_difference <= 1e-5
    shutil.rmtree(sharded.release)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"revision": "step7"}, "no complete checkpoint step-00000007"),
        ({"revision": "v1"}, "main, or step and a number"),
        ({"url": "nothing://x/y"}, "cannot be opened"),
        ({"repo": "tiny"}, "OWNER/NAME is expected"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(sharded, options, told):
    with pytest.raises(UserError, match=told):
        of(sharded, **options)
    assert not sharded.release.exists()
