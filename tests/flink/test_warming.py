"""The archive of Java's classes: a start of Flink takes them from there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flink_jobs.classes import archive_path, options
from flink_jobs.flink import find_java

_START = """
import sys
from pathlib import Path
from flink_jobs.flink import prepare_process
prepare_process(Path(sys.argv[1]))
from pyflink.java_gateway import get_gateway
get_gateway().jvm.Class.forName("org.apache.flink.runtime.minicluster.MiniCluster")
"""


def test_flink_starts_from_the_archive(tmp_path: Path) -> None:
    java = find_java()
    if not archive_path(java).exists():  # `make` has made it, pip has not
        subprocess.run([Path(sys.executable).parent / "freshet", "warm-up"], check=True)
    log = tmp_path / "classes.log"
    words = " ".join(["-XX:+UseParallelGC", *options(java), f"-Xlog:class+load:file={log}"])
    subprocess.run(
        [sys.executable, "-c", _START, str(tmp_path)], env={"PATH": "/usr/bin:/bin", "JVM_ARGS": words}, check=True
    )
    loaded = [line for line in log.read_text().splitlines() if " org.apache.flink." in line]
    archived = [line for line in loaded if "shared objects file (top)" in line]
    assert len(loaded) > 100 and len(archived) > len(loaded) * 0.9
