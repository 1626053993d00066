"""Foreign HDF5 files: numbers of the file alone, whatever its links and storage say."""

import os

import numpy as np
import pytest
from robomimic_writer import write

from latentplan.data.sources import hdf5
from latentplan.data.sources.robomimic import Robomimic
from latentplan.errors import BudgetError, MissingDependency, SourceError

h5py = pytest.importorskip("h5py")
IMAGE = "data/demo_0/obs/secret"


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "low_dim.hdf5")


@pytest.fixture
def private(tmp_path):
    """Return a file of this machine that no data set may read, and one in HDF5."""
    (tmp_path / "private.txt").write_bytes(b"password" * 12)
    with h5py.File(tmp_path / "private.hdf5", "w") as file:
        file["x"] = np.full((4, 3), 7.0)
    return tmp_path


def link_out(file, private):
    file[IMAGE] = h5py.ExternalLink(str(private / "private.hdf5"), "/x")


def link_out_twice(file, private):
    file["away"] = h5py.ExternalLink(str(private / "private.hdf5"), "/")
    file[IMAGE] = h5py.SoftLink("/away/x")


def external(file, private):
    size = 4 * 24
    storage = [(str(private / "private.txt"), 0, size)]
    file.create_dataset(IMAGE, (4, 24), np.uint8, external=storage)


def virtual(file, private):
    layout = h5py.VirtualLayout((4, 3), np.float64)
    layout[:] = h5py.VirtualSource(str(private / "private.hdf5"), "x", (4, 3))
    file.create_virtual_dataset(IMAGE, layout)


OUT = {
    link_out: r"obs/secret is a link to another file, '.*private\.hdf5', which is refused",
    link_out_twice: r"//?away is a link to another file, '.*private\.hdf5', which is refused",
    external: r"obs/secret: lies in another file, .*private\.txt.*, which is refused",
    virtual: "obs/secret: is a virtual data set, which is refused",
}


@pytest.mark.parametrize("how", OUT, ids=lambda how: how.__name__)
def test_an_array_outside_the_file_is_refused_by_name(path, private, how):
    with h5py.File(path, "a") as file:
        how(file, private)
    with pytest.raises(SourceError, match=OUT[how]) as caught:
        Robomimic(path)
    assert str(path) in str(caught.value)
    assert len(Robomimic(path, keys=["object"]).episode(0)) == 4  # without touching it


@pytest.mark.parametrize("how", OUT, ids=lambda how: how.__name__)
@pytest.mark.parametrize("name", ["data/demo_0/actions", "data/demo_1/rewards", "mask/train"])
def test_actions_rewards_and_masks_are_those_of_the_file(path, private, how, name, monkeypatch):
    monkeypatch.setitem(globals(), "IMAGE", name)
    with h5py.File(path, "a") as file:
        del file[name]
        how(file, private)
    with pytest.raises(SourceError, match="another file|virtual data set"):
        source = Robomimic(path, Robomimic.Config(filter="train" if "mask" in name else ""))
        [source.episode(index) for index in range(len(source))]


def test_a_link_to_a_device_is_refused_before_it_is_opened(path):
    with h5py.File(path, "a") as file:
        file[IMAGE] = h5py.ExternalLink("/dev/zero", "/x")
    with pytest.raises(SourceError, match="'/dev/zero', which is refused"):
        Robomimic(path)
    with pytest.raises(SourceError, match="/dev/null: is a device, need a regular file"):
        Robomimic("/dev/null")


def test_links_inside_the_file_are_followed(path):
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"]
        file["elsewhere"] = demo["obs/object"][:]
        demo["obs/soft"] = h5py.SoftLink("/elsewhere")
        demo["obs/near"] = h5py.SoftLink("soft")
        demo["obs/hard"] = file["elsewhere"]
        demo["obs/broken"] = h5py.SoftLink("/nowhere/at/all")
        demo["next_obs/soft"] = demo["next_obs/near"] = h5py.SoftLink("/elsewhere")
        demo["next_obs/hard"] = file["elsewhere"]
    source = Robomimic(path)
    keys = ["agentview_image", "hard", "near", "object", "soft"]
    assert list(source.spec.observation) == keys
    episode = source.episode(0)
    for key in ("hard", "near", "soft"):
        np.testing.assert_array_equal(
            episode.observations[key][:4], episode.observations["object"][:4]
        )


def test_links_in_a_circle_end(path):
    with h5py.File(path, "a") as file:
        obs = file["data/demo_0/obs"]
        obs["one"], obs["two"] = h5py.SoftLink("two"), h5py.SoftLink("one")
        obs["again"] = obs
    with hdf5.opened(path) as file:
        with pytest.raises(SourceError, match="obs: has more than 32 groups in one another"):
            file.group("data/demo_0/obs").arrays()
    assert len(Robomimic(path).episode(0)) == 4
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/again"]
    with pytest.raises(SourceError, match="obs/(one|two) links in a circle"):
        Robomimic(path)


def test_a_filter_that_is_not_installed_is_named(path):
    with h5py.File(path, "a") as file:
        obs = file["data/demo_0/obs"]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((4, 3))
        plist.set_filter(32004, h5py.h5z.FLAG_OPTIONAL)  # lz4
        space = h5py.h5s.create_simple((4, 3))
        made = h5py.h5d.create(obs.id, b"packed", h5py.h5t.IEEE_F32LE, space, plist)
        made.write_direct_chunk((0, 0), b"\0" * 20)
        file["data/demo_0/next_obs/packed"] = np.zeros((4, 3), np.float32)
    with pytest.raises(MissingDependency, match=r"filter 32004 \(.*\).*pip install hdf5plugin"):
        Robomimic(path).episode(0)
    assert len(Robomimic(path, keys=["object"]).episode(0)) == 4


def test_gigabytes_that_a_file_declares_and_does_not_hold_are_not_allocated(path):
    with h5py.File(path, "a") as file:
        for part in ("obs", "next_obs"):
            group = file[f"data/demo_0/{part}"]
            group.create_dataset("huge", (4, 1 << 31), np.uint8, chunks=(1, 1 << 20))
    with pytest.raises(BudgetError, match=r"obs/huge: needs 8\.59 GB, allowed are 2\.147 GB"):
        Robomimic(path, keys=["huge"]).episode(0)
    assert len(Robomimic(path, keys=["object"]).episode(0)) == 4


def test_a_file_that_may_not_be_read_is_not_called_damaged(path, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(SourceError, match=r"cannot be read \(Permission denied\)"):
        with hdf5.opened(path):
            pass
