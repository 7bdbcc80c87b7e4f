"""What NVFlare's installed templates and our builder make of a site's kit: what a kit is held against."""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from typing import Any, cast

import yaml

from fedscan.federation import kit_files

_WORD = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._@ -]{0,62}$")
_SECTIONS = {"start.sh": "start_cln_sh", "sub_start.sh": "sub_start_sh", "stop_fl.sh": "stop_fl_sh"}


def scripts(site: str, organisation: str) -> dict[str, str]:
    """The kit's start scripts by file name. Raises ValueError where a name could be more than a word to a shell."""
    if not _WORD.fullmatch(site) or not _WORD.fullmatch(organisation):
        raise ValueError("the site's or organisation's name has characters that do not belong into a script")
    values = {
        "type": "client",
        "app_name": "client_train",
        "cln_uid": f"uid={site}",
        "org_name": organisation,
        "config_folder": "config",
    }
    return {name: kit_files.start_script(_section(section, values)) for name, section in _SECTIONS.items()}


def site_resources() -> dict[str, Any]:
    """local/resources.json as our builder makes it, for a machine without GPU."""
    values = {"class_allow_list": "[]", "allow_log_streaming": "false", "num_gpus": "0", "gpu_mem": "0"}
    return kit_files.site_resources(json.loads(_section("local_client_resources", values)))


def log_config() -> dict[str, Any]:
    """local/log_config.json as our builder makes it."""
    return kit_files.log_config(json.loads(_section("log_config", {})))


def _section(name: str, values: dict[str, str]) -> str:
    text = _sections()[name]
    for key, value in values.items():
        text = text.replace("{~~" + key + "~~}", value)
    return text


@functools.cache
def _sections() -> dict[str, str]:
    template = resources.files("nvflare.lighter.templates").joinpath("master_template.yml").read_text(encoding="utf-8")
    return cast(dict[str, str], yaml.safe_load(template))
