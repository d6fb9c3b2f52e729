"""A run done again from its capsule: the same losses and rows, and what differs is said."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3ta_platform.reproduce import rows_of, sameness
from s3ta_platform.storage import open_storage

Command = Callable[..., Any]


def test_a_run_that_is_done_again_has_the_same_losses_and_rows(
    tiny: Path, s3ta: Command, tmp_path: Path
) -> None:
    root, into = tmp_path / "results", tmp_path / "again"
    assert s3ta("run", tiny, f"results={root}", "tracking.store=none").code == 0
    done = s3ta("reproduce", "tiny", "--results", root, "--into", into, "--here")
    assert done.code == 0, done.output
    assert "S3TA-1: the same. Losses 4 of 4; model the same; files of rows 3 of 3." in done.output
    assert "S3TA-2: the same." in done.output

    # The comparison is of what is stored, so it sees what was changed.
    first, second = open_storage(str(root)), open_storage(str(into / "results"))
    key = sorted(folder.name for folder in (root / "trials").iterdir())[0]
    assert sameness(first, second, key, "it").whole
    file = rows_of(second, key)[0]
    (into / "results" / file).unlink()
    lost = sameness(first, second, key, "it")
    assert (lost.whole, lost.same_losses, lost.files, lost.same_files) == (False, 4, 3, 2)
    shutil.rmtree(into / "results" / "trials" / key)
    untrained = sameness(first, second, key, "it")
    assert (untrained.same_losses, untrained.losses, untrained.same_model) == (0, 4, False)
