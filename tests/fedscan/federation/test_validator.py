"""The site's judgement at deployment, on app folders really signed under a provisioned federation's root."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from nvflare.lighter.utils import load_private_key_file, sign_folders, verify_folder_signature_and_get_signers

from fedscan.federation import kits, revocation
from fedscan.federation.kits import Federation
from fedscan.federation.messages import REFUSED_BY_POLICY
from fedscan.federation.places import ServerPlaces, SitePlaces
from fedscan.federation.revocation import Revocations
from fedscan.federation.submitter import verified_submitter
from fedscan.federation.validator import SiteValidator
from fedscan.plan import Submission
from fedscan.privacy.approvals import Approvals

NAME = "hosp-a"
CONFIG = Path("config") / "config_fed_client.json"
Config = dict[str, Any]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Real certificates: a site, a lead, and (from another root) a stranger."""
    folder = tmp_path_factory.mktemp("federation")
    places = SitePlaces(site_file=folder / "site.json")
    server = ServerPlaces(run_folder=str(folder), shelf=folder)
    kits.provision(folder / "other", {NAME: places}, server)
    return kits.provision(folder / "ours", {NAME: places}, server)


class Kit:
    """The site's kit, with a job's app folder to judge."""

    def __init__(self, folder: Path, federation: Federation, hospital: Any, template: Path) -> None:
        self.folder, self.federation, self.hospital = folder, federation, hospital
        shutil.copytree(federation.kit(NAME), folder, symlinks=True)
        (folder / "local" / "site.json").unlink()
        (folder / "local" / "site.json").symlink_to(hospital.site.path)
        self.config: Config = json.loads((template / "app_client" / CONFIG).read_text())
        self.config["plan"] = hospital.plan.model_dump(mode="json")
        self.config["submission"] = Submission.new().model_dump(mode="json")
        self.number = 0

    def app(self) -> Path:
        """A new app folder with this configuration, not yet signed."""
        self.number += 1
        app = self.folder / f"job-{self.number}" / f"app_{NAME}"
        (app / "config").mkdir(parents=True)
        (app / CONFIG).write_text(json.dumps(self.config))
        return app

    def sign(self, app: Path, federation: Federation | None = None, who: str = kits.LEAD) -> None:
        startup = (federation or self.federation).kit(who) / "startup"
        sign_folders(str(app), load_private_key_file(startup / "client.key"), str(startup / "client.crt"))

    def says(self, app: Path) -> str:
        text, properties = SiteValidator().validate(str(app))
        assert properties == {}
        return text

    def judge(self) -> str:
        app = self.app()
        self.sign(app)
        return self.says(app)

    def reasons(self) -> str:
        return (self.hospital.setup.state / "refusals.jsonl").read_text()


@pytest.fixture
def kit(tmp_path: Path, federation: Federation, new_hospital: Callable[..., Any], repository: Path) -> Kit:
    return Kit(tmp_path / "kit", federation, new_hospital(), repository / "jobs" / "ct_fedavg")


def test_a_job_within_policy_is_taken_once(kit: Kit) -> None:
    app = kit.app()
    kit.sign(app)
    assert kit.says(app) == ""
    assert kit.says(app) == REFUSED_BY_POLICY, "a replayed job"
    assert "nonce was used before" in kit.reasons()
    kit.config["submission"] = Submission.new().model_dump(mode="json")
    assert kit.judge() == "", "a new submission of a known plan"


def test_the_submitter_is_who_signed_under_the_sites_own_root(kit: Kit, federation: Federation) -> None:
    app = kit.app()
    kit.sign(app)
    root = kit.folder / "startup" / "rootCA.pem"
    submitter = verified_submitter(app, root)
    assert submitter is not None
    assert submitter.name == kits.LEAD
    assert len(submitter.fingerprint) == 64
    stranger = federation.folder.parent / "other" / kits.PROJECT / "prod_00" / kits.LEAD / "startup"
    shutil.copy(stranger / "client.crt", app / "config" / ".__nvfl_submitter.crt")
    assert verified_submitter(app, root) is None, "another certificate in one folder"


def _unsigned(kit: Kit, app: Path) -> None:
    pass


def _changed_after_signing(kit: Kit, app: Path) -> None:
    kit.sign(app)
    (app / CONFIG).write_text((app / CONFIG).read_text() + " ")


