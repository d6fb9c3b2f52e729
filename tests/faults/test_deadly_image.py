"""An image that ends every worker that attacks it is found and told, and all else is done."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from drill import Run, ended, expect_same, final_rows, planned, stored

from s3ta_platform.jobs import open_images

pytestmark = pytest.mark.faults

ATTEMPTS = 2
CUTS = 3
"""Its shard has 4 images: it is tried whole, in halves, and alone."""


def test_a_deadly_image_is_put_aside_with_its_error_and_all_others_are_as_ever(
    file: Path, reference: pa.Table, tmp_path: Path
) -> None:
    settings = ["evaluate.images=12", f"cluster.attempts={ATTEMPTS}"]
    root, steps = tmp_path / "r", tmp_path / "steps"
    _, job, (_, shard) = planned(file, root, *settings)
    assert len(shard.image_ids) == 4
    deadly = shard.image_ids[2]
    images, _ = open_images(job.data.test, job.data, job.model).read([deadly])
    np.save(tmp_path / "deadly.npy", images[0].astype(np.float32) / 255)
    faults = {"SHAKY_DEADLY": tmp_path / "deadly.npy", "SHAKY_LOG": steps}

    with ended(Run(file, root, *settings, **faults)) as run:
        printed = " ".join(run.finish().split())
    deaths = [line for line in steps.read_text().splitlines() if line.endswith("died")]
    assert len(deaths) == CUTS * ATTEMPTS, "retries are bounded"
    said = (
        "1 of 12 images ended every worker that tried them and count as not robust "
        f"(images {deadly}: the worker died"
    )
    assert said in printed
    page = " ".join((root / "sweeps" / "drill" / "report.html").read_text().split())
    assert said in page
    assert not list(root.glob("snapshots/*")), "nothing is left of the shards that were cut"
    assert not list(root.glob("leases/*"))

    found = final_rows(file, root, *settings)
    lost = pc.equal(found["image_id"], deadly)
    assert set(found.filter(lost)["correct"].to_pylist()) == {False}
    assert all(
        "the worker died" in error for error in found.filter(lost)["quarantined"].to_pylist()
    )
    others = found.filter(pc.invert(lost))
    assert len(others) == 11 * 2
    expect_same(others, reference)

    before, begun = stored(root), steps.stat().st_size
    with ended(Run(file, root, *settings, **faults)) as again:
        assert "Nothing to compute" in again.finish()
    assert stored(root) == before
    lines = steps.read_text()[begun:].splitlines()
    assert {line.split()[0] for line in lines} == {str(again.process.pid)}, "no worker was started"
