"""``fedarena data inspect``: everything that is wrong is found, and said in one go."""

import io

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from orchestrator.data.command import data, show_report
from scenarios.data.catalogue import open_draft
from scenarios.data.report import find_repeats, inspect_draft


def save(path, seed, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def sound(tmp_path):
    """Two classes of 6 training and 3 test pictures each."""
    root = tmp_path / "pictures"
    for label, name in enumerate(("cat", "dog")):
        for number in range(9):
            part = "train" if number < 6 else "test"
            save(root / part / name / f"{number}.png", 10 * label + number)
    return root


def inspect(*arguments):
    """Exit status and everything that was printed, as one line of words."""
    done = CliRunner().invoke(data, ["inspect", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.output.split())


def test_sound_data_are_described_and_accepted(sound):
    status, shown = inspect(sound)
    assert status == 0
    for part in (
        "pictures: 18 images, 2 classes",
        "rows per split train 12, test 6",
        "rows per class min 9, median 9, max 9",
        "sizes 8 x 8 (18)",
        "seen by emoji_clip none",
        "a run accepts these data",
    ):
        assert part in shown


def test_every_fault_is_found_in_one_go(sound):
    (sound / "train" / "cat" / "0.png").write_bytes(b"not an image")
    (sound / "test" / "dog" / "8.png").write_bytes(b"")
    save(sound / "train" / "dog" / "leak.png", 16)
    save(sound / "train" / "cat" / "again.png", 1)
    save(sound / "train" / "cat" / "mislabelled.png", 12, 8)
    save(sound / "train" / "ant" / "only.png", 99, 5)
    status, shown = inspect(sound)
    assert status == 1
    for part in (
        "copies within a split train 2",
        "contents in 2 splits 1",
        "contents in 2 classes 1",
        "classes with < 5 rows ant (1)",
        "2 cannot be used",
        "train/cat/0.png",
        "test/dog/8.png",
        "leak.png (dog)",
        "mislabelled.png (cat)",
        "sides from 5 to 8 px",
        "refuse these data: 2 images cannot be used",
        "refuse these data: training and test rows have contents in common",
    ):
        assert part in shown


def test_a_copy_across_splits_is_listed_and_refused(sound):
    save(sound / "train" / "dog" / "leak.png", 16)
    status, shown = inspect(sound)
    assert status == 1
    assert "1 in more than one split" in shown
    assert "test/dog/6.png (dog)" in shown
    assert "have 1 images in common" in shown
    assert inspect(f"{sound}?duplicates=drop")[0] == 0


def test_more_than_ten_broken_files_are_counted(sound):
    for path in sorted(sound.rglob("*.png"))[:14]:
        path.write_bytes(b"x")
    status, shown = inspect(sound)
    assert status == 1
    assert "14 cannot be used" in shown
    assert "and 4 more" in shown


def test_clients_and_domains_are_counted(tmp_path):
    for number in range(40):
        save(tmp_path / f"user {number:02d}" / "photo" / "ab"[number % 2] / "x.png", number)
    status, shown = inspect(f"{tmp_path}?levels=client,domain,class")
    assert status == 0
    assert "40 clients" in shown
    assert "1 domain" in shown
    assert "min 1, median 1, max 1" in shown


def test_an_image_that_is_not_the_recorded_one_is_broken(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    save(tmp_path / "a.png", 1)
    encoded = (tmp_path / "a.png").read_bytes()
    columns = {"image": [encoded], "label": ["a"], "sha256": ["0" * 64]}
    pq.write_table(pa.table(columns), tmp_path / "own.parquet")
    status, shown = inspect(tmp_path / "own.parquet")
    assert status == 1
    assert "not the image whose content hash was recorded" in shown


def test_names_with_brackets_are_shown_as_they_are(tmp_path):
    for number, name in enumerate(("[red]", "[/]")):
        (tmp_path / str(number)).mkdir()
        save(tmp_path / "set" / "a" / f"{name.replace('/', '.')}.png", number)
        save(tmp_path / "set" / name.replace("/", ".") / "x.png", 5 + number)
    stream = io.StringIO()
    report = inspect_draft(open_draft(str(tmp_path / "set")))
    show_report(Console(file=stream, width=200), report, ["[bold]no[/]"])
    assert "[red]" in stream.getvalue()
    assert "[bold]no[/]" in stream.getvalue()


def test_repeats_are_those_of_a_plain_count():
    rng = np.random.default_rng(0)
    contents, split, labels = (rng.integers(0, most, 200) for most in (30, 2, 3))
    sound = rng.random(200) < 0.9
    hashes = np.zeros((200, 32), dtype=np.uint8)
    hashes[:, 3] = contents
    found = find_repeats(hashes, sound, split, [str(label) for label in labels])
    rows = zip(contents.tolist(), split.tolist(), labels.tolist(), sound, strict=True)
    kept = [(content, part, label) for content, part, label, is_sound in rows if is_sound]
    for code, name in ((0, "train"), (1, "test")):
        mine = [c for c, s, _ in kept if s == code]
        assert found.within[name] == len(mine) - len(set(mine))
    both = {c for c, s, _ in kept if s == 0} & {c for c, s, _ in kept if s == 1}
    assert {int(contents[left]) for left, _ in found.across} == both
    assert all(split[left] != split[right] for left, right in found.across)
    several = {c for c in range(30) if len({k for d, _, k in kept if d == c}) > 1}
    assert {int(contents[left]) for left, _ in found.mislabelled} == several
