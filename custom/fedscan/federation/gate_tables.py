"""What may stand in the messages of a site: every channel, every header, every field, and the form of its value.

Patterns match as a whole. SITE, JOB, UUID, TIME and SIZE in them stand for this site's name, the job's id, a random
identity, a point in time and a number of bytes or messages.
"""

from __future__ import annotations

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
TIME = r"\d{1,12}(\.\d{1,9})?"
SIZE = r"-?\d{1,16}"
WITHHELD = "withheld by the site"
"""Stands in the place of each text that says what went wrong."""
ERROR_TEXTS = ("cn__error", "sm__em")
CELL_CODES = (
    "ok|timeout|invalid_target|target_unreachable|comm_error|msg_too_big|filter_error|invalid_request|"
    "process_exception|authentication_error|service_unavailable|invalid_session|abort_run|unauthenticated"
)
BARE_CODES = frozenset(
    {
        "BAD_PEER_CONTEXT",
        "BAD_TASK_DATA",
        "EXECUTION_EXCEPTION",
        "EXECUTION_RESULT_ERROR",
        "MISSING_PEER_CONTEXT",
        "RUN_MISMATCH",
        "TASK_ABORTED",
        "TASK_DATA_FILTER_ERROR",
        "TASK_RESULT_FILTER_ERROR",
        "TASK_UNKNOWN",
        "UNSAFE_JOB",
        "refused by policy",
        "refused by version",
    }
)
"""Return codes that may leave without an answer: NVFlare's own for a task that failed, and our two refusals."""

HEADERS: dict[str, str] = {
    r"cn__(from|origin)": "ME",
    r"cn__to|cn__destination|sm__fd": r"SITE(\.JOB)?|server(\.UUID)?",
    r"cn__channel|cn__topic|sm__ch|sm__tp": r"[\w.:]{1,100}",
    r"cn__msg_type": "req|reply",
    r"cn__payload_encoding|sm__pe": "bytes|fobs|none",
    r"cn__(req_id(\[\])?|msg_root_id)|sm__ri|nonce|__token__": "UUID|",  # nosec B105 # a pattern
    r"cn__route\[\]\[\]": r"SITE(\.JOB)?|TIME",
    r"cn__(reply_expected|secure|optional|server_transit_required|pass_through)|sm__(rs|op)": "True|False",
    r"cn__(payload_len|clear_payload_len|msg_root_ttl)|sm__(id|sz|dt|sq|os|cs|ws|ai|mp)": "SIZE|TIME",
    r"cn__send_time|sm__(rw|rt)": "TIME",
    r"cn__return_code": CELL_CODES,
    r"cn__error|sm__em": WITHHELD,
    r"sm__et": "StreamError|StreamTargetUnreachable|StreamCancelled|BlobSizeError",
    r"client_name|cn": "SITE",
    r"ssid": "NA|UUID",
    r"__token_signature__": r"[A-Za-z0-9+/=]{1,1024}",  # nosec B105 # a pattern
    r"project_name": r"[\w.@ -]{1,64}",
    r"client_type": "regular",
    r"client_ip": r"[0-9a-fA-F.:]{1,45}",
    r"nvflare_version": r"[0-9.a-z]{1,20}",
    r"federation_protocol_version": r"\d{1,4}",
    r"job_ids(\[\]){0,2}": "UUID|",
}
PARENT_HEADERS = frozenset(
    {"cn", "nonce", "client_type", "client_ip", "nvflare_version", "federation_protocol_version", "job_ids"}
)
"""Of the parent's registration and heartbeats: a job process has no use for them."""
CARRIERS = ("sm__DATA", "sm__ACK", "sm__ERROR")
"""Topics of `sm__STREAM`, in which a message of another channel travels."""
CONSTANT_HEADERS = ("__token__", "__token_signature__", "ssid", "project_name")
"""Of a job process: each keeps the value that it had in the first message, which NVFlare sends before the job runs."""

