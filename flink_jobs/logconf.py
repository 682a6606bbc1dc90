"""How Flink's clusters log: as the configuration of log4j says that comes with Flink, without what nobody may read, and
as JSON where that is set.

    python -m flink_jobs.logconf FOLDER [text|json]

changes the files of a folder with Flink's configuration; it needs nothing but Python.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final, Literal

Kind = Literal["text", "json"]

# It logs the environment of the workers, all of it, with whatever secrets others have put there.
SILENCED: Final = (
    "logger.environment.name = org.apache.beam.runners.fnexecution.control.DefaultJobBundleFactory",
    "logger.environment.level = ERROR",
)
_TEXT: Final = re.compile(
    r"^(appender\.\w+\.layout)\.type *= *PatternLayout\n\1\.pattern *=.*$",
    re.MULTILINE,
)
_JSON: Final = r"\1.type = JsonTemplateLayout" "\n" r"\1.eventTemplateUri = classpath:EcsLayout.json"


def configured(shipped: str, kind: Kind = "text") -> str:
    """A configuration of log4j, from one that comes with Flink; once more, it stays as it is.

    >>> text = "appender.main.layout.type = PatternLayout\\nappender.main.layout.pattern = %d %m%n\\n"
    >>> print(configured(text, "json"))
    appender.main.layout.type = JsonTemplateLayout
    appender.main.layout.eventTemplateUri = classpath:EcsLayout.json
    <BLANKLINE>
    # It would log the environment of the workers, all of it.
    logger.environment.name = org.apache.beam.runners.fnexecution.control.DefaultJobBundleFactory
    logger.environment.level = ERROR
    <BLANKLINE>
    """
    if kind == "json":
        shipped = _TEXT.sub(_JSON, shipped)
    if all(line in shipped for line in SILENCED):
        return shipped
    return "\n".join((shipped, "# It would log the environment of the workers, all of it.", *SILENCED, ""))


def configure(conf: Path, kind: Kind = "text") -> None:
    """Changes all configurations of log4j in a folder."""
    for path in sorted(conf.glob("log4j*.properties")):
        path.write_text(configured(path.read_text(), kind))


if __name__ == "__main__":
    configure(Path(sys.argv[1]), "json" if "json" in sys.argv[2:] else "text")
