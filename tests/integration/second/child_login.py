"""Logs in as a site over a connection named as a job of KIT's: KIT JOB SITE. Its last line says what came of it.

With the site's own certificate, which NVFlare admits under each of the site's jobs' names.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.private.fed.authenticator import Authenticator
from nvflare.private.fed.utils.fed_utils import nvflare_fobs_initialize


def main(kit: Path, job: str, site: str) -> str:
    """Whether it was let in, or why not."""
    nvflare_fobs_initialize()
    startup = kit / "startup"
    client = json.loads((startup / "fed_client.json").read_text())
    server = client["servers"][0]
    files = {name: str(startup / f"{name}") for name in ("client.crt", "client.key", "rootCA.pem")}
    cell = Cell(
        fqcn=f"{kit.name}.{job}",
        root_url=f"{server['service']['scheme']}://{server['service']['target']}",
        secure=True,
        credentials={
            DriverParams.CA_CERT.value: files["rootCA.pem"],
            DriverParams.CLIENT_CERT.value: files["client.crt"],
            DriverParams.CLIENT_KEY.value: files["client.key"],
        },
        create_internal_listener=False,
        auth_identity=kit.name,
        auth_identity_map={"server": server["identity"]},
    )
    cell.start()
    authenticator = Authenticator(
        cell=cell,
        project_name=server["name"],
        client_name=site,
        client_type="regular",
        expected_sp_identity=server["identity"],
        secure_mode=True,
        root_cert_file=files["rootCA.pem"],
        private_key_file=files["client.key"],
        cert_file=files["client.crt"],
        msg_timeout=10.0,
        retry_interval=1.0,
        timeout=20.0,
    )
    try:
        token = authenticator.authenticate(FLContext(), Signal())[0]
    except Exception as error:  # noqa: BLE001 - whatever NVFlare calls it
        return f"refused: {error}"
    return "let in" if token else "refused"


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]), flush=True)
    os._exit(0)  # NVFlare's threads do not end by themselves
