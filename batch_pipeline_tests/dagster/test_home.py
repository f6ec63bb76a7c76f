"""One Dagster home for every door, created once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance import InstanceRef

from batch_pipeline.home import HomeError, ensure_home
from batch_pipeline.settings import load_settings
from batch_pipeline_tests.dagster.installation import Installation

_OPEN = """
import sys
from batch_pipeline.home import ensure_home
from batch_pipeline.settings import load_settings
ensure_home(load_settings())
import dagster as dg
with dg.DagsterInstance.get() as instance:
    print(instance.get_runs_count(), len(instance.all_instigator_state()))
"""

_PLAIN = """
import os, sys
from dagster._core.instance import DagsterInstance, InstanceRef
home = sys.argv[1]
# What plain `dagster dev` does without DAGSTER_HOME: a temporary home, and ./dagster.yaml.
with DagsterInstance.from_ref(InstanceRef.from_dir(home, config_dir=os.getcwd())) as instance:
    print(instance.get_runs_count(), len(instance.all_instigator_state()))
"""


def test_two_doors_and_a_plain_dagster_dev_open_a_fresh_home_at_once(
    here: Installation, tmp_path: Path
) -> None:
    root = Path(__file__).resolve().parents[2]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    commands = [[_OPEN], [_OPEN], [_PLAIN, str(temporary)], [_PLAIN, str(temporary)]]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", *command],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert output.split() == ["0", "0"]


def test_a_plain_dagster_dev_sees_the_runs_of_the_doors(
    here: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = here.run(here.table(5))
    root = Path(__file__).resolve().parents[2]
    other_home = tmp_path / "temporary"
    other_home.mkdir()
    ref = InstanceRef.from_dir(str(other_home), config_dir=str(root))

    with dg.DagsterInstance.from_ref(ref) as instance:
        assert instance.get_run_by_id(result.run_id) is not None


def test_folders_are_closed_to_others_and_the_second_call_changes_nothing(
    here: Installation,
) -> None:
    settings = load_settings()
    home = ensure_home(settings)
    before = (home / ".ready").stat().st_mtime_ns

    assert ensure_home(settings) == home
    assert os.environ["DAGSTER_HOME"] == str(home)
    assert (home / ".ready").stat().st_mtime_ns == before
    for folder in (home, settings.inbox, settings.outputs):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_dagster_yaml_of_the_users_own_is_kept(here: Installation) -> None:
    settings = load_settings()
    home = ensure_home(settings)
    own = (
        (home / "dagster.yaml")
        .read_text()
        .replace("max_concurrent_runs: 10", "max_concurrent_runs: 3")
    )
    (home / "dagster.yaml").write_text(own.split("\n", 2)[2])
    (home / ".ready").unlink()

    ensure_home(settings)

    assert "max_concurrent_runs: 3" in (home / "dagster.yaml").read_text()


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BATCH_PIPELINE_DATA", str(tmp_path / "file" / "data"))

    with pytest.raises(HomeError, match="BATCH_PIPELINE_DATA"):
        ensure_home(load_settings())


def test_reading_doors_do_not_import_dagster(here: Installation) -> None:
    ensure_home(load_settings())
    code = (
        "import sys\n"
        "from batch_pipeline.home import ensure_home\n"
        "from batch_pipeline.settings import load_settings\n"
        "import batch_pipeline.doors\n"
        "ensure_home(load_settings())\n"
        "assert 'dagster' not in sys.modules and 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
