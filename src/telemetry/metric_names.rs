//! Every metric's name, once, with what it counts. In: nothing. Out: constants.

/// A name and its help text, which ends without a full stop: the encoder adds one. A counter's name ends in `_total` on the wire.
pub(super) type Name = (&'static str, &'static str);

pub(super) const REQUESTS: Name = (
    "manifold_requests",
    "Answers by route and status; 499: the client left",
);
pub(super) const REQUESTS_IN_FLIGHT: Name =
    ("manifold_requests_in_flight", "Requests being answered");
pub(super) const REQUEST_DURATION: Name = (
    "manifold_request_duration_seconds",
    "Time from a request's headers to its answer",
);
pub(super) const STAGE_DURATION: Name = (
    "manifold_stage_duration_seconds",
    "Time a request spent in each stage",
);
pub(super) const REJECTIONS: Name = (
    "manifold_rejections",
    "Requests answered with an error, by its code",
);
pub(super) const INPUTS: Name = ("manifold_inputs", "Vectors that were answered");
pub(super) const TOKENS: Name = (
    "manifold_tokens",
    "Tokens of what was answered, by modality",
);
pub(super) const CACHED_TOKENS: Name = (
    "manifold_cached_tokens",
    "How many of those were not computed again",
);
pub(super) const CACHE_HITS: Name = (
    "manifold_cache_hits",
    "Inputs that found something in a cache",
);
pub(super) const CACHE_MISSES: Name = (
    "manifold_cache_misses",
    "Inputs that found nothing in a cache",
);
pub(super) const FETCHES: Name = (
    "manifold_fetches",
    "Media URLs of requests, by what came of them",
);
pub(super) const BATCH_TOKENS: Name = ("manifold_batch_tokens", "Tokens of a forward pass");
pub(super) const BATCH_SEQUENCES: Name = ("manifold_batch_sequences", "Inputs of a forward pass");
pub(super) const BATCH_FILL: Name = (
    "manifold_batch_fill_ratio",
    "Tokens of a forward pass over the most it may have",
);
pub(super) const QUEUE_SEQUENCES: Name = (
    "manifold_queue_sequences",
    "Inputs that wait for a forward pass",
);
pub(super) const QUEUE_TOKENS: Name = (
    "manifold_queue_tokens",
    "Tokens that wait, which is what the limit of the queue counts",
);
pub(super) const QUEUE_SECONDS: Name = (
    "manifold_queue_expected_seconds",
    "How long the device is expected to take for what waits",
);
pub(super) const QUEUE_REFUSALS: Name = (
    "manifold_queue_refusals",
    "Requests the queue did not let in, by reason",
);
pub(super) const INPUTS_DROPPED: Name = (
    "manifold_inputs_dropped",
    "Inputs that were let in and not computed, by reason",
);
pub(super) const INPUTS_SHARED: Name = (
    "manifold_inputs_shared",
    "Inputs that shared the computation of the same one in flight",
);
pub(super) const BATCH_FAILURES: Name = (
    "manifold_batch_failures",
    "Forward passes that failed, by reason, whatever became of their inputs",
);
pub(super) const BATCH_MAX_TOKENS: Name = (
    "manifold_batch_max_tokens",
    "Most tokens a forward pass has now: fewer after the device ran out of memory",
);
pub(super) const PIXEL_BYTES: Name = (
    "manifold_pixel_bytes",
    "Bytes of pixels held from when they are decoded until they are computed",
);
pub(super) const CACHE_BYTES: Name = ("manifold_cache_bytes", "Bytes of kept vectors");
pub(super) const CONNECTIONS: Name = ("manifold_connections", "Connections accepted");
pub(super) const CONNECTIONS_OPEN: Name = ("manifold_connections_open", "Connections open");
pub(super) const CONNECTIONS_DROPPED: Name = (
    "manifold_connections_dropped",
    "Connections the server closed of its own accord, by reason",
);
pub(super) const MODEL_INFO: Name = ("manifold_model_info", "Always 1; what is served");
pub(super) const BUILD_INFO: Name = ("manifold_build_info", "Always 1; which program");
pub(super) const DEVICE_MEMORY: Name = (
    "manifold_device_memory_bytes",
    "Memory of the device, or of what the process may have of the machine's",
);
pub(super) const DEVICE_MEMORY_USED: Name = (
    "manifold_device_memory_used_bytes",
    "How much of that is in use, by whomever",
);
pub(super) const RESIDENT_MEMORY: Name = (
    "manifold_process_resident_memory_bytes",
    "Memory in use, as the kernel counts it",
);
pub(super) const OPEN_FDS: Name = ("manifold_process_open_fds", "Open file descriptors");
pub(super) const THREADS: Name = ("manifold_process_threads", "Threads");
pub(super) const CPU_SECONDS: Name = ("manifold_process_cpu_seconds", "Time of all cores together");

/// All of them.
#[cfg(test)]
pub(super) const ALL: [Name; 35] = [
    REQUESTS,
    REQUESTS_IN_FLIGHT,
    REQUEST_DURATION,
    STAGE_DURATION,
    REJECTIONS,
    INPUTS,
    TOKENS,
    CACHED_TOKENS,
    CACHE_HITS,
    CACHE_MISSES,
    FETCHES,
    BATCH_TOKENS,
    BATCH_SEQUENCES,
    BATCH_FILL,
    QUEUE_SEQUENCES,
    QUEUE_TOKENS,
    QUEUE_SECONDS,
    QUEUE_REFUSALS,
    INPUTS_DROPPED,
    INPUTS_SHARED,
    BATCH_FAILURES,
    BATCH_MAX_TOKENS,
    PIXEL_BYTES,
    CACHE_BYTES,
    CONNECTIONS,
    CONNECTIONS_OPEN,
    CONNECTIONS_DROPPED,
    MODEL_INFO,
    BUILD_INFO,
    DEVICE_MEMORY,
    DEVICE_MEMORY_USED,
    RESIDENT_MEMORY,
    OPEN_FDS,
    THREADS,
    CPU_SECONDS,
];
