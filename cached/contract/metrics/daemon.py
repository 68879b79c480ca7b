"""The daemon's metrics. Law: constants only."""

from __future__ import annotations

from cached.contract.metrics.metric import Metric, MetricKind, Per

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_CODES = 50  # error codes: constants of the code, of which a node sees a few
_VERSION = ("model", "version")

# --- the store -----------------------------------------------------------------------------------------------------

STORE_BYTES = Metric(
    "holdfast_store_bytes",
    MetricKind.GAUGE,
    "Bytes of the store by state: committed, reserved for fetches, dying (quarantine, partial blobs without a fetch).",
    ("state",),
    3,
)
STORE_CAPACITY = Metric("holdfast_store_capacity_bytes", MetricKind.GAUGE, "What the store may fill.")
STORE_FREE = Metric(
    "holdfast_store_free_bytes", MetricKind.GAUGE, "What fetches may still reserve without an eviction."
)
SPACE_SHORT = Metric(
    "holdfast_space_short_bytes",
    MetricKind.GAUGE,
    "Bytes that must become free before the fetches that are short of disk space can go on.",
)
EVICTIONS = Metric("holdfast_evictions_total", MetricKind.COUNTER, "Versions evicted.", ("reason",), 4)
VERIFY_FAILURES = Metric(
    "holdfast_verify_failures_total",
    MetricKind.COUNTER,
    "Bytes with a wrong digest, by where they were found: fetch, import, peer, dragonfly, scrub, recheck.",
    ("where",),
    6,
)
RECHECKS = Metric(
    "holdfast_rechecks_total",
    MetricKind.COUNTER,
    "Snapshots hashed at once because a gate, a volume or a person doubted them, by outcome: right, restored, "
    "withdrawn, failed.",
    ("outcome",),
    4,
)
SCRUB_BYTES = Metric("holdfast_scrub_bytes_total", MetricKind.COUNTER, "Bytes hashed again by the scrub.")
SCRUB_AGE = Metric(
    "holdfast_scrub_oldest_age_seconds",
    MetricKind.GAUGE,
    "Since the file was hashed whose last hash is the oldest; absent with --scrub-rate 0.",
)
SCRUB_PERIOD = Metric(
    "holdfast_scrub_period_seconds",
    MetricKind.GAUGE,
    "The time in which the scrub hashes each file once (--scrub-period); absent with --scrub-rate 0.",
)

# --- versions ------------------------------------------------------------------------------------------------------

MODEL_STATE = Metric(
    "holdfast_model_state",
    MetricKind.GAUGE,
    "1, with the version's state and its reason, if any: the code of its error, or why it is stale; one series a "
    "version.",
    (*_VERSION, "state", "reason"),
    1,
    Per.VERSION,
)
MODEL_INFO = Metric(
    "holdfast_model_info",
    MetricKind.INFO,
    "1, with the first 12 hex digits of the digest that is published.",
    (*_VERSION, "digest"),
    1,
    Per.VERSION,
)
MODEL_READY = Metric(
    "holdfast_model_ready", MetricKind.GAUGE, "1 where the version is published.", _VERSION, 1, Per.VERSION
)
MODEL_BYTES = Metric("holdfast_model_bytes", MetricKind.GAUGE, "The version's size in bytes.", _VERSION, 1, Per.VERSION)
MODEL_EXCLUSIVE = Metric(
    "holdfast_model_exclusive_bytes",
    MetricKind.GAUGE,
    "Bytes on disk of no other version: what its eviction frees.",
    _VERSION,
    1,
    Per.VERSION,
)
MODEL_SHARED = Metric(
    "holdfast_model_shared_bytes",
    MetricKind.GAUGE,
    "Bytes on disk that it shares with other versions, each of which counts them.",
    _VERSION,
    1,
    Per.VERSION,
)
MODEL_PINNED = Metric(
    "holdfast_model_pinned", MetricKind.GAUGE, "1 where a digest was promised.", _VERSION, 1, Per.VERSION
)
MODEL_STALE = Metric(
    "holdfast_model_stale", MetricKind.GAUGE, "1 where it is not what it should be.", _VERSION, 1, Per.VERSION
)
MODEL_TRUST = Metric(
    "holdfast_model_trust",
    MetricKind.GAUGE,
    "1, with what the version's source vouched for.",
    (*_VERSION, "trust"),
    1,
    Per.VERSION,
)
MODEL_LAST_USED = Metric(
    "holdfast_model_last_used_timestamp_seconds", MetricKind.GAUGE, "When it was last used.", _VERSION, 1, Per.VERSION
)
MODEL_PODS_WAITING = Metric(
    "holdfast_model_pods_waiting",
    MetricKind.GAUGE,
    "Pods that wait for the version; absent where none does.",
    _VERSION,
    1,
    Per.VERSION,
)
MODEL_WAITING_SINCE = Metric(
    "holdfast_model_waiting_since_timestamp_seconds",
    MetricKind.GAUGE,
    "Since when a pod has waited for the version, or since the daemon's start; absent where none does.",
    _VERSION,
    1,
    Per.VERSION,
)
MODEL_FETCHED = Metric(
    "holdfast_model_fetched_bytes",
    MetricKind.GAUGE,
    "Bytes that are there of a version that is fetched or hashed again now; absent otherwise.",
    _VERSION,
    1,
    Per.VERSION,
)
MODEL_EXPECTED = Metric(
    "holdfast_model_expected_bytes",
    MetricKind.GAUGE,
    "Bytes of a version that is fetched or hashed again now, once its files are listed; absent otherwise.",
    _VERSION,
    1,
    Per.VERSION,
)

