"""Natural adversarial examples (ImageNet-A) from their folder layout to Parquet.

The unpacked archive has a folder per class, named by its WordNet id, with the photos of that class.
Label j is the j-th of these ids in order; which of ImageNet's 1000 classes it is, the group
analyze: imagenet_a says.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from s3ta.errors import UserError
from s3ta_platform.data import write_parquet
from s3ta_platform.data_files import first_line
from s3ta_platform.image_files import open_image

SOURCE = (
    "ImageNet-A, Hendrycks et al., Natural Adversarial Examples, CVPR 2021, "
    "https://github.com/hendrycks/natural-adv-examples; the photos are their owners'"
)
CLASSES, IMAGES = 200, 7500
ENDINGS = (".jpg", ".jpeg", ".png")
_WORDNET = re.compile(r"n\d{8}")

Progress = Callable[[str, int, int], None]
"""Called with a file's name, how many images of it are done, of how many."""


def import_imagenet_a(
    source: Path,
    destination: Path,
    progress: Progress,
    *,
    classes: int = CLASSES,
    images: int = IMAGES,
) -> Path:
    """Write test.parquet into `destination`: files as they are, ids by class and file name.

    UserError unless there are as many classes and images as there should be, all readable.
    """
    folders = _folders(source, classes)
    files = [(label, file) for label, folder in enumerate(folders) for file in _photos(folder)]
    if len(files) != images:
        raise UserError(
            f"{source} has {len(files):,} photos in its {classes} classes: ImageNet-A has "
            f"{images:,}. Unpack the whole archive, and nothing else, into one folder."
        )
    path = destination / "test.parquet"
    names = [folder.name for folder in folders]
    labels = [label for label, _ in files]
    content = _read([file for _, file in files], progress)
    write_parquet(path, content, labels, range(len(files)), names, source=SOURCE)
    return path


def _folders(source: Path, classes: int) -> list[Path]:
    """A folder per class, sorted; the archive's own folder may be named, or the one around it."""
    for folder in (source, source / "imagenet-a"):
        if folder.is_dir():
            found = sorted(f for f in folder.iterdir() if f.is_dir() and _WORDNET.fullmatch(f.name))
            if len(found) == classes:
                return found
    raise UserError(
        f"{str(source)!r} is not ImageNet-A's folder: it must hold {classes} folders with names "
        "such as n01498041. Name the folder into which imagenet-a.tar was unpacked."
    )


def _photos(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in ENDINGS)


def _read(files: Sequence[Path], progress: Progress) -> Iterator[bytes]:
    for done, file in enumerate(files, start=1):
        try:
            encoded = file.read_bytes()
            open_image(encoded).close()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file} cannot be read as a photo ({first_line(error)}). Unpack the archive anew."
            ) from error
        yield encoded
        if done % 100 == 0 or done == len(files):
            progress("test.parquet", done, len(files))