_TYPES = (
    "nvflare.apis.shareable.Shareable",
    "nvflare.apis.fl_context.FLContext",
    "nvflare.apis.dxo.DataKind",
    "nvflare.private.admin_defs.Message",
    "nvflare.apis.utils.decomposers.flare_decomposers.ContextDecomposer",
    "nvflare.fuel.utils.fobs.decomposer.DataClassDecomposer",
    "nvflare.fuel.utils.fobs.decomposer.DictDecomposer",
    "nvflare.fuel.utils.fobs.decomposer.EnumTypeDecomposer",
    "nvflare.app_opt.pt.decomposers.TensorDecomposer",
    "torch.Tensor",
)
_OBJECTS = (
    "body",
    "body/__fobs_data__/DXO/kind",
    "body/__fobs_data__/data/body",
    "body/__fobs_data__/__headers__/__peer_ctx__",
)
"""Where an object stands that NVFlare names the class of: no other place, for the names on the way there say things."""
_CLASS = {rf"({'|'.join(_OBJECTS)})/(__fobs_type__|__fobs_dc__)": "|".join(name.replace(".", r"\.") for name in _TYPES)}
_WHO = {
    r"(__identity_name__|__fqsn__|__client_name__)": "SITE",
    r"(__run_num__|__current_job_id__)": "JOB|UUID|",
    r"__is_leaf__": "True",
}
_B = r"body/__fobs_data__"
_H = rf"{_B}/__headers__"
_CONTEXT = {
    **_CLASS,
    **{rf"{_H}/__peer_props__/{name}": value for name, value in _WHO.items()},
    **{rf"{_H}/__peer_ctx__/__fobs_data__\[\]/{name}/value": value for name, value in _WHO.items()},
    rf"{_H}/__peer_ctx__/__fobs_data__\[\]/({'|'.join(_WHO)})/mask": "0",
    rf"{_H}/__peer_ctx__/__fobs_data__\[\]": "None|0",
    rf"{_H}/__topic__": r"TOPIC",
}
_EMPTY = {r"body/\{\}": ""}
_CODES = "|".join(sorted(BARE_CODES | {"OK", "ERROR", "BAD_REQUEST_DATA", "HANDLER_EXCEPTION", "TOPIC_UNKNOWN"}))
_CODE = {**_CONTEXT, rf"{_H}/__rc__": _CODES}
_REQUEST_OF_CHUNK = {
    **_EMPTY,
    r"body/(ref_id)": "UUID",
    r"body/(confirm_capable|cancel|cancel_capable|confirm_expected)": "True|False",
    r"body/status": "ok|error|eof",
    r"body/confirm": "success|failed",
    r"body/confirm_nonce": r"[0-9a-f]{32}",
    r"body/state(/(start|count)|/\{\})?": "SIZE|None",
}
_ANSWER_HEADERS = {
    **_CONTEXT,
    rf"{_H}/(__audit_event_id__|__msg_root_id__|__task_id__|__cookie_jar__/__task_id__)": "UUID",
    rf"{_H}/__content_type__": "DXO",
    rf"{_H}/__task_name__": r"train",
    rf"{_H}/__cookie_jar__/__workflow__": "fedavg",
    rf"{_H}/__cookie_jar__/contribution_round": r"\d{1,4}",
    rf"{_H}/__rc__": "|".join(sorted(BARE_CODES)),
    rf"{_B}/DXO/kind/__fobs_data__": "WEIGHT_DIFF",
}
ANSWER_ITSELF = (rf"{_B}/DXO/data", rf"{_B}/DXO/meta")
"""Where the answer stands: held against what the guard passed, not against a table."""

