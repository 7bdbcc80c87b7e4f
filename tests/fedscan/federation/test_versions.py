"""Which software may work together, as each end judges itself; two real ends: tests/integration/test_versions.py."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import nvflare
import pytest
import torch

import fedscan
from fedscan.federation import kept_answer, site_machine, versions
from fedscan.federation.messages import LedgerHead, MessageError, PrivateAnswer, parse_answer, parse_task
from fedscan.federation.site_job import refuse_at_its_time
from fedscan.federation.versions import PROTOCOL, VersionError


def test_what_is_installed_here_may_take_part() -> None:
    assert versions.unfit() == ()
    versions.ensure_fit()
    [found] = site_machine._software()
    assert (found.name, found.level) == ("software", "ok")
    assert nvflare.__version__ in found.text


def test_the_tested_nvflare_is_the_one_that_is_pinned(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert [f"nvflare=={version}" for version in versions.TESTED_NVFLARE] == [
        line for line in project["dependencies"] if line.startswith("nvflare")
    ]
    assert project["version"] == fedscan.__version__
    assert f"protocol {PROTOCOL}" in (repository / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("version", ["2.8.0", "2.9.1", "2.10.0", "", "2.9.0+local"])
def test_another_nvflare_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    told = importlib.metadata.version
    monkeypatch.setattr(nvflare, "__version__", version)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "nvflare" else told(name))
    [reason] = versions.unfit()
    assert reason.startswith(f"NVFlare {version} is at work, Fedscan {fedscan.__version__} was tested with 2.9.0")
    with pytest.raises(VersionError, match="tested with"):
        versions.ensure_fit()
    [found] = site_machine._software()
    assert (found.level, found.text) == ("error", reason)


@pytest.mark.parametrize("package", ["fedscan", "nvflare"])
def test_an_upgrade_without_a_restart_is_refused(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    told = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == package else told(name))
    [reason] = versions.unfit()
    assert "is at work and 9.9 is installed: restart" in reason


def test_a_package_without_metadata_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", gone)
    assert len(versions.unfit()) == 2
    assert all("nobody can tell its version" in reason for reason in versions.unfit())


@pytest.mark.parametrize("parse", [parse_task, parse_answer])
@pytest.mark.parametrize("record", [{}, {"round_number": 0}, None, [], "protocol", {"protocol": PROTOCOL}])
def test_a_record_that_names_no_protocol_or_ours_is_judged_by_its_form(parse: object, record: object) -> None:
    with pytest.raises(MessageError, match="malformed") as caught:
        parse(record)  # type: ignore[operator]
    assert type(caught.value) is MessageError


def test_a_site_that_is_not_fit_answers_with_the_constant_of_that() -> None:
    assert refuse_at_its_time(None, lambda: False, 0.0, by_version=True) == versions.REFUSED_BY_VERSION


@pytest.mark.parametrize("protocol", [PROTOCOL, PROTOCOL - 1])
def test_an_answer_that_another_version_kept_does_not_go_out_again(tmp_path: Path, protocol: int) -> None:
    answer = PrivateAnswer(
        protocol=protocol,
        plan_digest="1" * 64,
        run_id="2" * 32,
        round_number=0,
        model_digest="3" * 64,
        weight=1.0,
        ledger=LedgerHead(count=1, mac="4" * 64),
    )
    kept_answer.keep(tmp_path, kept_answer.Kept(answer, 1, {"a": torch.zeros(2)}), "2100-01-01T00:00:00+00:00")
    assert (kept_answer.find(tmp_path) is not None) == (protocol == PROTOCOL)