# --- fetches -------------------------------------------------------------------------------------------------------

FETCH_BYTES = Metric(
    "holdfast_fetch_bytes_total", MetricKind.COUNTER, "Bytes received from sources.", ("source",), 1, Per.SOURCE
)
FETCH_SECONDS = Metric(
    "holdfast_fetch_seconds",
    MetricKind.HISTOGRAM,
    "From a blob's first request to its commit.",
    ("source",),
    1,
    Per.SOURCE,
    _SECONDS,
)
FETCH_ERRORS = Metric(
    "holdfast_fetch_errors_total",
    MetricKind.COUNTER,
    "Failed attempts at a source.",
    ("source", "reason"),
    _CODES,
    Per.SOURCE,
)
FETCH_IN_PROGRESS = Metric("holdfast_fetch_in_progress", MetricKind.GAUGE, "Blobs under way.")
FETCHES = Metric(
    "holdfast_fetches",
    MetricKind.GAUGE,
    "Fetches of versions by state: queued, running, paused after an error, blocked on disk space, no_room (nothing can "
    "be evicted for it), stopping.",
    ("state",),
    6,
)
SOURCE_RESOLVED = Metric(
    "holdfast_source_resolved_timestamp_seconds",
    MetricKind.GAUGE,
    "When a source of this kind last told what a version consists of.",
    ("source",),
    1,
    Per.SOURCE,
)

# --- pods and the catalog ------------------------------------------------------------------------------------------

REQUESTS = Metric(
    "holdfast_requests_total", MetricKind.COUNTER, "New wants, by what was there: hit, miss, joined.", ("result",), 3
)
PODS_WAITING = Metric("holdfast_pods_waiting", MetricKind.GAUGE, "Pods whose weights are not here yet.")
PODS_REFUSED = Metric(
    "holdfast_pods_refused",
    MetricKind.GAUGE,
    "Pods that are refused a version until a person corrects something: not in the catalog, not for their namespace, "
    "other content than their pin; by the code of the refusal.",
    ("reason",),
    _CODES,
)
GATE_WAIT = Metric(
    "holdfast_gate_wait_seconds",
    MetricKind.HISTOGRAM,
    "From the first pod's want to publication.",
    buckets=_SECONDS,
)
POD_FILL = Metric(
    "holdfast_pod_fill_seconds",
    MetricKind.HISTOGRAM,
    "From a pod's binding to this node until all its versions are published, which opens its gate, or its volumes are "
    "mounted; 0 where a gate found all here.",
    buckets=_SECONDS,
)
CATALOG_INFO = Metric(
    "holdfast_catalog_info",
    MetricKind.INFO,
    "1, with the first 12 hex digits of the sha256 of the catalog in force.",
    ("digest",),
)
CATALOG_GENERATION = Metric(
    "holdfast_catalog_generation", MetricKind.GAUGE, "Catalogs put in force since the daemon's start."
)
CATALOG_LOADED = Metric(
    "holdfast_catalog_loaded_timestamp_seconds", MetricKind.GAUGE, "When the catalog in force was put in force."
)
CATALOG_MODELS = Metric("holdfast_catalog_models", MetricKind.GAUGE, "Models of the catalog in force.")
CATALOG_REJECTED = Metric(
    "holdfast_catalog_rejected_entries", MetricKind.GAUGE, "Entries of the catalog in force that were rejected."
)
CATALOG_UNUSABLE = Metric(
    "holdfast_catalog_unusable",
    MetricKind.GAUGE,
    "1 while the catalog's file cannot be read or is no catalog as a whole.",
)

# --- the Kubernetes API --------------------------------------------------------------------------------------------

