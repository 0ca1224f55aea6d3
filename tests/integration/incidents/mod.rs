//! What has gone wrong in servers like this one, and the test that says it does not here.
//!
//! [`INCIDENTS`] is the table: an incident, our rule, and the test that fails when the rule is broken. Tests that stood elsewhere stay there; those that
//! the incidents asked for are in this folder, spoken over HTTP. A test of the table says that every test it names exists.

mod access;
mod decoders;
mod destinations;
mod inputs;
mod models;

use std::net::TcpListener;
use std::path::Path;

/// Incidents (CVE, advisory or issue, and in what), the rule, and the test: a file and a function of it.
const INCIDENTS: [(&str, &str, &str); 50] = [
    (
        "CVE-2025-6242 vLLM; SGLang #30801; llama-cpp-python #2220; transformers #47230: any host was fetched",
        "only addresses that are global unicast",
        "tests/integration/fetching/mod.rs::no_url_reaches_what_is_not_public_and_every_honest_one_is_fetched",
    ),
    (
        "CVE-2026-24779 and CVE-2026-25960 vLLM: the parser that checked was not the parser that fetched",
        "one parse; the same value is checked and dialled",
        "src/media/source/tests.rs::urls_are_parsed_once_and_kept_as_parsed",
    ),
    (
        "CVE-2026-34753 vLLM: a second way to fetch, without the guard",
        "one module opens outbound connections",
        "tests/tidy.rs::a_second_way_to_fetch_is_caught",
    ),
    (
        "CVE-2026-33626 LMDeploy: no guard; CVE-2026-63764: the guard saw the first URL, redirects were followed",
        "every hop stands under the whole rule",
        "src/media/fetch/tests/hops.rs::a_redirect_to_a_refused_address_never_reaches_it",
    ),
    (
        "CVE-2025-24354 imgproxy: 0.0.0.0 was no loopback",
        "the IANA registries, not is_loopback()",
        "src/media/fetch/address.rs::special_purpose_ipv4_is_not_public_and_its_neighbours_are",
    ),
    (
        "CVE-2026-85740 LightRAG: NAT64, 6to4 and IPv4-compatible addresses slipped through",
        "an embedded IPv4 address decides; else only 2000::/3 less its special purposes",
        "src/media/fetch/address.rs::an_embedded_ipv4_address_decides",
    ),
    (
        "DNS rebinding, as in the guards that resolved twice",
        "a name is resolved once a fetch, and refused when any of its addresses is",
        "src/media/fetch/tests.rs::one_refused_address_among_many_refuses_the_name_as_if_it_did_not_exist",
    ),
    (
        "Port scans by error texts (CWE-918 reports of the above)",
        "no address, no inner status, one text for all that depends on where the server stands",
        "src/media/fetch/tests.rs::errors_tell_neither_the_status_nor_the_address",
    ),
    (
        "CVE-2026-116176 vLLM: an address was taken from X-Request-Id",
        "headers are opaque",
        "tests/integration/incidents/destinations.rs::headers_choose_no_destination",
    ),
    (
        "CVE-2026-116176 vLLM: the same header, unbounded",
        "a request id is up to 128 visible characters",
        "src/api/tests.rs::a_request_id_is_echoed_when_it_is_one_and_made_when_not",
    ),
    (
        "CVE-2026-0599 TGI: image links inside of texts were fetched, without a cap",
        "nothing is fetched out of a text",
        "tests/integration/incidents/destinations.rs::links_in_texts_are_not_followed",
    ),
    (
        "CVE-2026-0599 TGI: the fetch had no cap on size or time",
        "bytes are capped before and while they are read",
        "src/media/fetch/tests.rs::a_body_without_a_length_is_cut_off_at_the_limit",
    ),
    (
        "CVE-2026-0599 TGI: the fetch had no cap on size or time",
        "connecting, the first byte and the whole are capped",
        "src/media/fetch/tests.rs::slow_servers_are_left_at_the_timeout",
    ),
    (
        "CVE-2024-6587 LiteLLM: a field of the request chose the upstream",
        "unknown fields name no destination; within an input they are errors",
        "tests/integration/incidents/destinations.rs::fields_choose_no_destination",
    ),
    (
        "CVE-2026-59707 LocalAI: an administrator's route fetched for everybody",
        "no such routes",
        "tests/integration/incidents/destinations.rs::no_route_loads_or_fetches_for_clients",
    ),
    (
        "CVE-2024-37032, CVE-2024-45436, CVE-2026-103663, -108836, -85180, -5530 Ollama: model names were paths and hosts",
        "a model is one of the served names",
        "tests/integration/incidents/destinations.rs::a_model_is_a_served_name_and_never_a_path_or_a_host",
    ),
    (
        "CVE-2024-37032 Ollama: a digest was a path",
        "what the operator names stays inside the cache",
        "src/engine/hub/tests.rs::accepted_names_stay_inside_the_cache",
    ),
    (
        "CVE-2024-45436 Ollama: an archive wrote outside of its directory",
        "an index of shards names files of its own directory only",
        "src/engine/checkpoint/tests.rs::index_that_leads_out_of_the_directory_is_refused",
    ),
    (
        "CVE-2026-5760 SGLang: a model's chat template was executed",
        "no template of a model repository is executed",
        "tests/integration/incidents/models.rs::nothing_in_a_checkpoint_is_executed",
    ),
    (
        "CVE-2026-46432 LMDeploy: trust_remote_code was always on",
        "no code of a model repository is executed",
        "tests/integration/incidents/models.rs::nothing_in_a_checkpoint_is_executed",
    ),
    (
        "CVE-2026-3059, -7302, -7304, -86793, -93088 SGLang: pickle over sockets and from files, uploads to any path",
        "weights are safetensors; nothing is unpickled or uploaded",
        "src/engine/checkpoint/tests.rs::pickle_file_is_named_and_not_loaded",
    ),
    (
        "CVE-2026-44222, PYSEC-2026-4353, PYSEC-2026-2303 vLLM, on this model family: placeholders spelled in text",
        "text is encoded without special tokens; placeholders are counted against the grids",
        "tests/integration/incidents/inputs.rs::spelled_placeholders_beside_real_media_are_text",
    ),
    (
        "CVE-2026-44222 vLLM: the same by token ids",
        "ids of special tokens are refused",
        "src/processor/template/tests.rs::a_token_id_outside_the_vocabulary_or_special_is_refused_with_its_position",
    ),
    (
        "CVE-2026-22773 vLLM: a picture of 1 x 1 ended the engine",
        "every side from 1 to 64 and every aspect up to 200:1 is embedded",
        "tests/integration/incidents/inputs.rs::pictures_of_every_small_size_are_embedded",
    ),
    (
        "CVE-2025-62372, CVE-2025-62164, CVE-2026-56340 vLLM: embeddings and tensors from callers",
        "no input is a tensor",
        "tests/integration/incidents/inputs.rs::tensors_are_no_input",
    ),
    (
        "CVE-2026-5497, GHSA-pq5c-rjhq-qp7p vLLM: a frame list as video/jpeg had no cap",
        "every way to frames has the same cap, before decoding",
        "tests/integration/incidents/inputs.rs::every_way_to_many_frames_is_capped",
    ),
    (
        "vLLM #57525: a decoder walked every frame to the last one sampled",
        "a video's frames and seconds are capped before it is decoded",
        "tests/integration/clips.rs::limits_hold_before_decoding",
    ),
    (
        "vLLM #57525: the same, for as long as it takes",
        "the decoder has a limit on CPU time, and its end is told as what it is",
        "tests/integration/escapes.rs::a_decoder_that_spins_is_killed_by_the_kernel_when_its_cpu_time_is_over",
    ),
    (
        "vLLM #47010, SGLang #28588: a small file became gigabytes of pixels",
        "sizes are checked before anything is decoded",
        "tests/integration/incidents/decoders.rs::pictures_that_would_be_gigabytes_are_refused_at_once",
    ),
    (
        "CVE-2026-34756 vLLM: n without a limit",
        "every number has a maximum",
        "tests/integration/incidents/inputs.rs::every_number_has_a_maximum",
    ),
    (
        "CVE-2025-62426, GHSA-69j4-grxj-j64p vLLM: chat_template_kwargs blocked the event loop",
        "no free-form options for templates; heavy work leaves the async threads",
        "tests/integration/incidents/inputs.rs::options_for_templates_change_nothing",
    ),
    (
        "CVE-2025-71379 vLLM: regular expressions that backtrack",
        "a pattern that needs backtracking is refused",
        "src/processor/linear_split.rs::patterns_that_would_need_backtracking_are_refused",
    ),
    (
        "CVE-2025-71379 vLLM: text that takes more than linear time",
        "time grows with the length of a text, whatever it repeats",
        "src/processor/template/tests.rs::long_runs_cost_linear_time_and_decode_to_themselves",
    ),
    (
        "CVE-2025-46560 vLLM: placeholders were expanded in quadratic time",
        "prompts are built in one pass",
        "tests/integration/incidents/inputs.rs::many_pictures_cost_linear_time_to_place",
    ),
    (
        "CVE-2025-46722 vLLM: the key of the image cache left out the shape",
        "keys cover everything that makes the vector",
        "tests/integration/incidents/inputs.rs::pictures_of_equal_samples_and_other_shapes_share_no_cache_entry",
    ),
    (
        "CVE-2025-46570 vLLM: another tenant's cache hit could be seen by time",
        "each API key has its own caches",
        "tests/integration/overload.rs::what_was_embedded_before_is_a_hit_with_the_same_bits_and_only_for_its_key",
    ),
    (
        "CVE-2025-59425 vLLM: API keys were compared with ==",
        "digests are compared, in constant time",
        "src/api/auth.rs::only_whole_keys_open_and_none_is_printed",
    ),
    (
        "CVE-2026-48746 vLLM: who may ask was decided by a URL rebuilt from the Host header",
        "the matched route decides; all but health is closed",
        "tests/integration/incidents/access.rs::no_host_and_no_spelling_of_a_path_opens_a_route",
    ),
    (
        "CVE-2025-48956 vLLM: headers without a limit",
        "heads are limited",
        "tests/integration/connections.rs::a_head_above_the_limit_is_refused",
    ),
    (
        "CVE-2026-22778 vLLM: a decoder's message told addresses of the heap",
        "clients read our own words",
        "tests/integration/incidents/decoders.rs::damaged_pictures_are_answered_in_our_own_words",
    ),
    (
        "CVE-2026-40192, CVE-2026-55380, CVE-2026-112398 Pillow: formats nobody asked for",
        "JPEG, PNG, WebP and GIF, told by their first bytes",
        "tests/integration/incidents/decoders.rs::formats_nobody_needs_are_refused",
    ),
    (
        "CVE-2022-45198 Pillow: a frame of a GIF grew the canvas",
        "the size of the frame counts too",
        "tests/integration/incidents/decoders.rs::a_frame_larger_than_its_gif_counts_with_its_own_size",
    ),
    (
        "CVE-2023-4863, RUSTSEC-2023-0061 libwebp; CVE-2026-112403: memory unsafety in decoders",
        "WebP is decoded in Rust, and nothing links libwebp",
        "tests/integration/incidents/decoders.rs::no_c_but_the_decoder_of_jpeg_and_the_crypto_is_linked",
    ),
    (
        "CVE-2016-1897, -1898, CVE-2017-9993, CVE-2026-75146, -107695, -107697, -107698 FFmpeg: playlists read files and made requests",
        "containers are told by our own look at them, playlists are none",
        "tests/integration/playlists.rs::lists_dressed_as_videos_read_no_file_and_ask_nobody",
    ),
    (
        "the same, by way of a server",
        "clients of a server get no playlist through either",
        "tests/integration/incidents/decoders.rs::playlists_reach_neither_files_nor_the_network",
    ),
    (
        "CVE-2026-125262 FFmpeg: memory unsafety in the decoders of H.264 and HEVC",
        "a decoder that has been taken over reaches nothing",
        "tests/integration/escapes.rs::nothing_a_taken_over_decoder_tries_comes_through",
    ),
    (
        "CVE-2026-125262 FFmpeg: the same, in a server",
        "a server goes on as if nothing had been",
        "tests/integration/escapes.rs::a_server_is_unharmed_by_what_its_decoders_try",
    ),
    (
        "CVE-2023-44487 HTTP/2: requests that are cancelled again and again",
        "a client that does so loses its connection",
        "tests/integration/connections.rs::a_client_that_cancels_what_it_asks_again_and_again_loses_its_connection",
    ),
    (
        "RUSTSEC-2023-0034, 2024-0003, 2024-0332, 2026-0258 h2: floods of CONTINUATION and of empty frames",
        "floods end the connection, and nobody else notices",
        "tests/integration/incidents/access.rs::floods_of_http2_frames_end_their_connection_and_no_other",
    ),
    (
        "TEI #424, #811: a full queue ended the process",
        "a full queue refuses",
        "tests/integration/overload.rs::a_full_queue_refuses_at_once_and_says_when_to_come_back",
    ),
];

#[test]
fn every_incident_names_a_test_that_exists() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (incident, rule, test) in INCIDENTS {
        let (file, function) = test.split_once("::").unwrap();
        let text = std::fs::read_to_string(top.join(file));
        let text = text.unwrap_or_else(|error| panic!("{incident}: {file}: {error}"));
        let test = format!("fn {function}(");
        assert!(
            text.contains(&test),
            "{incident} ({rule}): {test} is not in {file}"
        );
    }
}

/// A service nobody may be brought to.
struct Canary(TcpListener);

impl Canary {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Canary(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port())
    }

    /// Whether somebody came since the last question.
    fn was_reached(&self) -> bool {
        self.0.accept().is_ok()
    }
}
