"""Every source and every kind of bad input; small pictures made here, and real cells."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bloodcell_dist.data.pictures import read_picture
from bloodcell_dist.data.sources import detect_source, load_dataset, load_images
from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import BLOOD_CELLS

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
LABELS = np.array([[0], [7], [3], [3], [1], [0]], np.uint8)


def write_npz(path: Path, **arrays) -> Path:
    np.savez(path, **{"images": IMAGES, "labels": LABELS, **arrays})
    return path


def write_medmnist(path: Path, **changes) -> Path:
    arrays = {}
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = IMAGES[:count], LABELS[:count]
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def write_folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (20, 16)) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = RNG.integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"cell{number}.png")
    return root


# --- npz and MedMNIST ---


def test_npz_as_it_is(tmp_path):
    cells = load_dataset("npz", write_npz(tmp_path / "a.npz"), image_size=16)
    assert np.array_equal(cells.images, IMAGES)
    assert cells.labels.tolist() == [0, 7, 3, 3, 1, 0]
    assert cells.class_names == BLOOD_CELLS
    assert cells.groups is None and cells.partition is None and cells.name_of(2) == "2"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_however_it_was_stored(tmp_path, save, order):
    save(tmp_path / "a.npz", images=np.asarray(IMAGES, order=order), labels=LABELS[:, 0].astype(np.int32))
    assert np.array_equal(load_dataset("auto", tmp_path / "a.npz", image_size=16).images, IMAGES)


def test_npz_in_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("bloodcell_dist.data.npz_file._BLOCK_BYTES", 2 * 16 * 16 * 3 + 5)
    cells = load_dataset("npz", write_npz(tmp_path / "a.npz"), image_size=16)
    assert np.array_equal(cells.images, IMAGES)


def test_npz_is_cropped_and_resized_like_any_picture(tmp_path):
    cells = load_dataset("npz", write_npz(tmp_path / "a.npz"), image_size=6, crop=12)
    expected = Image.fromarray(IMAGES[1]).crop((2, 2, 14, 14)).resize((6, 6), Image.Resampling.BICUBIC)
    assert np.array_equal(cells.images[1], np.asarray(expected))


def test_npz_groups(tmp_path):
    path = write_npz(tmp_path / "a.npz", patient=np.array(["p2", "p1", "p2", "p3", "p1", "p3"]))
    cells = load_dataset("npz", path, image_size=16, group_column="patient")
    assert cells.groups is not None and cells.groups.tolist() == [1, 0, 1, 2, 0, 2]


def test_medmnist_keeps_its_split(tmp_path):
    cells = load_dataset("auto", write_medmnist(tmp_path / "bloodmnist.npz"), image_size=16)
    assert cells.partition is not None and cells.partition.tolist() == [0, 0, 0, 1, 2, 2]
    assert cells.labels.tolist() == [0, 7, 3, 0, 0, 7]
    assert np.array_equal(cells.images, IMAGES[[0, 1, 2, 0, 0, 1]])
    assert cells.name_of(4) == "test_images[0]"


def objects(path):
    return write_npz(path, labels=np.array([0, "x", 2, 3, 4, 5], dtype=object))


def object_images(path):
    return write_npz(path, images=np.array([IMAGES[0], None], dtype=object))


def cut_short(path):
    write_npz(path)
    path.write_bytes(path.read_bytes()[:3000])
    return path


def damaged_inside(path):
    write_npz(path)
    content = bytearray(path.read_bytes())
    content[1000:1010] = bytes(10)
    path.write_bytes(bytes(content))
    return path


def array_cut_short(path):
    """A sound zip whose array ends before its header says."""
    whole = io.BytesIO()
    np.save(whole, IMAGES)
    labels = io.BytesIO()
    np.save(labels, LABELS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", whole.getvalue()[:-50])
        archive.writestr("labels.npy", labels.getvalue())
    return path


def without(missing):
    def make(path):
        kept = {name: array for name, array in {"images": IMAGES, "labels": LABELS}.items() if name != missing}
        np.savez(path, **kept)
        return path

    return make


def text_file(path):
    path.write_text("not a zip")
    return path


BAD_NPZ = [
    (lambda path: path, "no such file or folder"),
    (text_file, "is no intact .npz file .*expected one that np.savez wrote"),
    (cut_short, "is no intact .npz file"),
    (damaged_inside, "is no intact .npz file"),
    (array_cut_short, "is no intact .npz file .*array 'images' ends early"),
    (objects, "array 'labels' holds pickled Python objects, refused because .*np.savez"),
    (object_images, "array 'images' holds pickled Python objects"),
    (without("images"), "has no array 'images'; its arrays are: labels"),
    (without("labels"), "has no array 'labels'; its arrays are: images"),
    (lambda path: write_npz(path, images=IMAGES / 255), "array 'images' has dtype float64; expected uint8 .*astype"),
    (lambda path: write_npz(path, images=IMAGES[..., 0]), r"has shape \(6, 16, 16\): grey-scale pictures"),
    (lambda path: write_npz(path, images=IMAGES.transpose(0, 3, 1, 2)), r"has shape \(6, 3, 16, 16\); expected"),
    (lambda path: write_npz(path, images=IMAGES[:0], labels=LABELS[:0]), "expected at least one picture"),
    (lambda path: write_npz(path, labels=LABELS[:5]), r"array 'labels' has shape \(5, 1\); expected \(6,\)"),
    (lambda path: write_npz(path, labels=np.eye(6, dtype=int)), "one-hot: labels.argmax"),
    (lambda path: write_npz(path, labels=LABELS.astype(float)), "array 'labels' has dtype float64; expected integers"),
    (lambda path: write_npz(path, labels=LABELS + 1), r"labels'\[1\] is 8 \(1 such labels\); expected 0 to 7"),
    (lambda path: write_npz(path, labels=LABELS.astype(int) - 1), r"labels'\[0\] is -1"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD_NPZ)
def test_bad_npz_is_refused_by_name(tmp_path, make, message):
    path = make(tmp_path / "cells.npz")
    with pytest.raises(UserError, match=f"^{path}.*{message}"):
        load_dataset("npz", path, image_size=16, cache_dir=tmp_path / "cache")
    assert not list(tmp_path.glob("cache/**/*.npy")) and not list(tmp_path.glob("cache/**/*.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_images": None}, "has no array 'val_images'"),
        ({"test_labels": None}, "has no array 'test_labels'"),
        ({"train_images": IMAGES[:3, ..., 0]}, r"'train_images' has shape \(3, 16, 16\): grey-scale"),
        ({"val_labels": np.array([[9]])}, r"'val_labels'\[0\] is 9"),
    ],
)
def test_bad_medmnist_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_dataset("medmnist", write_medmnist(tmp_path / "b.npz", **changes), image_size=16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": 20}, "is 16x16 pixels, smaller than data.crop=20; use data.crop=16 or null"),
        ({"crop": 0}, "data.crop=0"),
        ({"image_size": 0}, "data.image_size=0"),
        ({"class_names": ("a", "b")}, r"is 7 \(3 such labels\); expected 0 to 1 for the 2 classes a, b"),
        ({"group_column": "patient"}, "has no array 'patient'; its arrays are: images, labels"),
        ({"group_column": "images"}, r"array 'images' \(data.group_column\) has shape"),
        ({"source": "csv"}, "data.source=csv; expected auto, npz, medmnist, folder, synthetic"),
        ({"source": "folder"}, "is a file; data.source=folder expects a folder"),
        ({"path": None}, "data.path is not set"),
        ({"path": Path(__file__).parent}, "is a folder; data.source=npz expects an .npz file"),
        ({"source": "synthetic", "class_names": ("a", "b")}, "drawn cells are always basophil"),
        ({"source": "synthetic", "synthetic_examples": 3}, "3 synthetic examples; expected at least 8"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    arguments = {"source": "npz", "path": write_npz(tmp_path / "a.npz"), "image_size": 12, **settings}
    with pytest.raises(UserError, match=message):
        load_dataset(**arguments)


# --- folders ---


def test_folder_of_the_default_classes_keeps_their_order(tmp_path):
    root = write_folder(tmp_path / "cells", {"Platelet": 2, "basophil": 1, "MONOCYTE": 3})
    cells = load_dataset("auto", root, image_size=16)
    assert cells.class_names == ("basophil", "monocyte", "platelet")
    assert cells.class_counts().tolist() == [1, 3, 2]
    assert cells.name_of(5) == "Platelet/cell1.png"
    expected = Image.open(root / "Platelet/cell1.png").crop((2, 0, 18, 16))  # central square of 20x16
    assert np.array_equal(cells.images[-1], np.asarray(expected))


def test_folder_with_names_of_its_own(tmp_path):
    root = write_folder(tmp_path, {"zebra": 1, "ant": 2})
    assert load_dataset("folder", root, image_size=8).class_names == ("ant", "zebra")
    ordered = load_dataset("folder", root, image_size=8, class_names=("zebra", "bee", "ANT"))
    assert ordered.class_counts().tolist() == [1, 0, 2]


def test_other_and_hidden_files_are_passed_over(tmp_path, caplog):
    root = write_folder(tmp_path, {"a": 2, "b": 1})
    (root / "a" / "notes.txt").write_text("x")
    (root / "a" / "._cell0.png").write_text("macOS leaves these")
    (root / "a" / ".thumbnails").mkdir()
    (root / "a" / ".thumbnails" / "cell0.png").write_text("x")
    (root / ".cache").mkdir()
    (root / "loose.png").write_bytes((root / "a" / "cell0.png").read_bytes())
    assert load_dataset("folder", root, image_size=8).class_counts().tolist() == [2, 1]
    assert "passed over 2 files" in caplog.text


def test_pictures_in_folders_below_a_class_count(tmp_path):
    root = write_folder(tmp_path, {"a/slide1": 1, "a/slide2": 1, "b": 1})
    assert load_dataset("folder", root, image_size=8).names == (
        "a/slide1/cell0.png",
        "a/slide2/cell0.png",
        "b/cell0.png",
    )


@pytest.mark.parametrize("table", ["groups.csv", "index.csv"])
def test_folder_groups(tmp_path, table):
    root = write_folder(tmp_path, {"a": 2, "b": 1})
    rows = [("a/cell0.png", "p1"), ("a/cell1.png", "p2"), ("b/cell0.png", "p1"), ("b/gone.png", "p3")]
    with (root / table).open("w", newline="") as file:
        csv.writer(file).writerows([("file", "patient"), *rows])
    cells = load_dataset("folder", root, image_size=8, group_column="patient")
    assert cells.groups is not None and cells.groups.tolist() == [0, 1, 0]


def truncate(path: Path, keep: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def truncated_jpeg(root):
    Image.fromarray(IMAGES[0]).resize((90, 90)).save(root / "a" / "broken.jpg")
    truncate(root / "a" / "broken.jpg")


def truncated_png(root):
    truncate(root / "b" / "cell0.png")


def text_as_picture(root):
    (root / "a" / "text.jpg").write_text("hello")


def empty_picture(root):
    (root / "a" / "empty.tif").write_bytes(b"")


def class_without_pictures(root):
    (root / "c").mkdir()
    (root / "c" / "readme.md").write_text("soon")


def same_class_twice(root):
    write_folder(root, {"A": 1})


BAD_FOLDERS = [
    (truncated_jpeg, {}, "a/broken.jpg: the picture is truncated or damaged"),
    (truncated_png, {}, "b/cell0.png: the picture is truncated or damaged"),
    (text_as_picture, {}, "a/text.jpg: no picture that can be read; expected JPEG, PNG, BMP or TIFF"),
    (empty_picture, {}, "a/empty.tif: no picture that can be read"),
    (class_without_pictures, {}, r"/c: the class folder holds no pictures \(1 other files\)"),
    (same_class_twice, {}, "/a and .*/A name the same class; merge them"),
    (None, {"class_names": ("a", "bb")}, "/b: no class has this name; did you mean 'bb'?"),
    (None, {"class_names": ("xx", "yy")}, "/a: no class has this name; rename or remove it .data.class_names: xx, yy"),
    (None, {"crop": 18}, "a/cell0.png is 20x16 pixels, smaller than data.crop=18; use data.crop=16"),
    (None, {"group_column": "patient"}, "has neither groups.csv nor index.csv, .*columns file,patient"),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "settings", "message"), BAD_FOLDERS)
def test_bad_folders_are_refused_by_name(tmp_path, harm, settings, message):
    root = write_folder(tmp_path / "cells", {"a": 3, "b": 2})
    if harm:
        harm(root)
    with pytest.raises(UserError, match=f"^{root}.*{message}"):
        load_dataset("folder", root, image_size=8, cache_dir=tmp_path / "cache", **settings)
    assert not list(tmp_path.glob("cache/**/*.npy")) and not list(tmp_path.glob("cache/**/*.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,slide\na/cell0.png,1\n", "has no column patient; expected file,patient"),
        ("file,patient\na/cell0.png,1\n", r"gives no patient for a/cell1.png \(2 such pictures\)"),
        ("file,patient\na/cell0.png,\na/cell1.png,2\nb/cell0.png,3", r"gives no patient for a/cell0.png \(1 such"),
        ("", "has no column file or patient"),
        (b"file,patient\n\xff\xfe\x80,1\n", "cannot be read as a CSV file in UTF-8"),
    ],
)
def test_bad_group_files_are_refused(tmp_path, text, message):
    root = write_folder(tmp_path, {"a": 2, "b": 1})
    (root / "groups.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load_dataset("folder", root, image_size=8, group_column="patient")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, r"holds no class folders \(0 pictures directly in it\); expected one folder of pictures per class"),
        ({"train": 1, "test": 1}, "holds test, train, not classes; .*data.path=.*/train, and data.test_path"),
        ({"only": 1}, r"class_names=\['only'\]: expected two or more"),
    ],
)
def test_folders_of_another_layout_are_explained(tmp_path, counts, message):
    with pytest.raises(UserError, match=message):
        load_dataset("auto", write_folder(tmp_path, counts), image_size=8)


# --- kinds of pictures ---


def grey_ramp() -> np.ndarray:
    return np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (16, 1))


@pytest.mark.parametrize(
    ("picture", "suffix", "tolerance"),
    [
        (Image.fromarray(grey_ramp()), "png", 0),
        (Image.fromarray(grey_ramp()), "bmp", 0),
        (Image.fromarray(grey_ramp()).convert("P"), "png", 0),
        (Image.fromarray(grey_ramp().astype(np.uint16) * 257), "png", 0),
        (Image.fromarray(grey_ramp().astype(np.uint16) * 257), "tif", 0),
        (Image.fromarray(grey_ramp()).convert("RGB").convert("CMYK"), "tif", 1),
        (Image.fromarray(grey_ramp()).convert("RGB").convert("CMYK"), "jpg", 12),
        (Image.fromarray(grey_ramp()).convert("LA"), "png", 0),
        (Image.fromarray(grey_ramp()).convert("RGB"), "tiff", 0),
        (Image.fromarray(grey_ramp()).convert("RGB"), "JPEG", 12),
    ],
)
def test_every_kind_of_picture_becomes_the_same_grey(tmp_path, picture, suffix, tolerance):
    path = tmp_path / f"cell.{suffix}"
    picture.save(path)
    decoded = read_picture(path, 16, None)
    assert decoded.dtype == np.uint8 and decoded.shape == (16, 16, 3)
    assert np.abs(decoded.astype(int) - grey_ramp()[..., None]).max() <= tolerance


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    decoded = read_picture(tmp_path / "a.png", 4, None)
    assert (decoded[:2] == 0).all() and (decoded[2:] == 255).all()


def test_a_transparent_palette_colour_is_laid_on_white(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).convert("P").save(tmp_path / "a.png", transparency=0)
    assert (read_picture(tmp_path / "a.png", 4, None) == 255).all()


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "a.png", 16, None), np.rot90(IMAGES[0], -1))


def test_pixels_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="a.tif: floating-point pixels have no fixed range"):
        read_picture(tmp_path / "a.tif", 4, None)
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(UserError, match="b.tif: 32-bit integer pixels have no fixed range"):
        read_picture(tmp_path / "b.tif", 4, None)


def test_cropped_copies_pass_beside_a_crop(tmp_path):
    """data.crop=200 for the raw cells and a test set that is cropped already go together."""
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png", 16, 200), IMAGES[0])


# --- what to predict, and telling sources apart ---


def test_images_to_predict(tmp_path):
    root = write_folder(tmp_path / "in", {"b": 1, "a/deep": 2})
    images, names = load_images(root, 8)
    assert images.shape == (3, 8, 8, 3) and names == ("a/deep/cell0.png", "a/deep/cell1.png", "b/cell0.png")
    one, name = load_images(root / "b" / "cell0.png", 8)
    assert np.array_equal(one[0], images[2]) and name == ("cell0.png",)
    np.savez(tmp_path / "x.npz", images=IMAGES)
    stored, numbers = load_images(tmp_path / "x.npz", 16)
    assert np.array_equal(stored, IMAGES) and numbers == tuple("012345")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "gone", "gone: no such file or folder"),
        (lambda root: root, "holds no pictures; expected .jpg"),
        (lambda root: text_file(root / "a.txt"), "a.txt is no intact .npz file"),
        (lambda root: write_medmnist(root / "m.npz"), "has no array 'images'; its arrays are: train_images"),
    ],
)
def test_nothing_to_predict(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        load_images(make(tmp_path), 8)


def test_sources_are_told_apart(tmp_path):
    assert detect_source(tmp_path) == "folder"
    assert detect_source(write_npz(tmp_path / "a.npz")) == "npz"
    assert detect_source(write_medmnist(tmp_path / "b.npz")) == "medmnist"
    np.savez(tmp_path / "c.npz", x=IMAGES)
    with pytest.raises(UserError, match="has the arrays x; expected images and labels, or MedMNIST"):
        detect_source(tmp_path / "c.npz")


def test_synthetic_through_the_same_door():
    cells = load_dataset("synthetic", None, image_size=24, seed=3, synthetic_examples=16)
    assert cells.num_examples == 16 and cells.images.shape[1:] == (24, 24, 3)


# --- real cells ---


def test_real_raw_cells_match_the_published_crop(real_data):
    """Central 200x200, bicubic to 96: what the cropped set was made from, but for its JPEG compression."""
    raw = load_dataset("auto", real_data / "pbc_raw", crop=200)
    assert raw.class_names == BLOOD_CELLS and raw.class_counts().tolist() == [6] * 8
    cropped = {path.name: path for path in (real_data / "pbc96").rglob("*.jpg")}
    names = [Path(raw.name_of(i)).name for i in range(raw.num_examples)]
    pairs = [(i, cropped[name]) for i, name in enumerate(names) if name in cropped]
    assert pairs
    for index, path in pairs:
        difference = raw.images[index].astype(float) - read_picture(path, 96, None)
        assert np.abs(difference).mean() < 4


def test_real_npz_and_real_folder_hold_the_same_cells(real_data):
    stored = load_dataset("auto", real_data / "test_set.npz")
    folder = load_dataset("auto", real_data / "pbc96" / "test")
    assert stored.class_counts().tolist() == folder.class_counts().tolist() == [50] * 8
    assert {image.tobytes() for image in stored.images} == {image.tobytes() for image in folder.images}
    with pytest.raises(UserError, match="holds test, train, not classes"):
        load_dataset("auto", real_data / "pbc96")
