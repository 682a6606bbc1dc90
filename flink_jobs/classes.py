"""An archive of the Java classes that a job needs, as the JVM has them in memory once it has loaded them.

A start of Flink loads and checks some twenty thousand classes, which takes longer than all else of it. From the
archive the JVM maps them into its memory. It notices by itself where the archive does not fit its version or the jars,
and then loads the classes as ever.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

# It says on standard output that an archive does not fit; that is nothing a user has to know.
_QUIET: Final = ("-Xlog:cds=off", "-Xlog:cds+dynamic=off", "-Xlog:class+path=off")


def archive_path(java_home: str) -> Path:
    """Where the archive is: with the jars, in the Python environment, one for each Java and Flink."""
    kind = f"{Path(java_home).resolve()} {importlib.metadata.version('apache-flink')}"
    return Path(sys.prefix) / "share" / "freshet" / f"{hashlib.sha256(kind.encode()).hexdigest()[:16]}.jsa"


def options(java_home: str) -> Sequence[str]:
    """What tells a JVM to use the archive; nothing where there is none."""
    path = archive_path(java_home)
    return (f"-XX:SharedArchiveFile={path}", "-Xshare:auto", *_QUIET) if path.exists() else ()


def make_archive(java_home: str, jvm: Sequence[str], work: Callable[[], object]) -> Path:
    """Archives the classes that some work loads in the JVM that it starts, and ends that JVM.

    Parameters
    ----------
    jvm
        Options of the JVM: the archive fits one with the same collector only.
    work
        Starts the JVM and runs a job; no JVM has been started before.

    Raises
    ------
    OSError
        If the environment's folder can't be written.
    """
    path = archive_path(java_home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        written = Path(name) / path.name
        os.environ["JVM_ARGS"] = " ".join((*jvm, f"-XX:ArchiveClassesAtExit={written}", *_QUIET))
        work()
        _end_jvm()
        written.replace(path)  # at once: others may be about to use it
    return path


def _end_jvm() -> None:
    """Ends the JVM of this process, and waits until it has written what it writes at its end."""
    from pyflink.java_gateway import get_gateway

    gateway = get_gateway()
    number = gateway.jvm.ProcessHandle.current().pid()
    gateway.shutdown()
    os.kill(number, signal.SIGTERM)
    os.waitpid(number, 0)