def _signed_by_a_stranger(kit: Kit, app: Path) -> None:
    other = Federation(kit.federation.folder.parent / "other", (NAME,))
    kit.sign(app, other)


def _signed_by_a_site(kit: Kit, app: Path) -> None:
    """Under the same root; NVFlare takes it for a signature as good as a lead's."""
    kit.sign(app, who=NAME)


def _signed_by_a_member(kit: Kit, app: Path) -> None:
    state = json.loads((kit.federation.folder / kits.PROJECT / "state" / "cert.json").read_text())
    root_key: Any = serialization.load_pem_private_key(state["root_pri_key"].encode(), password=None)
    lead = x509.load_pem_x509_certificate(state[kits.LEAD]["cert"].encode())
    names = [a for a in lead.subject if a.oid != NameOID.UNSTRUCTURED_NAME]
    subject = x509.Name([*names, x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, "member")])
    key = rsa.generate_private_key(65537, 2048)
    builder = (
        x509.CertificateBuilder(lead.issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(lead.not_valid_before_utc)
        .not_valid_after(lead.not_valid_after_utc)
    )
    made = kit.folder / "member.crt"
    made.write_bytes(builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    sign_folders(str(app), key, str(made))
    verified, signers = verify_folder_signature_and_get_signers(str(app), str(kit.folder / "startup" / "rootCA.pem"))
    assert (verified, signers[0][2]) == (True, "member")


def _certificate_swapped(kit: Kit, app: Path) -> None:
    kit.sign(app)
    other = Federation(kit.federation.folder.parent / "other", (NAME,)).kit(kits.LEAD) / "startup" / "client.crt"
    for place in (app, app / "config"):
        shutil.copy(other, place / ".__nvfl_submitter.crt")


def _code(kit: Kit, app: Path) -> None:
    (app / "custom").mkdir()
    (app / "custom" / "evil.py").write_text("print('hello')")
    kit.sign(app)


def _second_form_of_the_config(kit: Kit, app: Path) -> None:
    (app / "config" / "config_fed_client.yml").write_text("{}")
    kit.sign(app)


def _link(kit: Kit, app: Path) -> None:
    kit.sign(app)
    (app / "config" / "more").symlink_to("/etc")


def _no_config(kit: Kit, app: Path) -> None:
    (app / CONFIG).unlink()
    kit.sign(app)


def _no_json(kit: Kit, app: Path) -> None:
    (app / CONFIG).write_text('{"plan": {}, "plan": {}}')
    kit.sign(app)


@pytest.mark.parametrize(
    "attack",
    [
        _unsigned,
        _changed_after_signing,
        _signed_by_a_stranger,
        _signed_by_a_site,
        _signed_by_a_member,
        _certificate_swapped,
        _code,
        _second_form_of_the_config,
        _link,
        _no_config,
        _no_json,
    ],
    ids=lambda f: f.__name__,
)
def test_an_app_folder_that_is_not_the_one_form_signed_whole_is_refused(
    kit: Kit, attack: Callable[[Kit, Path], None]
) -> None:
    app = kit.app()
    attack(kit, app)
    assert kit.says(app) == REFUSED_BY_POLICY
    assert kit.reasons()
    assert not list((kit.hospital.setup.state / "nonces").glob(f"{kit.config['submission']['nonce']}*"))


FILTER = [
    {"tasks": ["train"], "filters": [{"path": "nvflare.app_common.filters.exclude_vars.ExcludeVars", "args": {}}]}
]
CONFIGS: dict[str, Callable[[Config], object]] = {
    "DP off": lambda c: c["plan"].update(privacy=None, weighting="examples"),
    "too little noise": lambda c: c["plan"]["privacy"].update(noise_multiplier=0.1),
    "a wrong delta": lambda c: c["plan"]["privacy"].update(delta=5e-3),
    "image-level unit": lambda c: c["plan"]["privacy"].update(unit="image"),
    "a site without sampling": lambda c: c["plan"]["privacy"].update(
        sites={"hosp-b": c["plan"]["privacy"]["sites"][NAME]}
    ),
    "a learning rate beyond the bound": lambda c: c["plan"]["training"].update(learning_rate=1e6),
    "an infinite one": lambda c: c["plan"]["training"].update(learning_rate=float("inf")),
    "a field nobody knows": lambda c: c["plan"].update(debug=True),
    "a variable": lambda c: c["plan"].update(name="{SITE_NAME}"),
    "a variable for a number": lambda c: c["plan"].update(rounds="{ROUNDS}"),
    "more rounds than budget": lambda c: c["plan"].update(rounds=5000),
    "another executor": lambda c: c["executors"][0]["executor"].update(path="nvflare.app_common.executors.x.Y"),
    "an executor with arguments": lambda c: c["executors"][0]["executor"].update(args={"store": "/data"}),
    "another task": lambda c: c["executors"][0].update(tasks=["train", "export"]),
    "every task": lambda c: c["executors"][0].update(tasks=["*"]),
    "a result filter": lambda c: c.update(task_result_filters=FILTER),
    "a data filter": lambda c: c.update(task_data_filters=FILTER),
    "an event handler": lambda c: c["components"].append({"id": "spy", "path": "fedscan.federation.job.spy.Spy"}),
    "a handler list": lambda c: c.update(handlers=[{"id": "spy", "path": "os.system"}]),
    "a launcher": lambda c: c.update(launcher={"path": "nvflare.app_common.launchers.x.Y"}),
    "a parameterised item": lambda c: c.update({"@executors": []}),
    "no submission": lambda c: c.pop("submission"),
    "an expired submission": lambda c: c["submission"].update(expires="2020-01-01T00:00:00+00:00"),
    "a start beyond the end": lambda c: c["submission"].update(start_round=3),
    "no plan": lambda c: c.pop("plan"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_crafted_configuration_is_refused_with_the_constant_and_kept_for_people(kit: Kit, name: str) -> None:
    CONFIGS[name](kit.config)
    assert kit.judge() == REFUSED_BY_POLICY
    assert json.loads(kit.reasons().splitlines()[0])["reasons"]
    kept = list(Approvals(kit.hospital.setup.state, kit.hospital.site.key()).refused())
    assert len(kept) == 1
    assert (
        not list((kit.hospital.setup.state / "nonces").glob(f"{kit.config['submission']['nonce']}*"))
        if ("submission" in kit.config)
        else True
    )


def test_a_revoked_submitter_is_refused(kit: Kit, tmp_path: Path) -> None:
    state = kit.federation.folder / kits.PROJECT / "state"
    revocation.make(state, [kits.LEAD], tmp_path / "list")
    held = Revocations(kit.hospital.setup.state / revocation.FILE, kit.folder / "startup" / "rootCA.pem")
    held.lay((tmp_path / "list").read_text())
    assert kit.judge() == REFUSED_BY_POLICY
    assert "revoked by list 1" in kit.reasons()
    (kit.hospital.setup.state / revocation.FILE).write_text("damaged")
    assert kit.judge() == REFUSED_BY_POLICY
    (kit.hospital.setup.state / revocation.FILE).unlink()
    assert kit.judge() == ""


def test_submitters_that_the_policy_does_not_name_are_refused(kit: Kit) -> None:
    policy = kit.hospital.site.file.policy
    policy.write_text(json.dumps(json.loads(policy.read_text()) | {"allowed_submitters": ["someone@else"]}))
    assert kit.judge() == REFUSED_BY_POLICY
    assert "allowed_submitters" in kit.reasons()
    policy.write_text(json.dumps(json.loads(policy.read_text()) | {"allowed_submitters": [kits.LEAD]}))
    assert kit.judge() == ""


@pytest.mark.parametrize("what", ["site.json", "policy", "ledger", "key", "store"])
def test_a_site_whose_own_files_are_gone_takes_nothing(kit: Kit, what: str) -> None:
    site = kit.hospital.site
    if what == "site.json":
        (kit.folder / "local" / "site.json").unlink()
    elif what == "store":
        fields = json.loads(site.path.read_text())
        site.path.write_text(json.dumps(fields | {"store": "/nowhere"}))
    else:
        getattr(site.file, what).unlink()
    assert kit.judge() == REFUSED_BY_POLICY


def test_an_app_folder_outside_of_any_kit_is_refused(kit: Kit, tmp_path: Path) -> None:
    app = shutil.copytree(kit.app(), tmp_path / "elsewhere")
    kit.sign(app)
    assert kit.says(app) == REFUSED_BY_POLICY
