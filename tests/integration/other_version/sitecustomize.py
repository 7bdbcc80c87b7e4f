"""Where this folder is on PYTHONPATH: the process is one of other software, as FEDSCAN_TEST_SOFTWARE says (JSON).

Keys: `nvflare`, `fedscan` (versions that are at work), `protocol`, and `installed` (what the disk says of a package).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "changing"))
from change_on_import import on_import

OTHER: dict[str, Any] = json.loads(os.environ.get("FEDSCAN_TEST_SOFTWARE", "{}"))


def _change(module: ModuleType) -> None:
    if module.__name__ in ("nvflare", "fedscan"):
        module.__version__ = OTHER.get(module.__name__, module.__version__)  # type: ignore[attr-defined]
    elif "protocol" in OTHER:
        module.PROTOCOL = OTHER["protocol"]  # type: ignore[attr-defined]


if OTHER:
    _told = importlib.metadata.version
    importlib.metadata.version = lambda name: OTHER.get("installed", {}).get(name) or _told(name)
    on_import(dict.fromkeys(("nvflare", "fedscan", "fedscan.federation.versions"), _change))
