"""Where this folder is on PYTHONPATH: the process is one of other software, as FEDSCAN_TEST_SOFTWARE says (JSON).

Keys: `nvflare`, `fedscan` (versions that are at work), `protocol`, and `installed` (what the disk says of a package).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

OTHER: dict[str, Any] = json.loads(os.environ.get("FEDSCAN_TEST_SOFTWARE", "{}"))


def _change(module: ModuleType) -> None:
    if module.__name__ in ("nvflare", "fedscan"):
        module.__version__ = OTHER.get(module.__name__, module.__version__)  # type: ignore[attr-defined]
    elif "protocol" in OTHER:
        module.PROTOCOL = OTHER["protocol"]  # type: ignore[attr-defined]


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name not in ("nvflare", "fedscan", "fedscan.federation.versions"):
            return None
        spec = next(
            (
                found
                for finder in sys.meta_path
                if finder is not self and (found := finder.find_spec(name, path, target)) is not None
            ),
            None,
        )
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _change(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if OTHER:
    _told = importlib.metadata.version
    importlib.metadata.version = lambda name: OTHER.get("installed", {}).get(name) or _told(name)
    sys.meta_path.insert(0, _Finder())