Key = tuple[str, str, str]
JOB_MESSAGES: dict[Key, dict[str, str]] = {
    # channel, topic, kind: what stands in the payload of a job process's message
    ("aux_communication", "__sync_runner__", "req"): _CONTEXT,
    ("aux_communication", "__job_heartbeat__", "req"): _CONTEXT,
    ("aux_communication", "__task_check__", "req"): {**_CONTEXT, rf"{_H}/__task_id__": "UUID"},
    ("server_command", "get_task", "req"): {**_CONTEXT, rf"{_H}/(last_task_id|__task_id__)": "UUID"},
    ("server_command", "submit_update", "req"): _ANSWER_HEADERS,
    ("download_service__", "download_service__download", "req"): _REQUEST_OF_CHUNK,
    ("return_only", "download_service__:download_service__download", "req"): {
        **_REQUEST_OF_CHUNK,
        r"body/data\[\]": "CHUNK",
    },
    ("return_only", "aux_communication:__end_run__", "req"): _CODE,
    # A task that comes as an auxiliary message gets a code, never an answer:
    ("return_only", "aux_communication:__do_task__", "req"): _CODE,
    ("return_only", "aux_communication:fedscan.run_complete", "req"): _CODE,
    ("sm__STREAM", "sm__ACK", "req"): _EMPTY,
    ("sm__STREAM", "sm__ERROR", "req"): _EMPTY,
    ("sm__STREAM", "sm__DATA", "req"): _EMPTY,
    ("cellnet.channel", "bye", "req"): _EMPTY,
    ("cellnet.channel", "bye", "reply"): _EMPTY,
    ("server_parent_listener", "get_job_clients", "req"): _CONTEXT,
}
_REPLY = {
    **_CLASS,
    r"body/__fobs_data__/data/id": "UUID",
    r"body/__fobs_data__/data/topic": "reply|reply_(ADMIN_TOPIC)",
    r"body/__fobs_data__/data/headers(/\{\})?": "",
    r"body/__fobs_data__/data/headers/_rtnCode": "_ok|_error",
    r"body/__fobs_data__/data/body": "ADMIN_BODY",
    r"body/__fobs_data__/data/body/__fobs_data__/__headers__/_is_resource_enough": "True|False",
    r"body/__fobs_data__/data/body/__fobs_data__/__headers__/_resource_reserve_token": "UUID|",  # nosec B105 # a pattern
    r"body/__fobs_data__/data/body/__fobs_data__/\{\}": "",
    r"body/__fobs_data__/data/body/__fobs_data__/__headers__/\{\}": "",
    r"body/__fobs_data__/data/body/__fobs_data__/__headers__/__rc__": _CODES,
}
PARENT_MESSAGES: dict[Key, dict[str, str]] = {
    ("task", "challenge", "req"): _EMPTY,
    ("task", "register", "req"): {
        **_CONTEXT,
        r"body/__fobs_data__/cn": "SITE",
        r"body/__fobs_data__/cert": r"(-----(BEGIN|END) CERTIFICATE-----\n|[A-Za-z0-9+/=]{1,64}\n)+",
        r"body/__fobs_data__/signature": r"(?s).{1,1024}",
        r"body/__fobs_data__/site_config/\{\}": "",
    },
    ("task", "heart_beat", "req"): _CONTEXT,
    ("task", "quit", "req"): _CONTEXT,
    ("task", "report_job_failure", "req"): {
        r"body/job_id": "UUID",
        r"body/code": r"-?\d{1,9}|None",
        r"body/reason": "None|unsafe component|config error|exception|infrastructure error|aborted",
    },
    ("admin", "admin", "reply"): _REPLY,
    # The error of a stream that leads to a job process which ended a moment ago:
    ("aux_communication", "__end_run__", "req"): _EMPTY,
    ("cellnet.channel", "bye", "req"): _EMPTY,
    ("cellnet.channel", "bye", "reply"): _EMPTY,
    ("sm__STREAM", "sm__ACK", "req"): _EMPTY,
}
ADMIN_TOPICS = (
    r"scheduler\.(check_resource|cancel_resource)|"
    r"train\.(deploy|start_job|abort|abort_task|delete_run|shutdown|restart|check_status|notify_job_status)"
)
"""Commands of the server to which a site's parent process answers."""
ADMIN_BODIES = (
    r"ok|Start the client app\.\.\.|deployed [\w-]{1,64} to SITE|Client app (already (started|stopped)|has not started)"
    r"\.|Abort signal has been sent to the (client App|current task)\.|Shutdown the client\.\.\.|"
    rf"Restart the client\.\.\.|{WITHHELD}|not authorized|invalid_request|(NVFLARE_ERROR: )?("
    r"refused by (policy|version)|privacy scope '[\w-]{0,64}' is not allowed|BYOC not permitted|"
    r"app [\w-]{1,64} does not pass signature verification)|unsigned job rejected - signed deploy is required"
)
"""What such an answer may say; any other text becomes WITHHELD."""
ADMIN_BODIES_ANY_SITE = ADMIN_BODIES.replace("SITE", r"[\w-]{1,64}")
