"""A site of which the software does what it likes: its kit has neither guard nor gate, which would stop most of it."""

from __future__ import annotations

import json

from fedscan.federation import kits


def weaken(federation: kits.Federation, site: str) -> None:
    """Before it starts."""
    local = federation.kit(site) / "local"
    resources = json.loads((local / "resources.json").read_text())
    resources["components"] = [c for c in resources["components"] if "fedscan" not in c["path"]]
    privacy = json.loads((local / "privacy.json").read_text())
    privacy["components"] = []
    for scope in privacy["scopes"]:
        scope["task_result_filters"] = []
    (local / "resources.json").write_text(json.dumps(resources))
    (local / "privacy.json").write_text(json.dumps(privacy))