KUBE_CONNECTED = Metric("holdfast_kube_connected", MetricKind.GAUGE, "1 while the watch of this node's pods stands.")
KUBE_CHANGED = Metric("holdfast_kube_connection_changed_timestamp_seconds", MetricKind.GAUGE, "When that last changed.")
KUBE_RELISTS = Metric("holdfast_kube_relists", MetricKind.GAUGE, "Lists of the pods after the first one.")
KUBE_WATCH_FAILURES = Metric(
    "holdfast_kube_watch_failures_total", MetricKind.COUNTER, "Failed lists and watches of this node's pods."
)
KUBE_EVENTS_DROPPED = Metric(
    "holdfast_kube_events_dropped", MetricKind.GAUGE, "Events that were too many to be written."
)
KUBE_EVENTS_REFUSED = Metric("holdfast_kube_events_refused_total", MetricKind.COUNTER, "Events that the API refused.")
KUBE_EVENT_FAILURES = Metric(
    "holdfast_kube_event_failures_total",
    MetricKind.COUNTER,
    "Attempts to write an Event that were or will be repeated.",
)
KUBE_NODE_IN_FORCE = Metric(
    "holdfast_kube_node_in_force", MetricKind.GAUGE, "1 where the node's labels are as they should be."
)
KUBE_NODE_FAILURES = Metric(
    "holdfast_kube_node_failures_total",
    MetricKind.COUNTER,
    "Failed attempts to read or write the node's labels and summary.",
)

# --- CSI mode ------------------------------------------------------------------------------------------------------

CSI_PUBLISHES = Metric(
    "holdfast_csi_publishes_total", MetricKind.COUNTER, "Calls to publish a volume, by their result.", ("result",), 17
)
CSI_REGISTERED = Metric("holdfast_csi_registered", MetricKind.GAUGE, "1 while the kubelet has registered the driver.")
CSI_VOLUMES = Metric("holdfast_csi_volumes", MetricKind.GAUGE, "Mounted volumes.")

# --- with other nodes ----------------------------------------------------------------------------------------------

PEERS = Metric(
    "holdfast_peers",
    MetricKind.GAUGE,
    "Other nodes of the pool, each in one state, by what this node saw of it last: live, slow, wrong (bytes that do "
    "not check), unreachable, refused (another key, clock or certificate), idle (not asked in the last ten minutes).",
    ("state",),
    6,
)
PEER_SENT = Metric("holdfast_peer_sent_bytes_total", MetricKind.COUNTER, "Bytes of blobs sent to other nodes.")
PEER_MANIFESTS = Metric(
    "holdfast_peer_manifests_total", MetricKind.COUNTER, "Pinned versions whose manifest came from another node."
)
PEER_REFUSALS = Metric(
    "holdfast_peer_refusals_total", MetricKind.COUNTER, "Requests of other nodes that were refused.", ("status",), 4
)

BUILD_INFO = Metric("holdfast_build_info", MetricKind.INFO, "The version that runs.", ("version",))

CLUSTER = (  # `figures` of the cluster, by name without `holdfast_`
    KUBE_CONNECTED,
    KUBE_CHANGED,
    KUBE_RELISTS,
    KUBE_WATCH_FAILURES,
    KUBE_EVENTS_DROPPED,
    KUBE_EVENTS_REFUSED,
    KUBE_EVENT_FAILURES,
    KUBE_NODE_IN_FORCE,
    KUBE_NODE_FAILURES,
)
POOL = (PEERS, PEER_SENT, PEER_REFUSALS, PEER_MANIFESTS)
CSI = (CSI_PUBLISHES, CSI_REGISTERED, CSI_VOLUMES)
STORE = (
    STORE_BYTES,
    STORE_CAPACITY,
    STORE_FREE,
    SPACE_SHORT,
    EVICTIONS,
    VERIFY_FAILURES,
    RECHECKS,
    SCRUB_BYTES,
    SCRUB_AGE,
    SCRUB_PERIOD,
)
VERSIONS = (
    MODEL_STATE,
    MODEL_INFO,
    MODEL_READY,
    MODEL_BYTES,
    MODEL_EXCLUSIVE,
    MODEL_SHARED,
    MODEL_PINNED,
    MODEL_STALE,
    MODEL_TRUST,
    MODEL_LAST_USED,
    MODEL_PODS_WAITING,
    MODEL_WAITING_SINCE,
    MODEL_FETCHED,
    MODEL_EXPECTED,
)
FETCH = (FETCH_BYTES, FETCH_SECONDS, FETCH_ERRORS, FETCH_IN_PROGRESS, FETCHES, SOURCE_RESOLVED)
PODS = (REQUESTS, PODS_WAITING, PODS_REFUSED, GATE_WAIT, POD_FILL)
CATALOG = (
    CATALOG_INFO,
    CATALOG_GENERATION,
    CATALOG_LOADED,
    CATALOG_MODELS,
    CATALOG_REJECTED,
    CATALOG_UNUSABLE,
)
ALL = (*STORE, *VERSIONS, *FETCH, *PODS, *CATALOG, *CLUSTER, *CSI, *POOL, BUILD_INFO)
