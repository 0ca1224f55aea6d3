//! More than the server can do: lanes, refusals, deadlines, equal inputs.

use std::io::Write;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::server::{Answer, Server, media};

/// A text that takes the tiny model some tenths of a second, another one for each number.
fn long_text(number: usize) -> String {
    format!("{number} ") + &"to be or not to be that is the question ".repeat(250)
}

async fn post(server: &Server, headers: &[(&str, &str)], body: &Value) -> Answer {
    let json = ("content-type", "application/json");
    let headers: Vec<_> = headers.iter().copied().chain([json]).collect();
    let body = body.to_string().into_bytes();
    server
        .send(reqwest::Method::POST, "/v1/embeddings", &headers, body)
        .await
}

/// What came back, and when.
type Sent = tokio::task::JoinHandle<(Answer, Instant)>;

/// Sends long texts, one a request, without waiting for the answers.
fn flood(server: &Server, key: &'static str, count: usize) -> Vec<Sent> {
    let one = |number| {
        let url = format!("{}/v1/embeddings", server.url);
        tokio::spawn(async move {
            let sent = reqwest::Client::new()
                .post(url)
                .bearer_auth(key)
                .header("content-type", "application/json")
                .body(json!({ "input": long_text(number) }).to_string())
                .send();
            let response = sent.await.unwrap();
            let answer = Answer {
                status: response.status().as_u16(),
                headers: response.headers().clone(),
                bytes: response.bytes().await.unwrap().to_vec(),
            };
            (answer, Instant::now())
        })
    };
    (0..count).map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_wait_for_their_ends_hold_no_more_memory_than_there_is() {
    let limits = [
        "--max-body-bytes",
        "1500",
        "--limits-max-held-bytes",
        "2000",
    ];
    let server = Server::start(&limits, &[]);
    let address = server.url.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1400\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&[b' '; 1000]).unwrap();
    let body = json!({ "input": "x ".repeat(550) });
    // The bytes of the first take a moment to be read.
    let deadline = Instant::now() + Duration::from_secs(10);
    let refused = loop {
        let answer = post(&server, &[], &body).await;
        if answer.status != 200 || Instant::now() > deadline {
            break answer;
        }
    };
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    let message = refused.json()["error"]["message"].to_string();
    assert!(message.contains("2000 bytes"), "{message}");
    assert!(!refused.header("retry-after").is_empty());
    // What has room is served meanwhile, and all of it is free when the client leaves.
    assert_eq!(
        post(&server, &[], &json!({ "input": "x" })).await.status,
        200
    );
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(10);
    while post(&server, &[], &body).await.status != 200 {
        assert!(Instant::now() < deadline, "the memory is not given back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let server = Server::start(
        &[
            "--batch-max-queue-tokens",
            "8192",
            "--batch-max-tokens",
            "4096",
            "--max-input-tokens",
            "4096",
        ],
        &[],
    );
    let mut refused = 0;
    let mut answered = 0;
    for request in flood(&server, "", 30) {
        let (answer, _) = request.await.unwrap();
        if answer.status == 200 {
            answered += 1;
            continue;
        }
        refused += 1;
        assert_eq!(answer.status, 429);
        assert_eq!(answer.json()["error"]["code"], "queue_full");
        let ms: u64 = answer.header("retry-after-ms").parse().unwrap();
        let seconds: u64 = answer.header("retry-after").parse().unwrap();
        assert!(
            (100..=60_000).contains(&ms) && seconds == ms.div_ceil(1000),
            "{ms}, {seconds}"
        );
    }
    assert!(refused > 0 && answered > 0, "{refused}, {answered}");
    // What was refused left nothing behind.
    let body = json!({ "input": long_text(99) });
    assert_eq!(server.post(&body).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_of_another_key_does_not_wait_for_the_flood_of_the_first() {
    let server = Server::start(&[], &[("MANIFOLD_API_KEY", "flooding,asking")]);
    let ask = [("authorization", "Bearer asking")];
    // So that the server knows how long things take.
    post(&server, &ask, &json!({ "input": long_text(1000) })).await;
    let flood = flood(&server, "flooding", 24);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let answer = post(&server, &ask, &json!({ "input": "a query" })).await;
    let answered = Instant::now();
    assert_eq!(answer.status, 200);
    let mut later = 0;
    for request in flood {
        let (answer, at) = request.await.unwrap();
        assert_eq!(answer.status, 200);
        later += usize::from(at > answered);
    }
    // A bulk pass holds one such text: the query waited for no more than those before it and the one that ran.
    assert!(later >= 12, "only {later} of 24 came after the query");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_little_time_is_told_when_it_is_up_and_the_servers_maximum_holds() {
    let server = Server::start(&["--request-timeout-ms", "2000"], &[]);
    let texts: Vec<String> = (0..200).map(long_text).collect();
    for (asked, most) in [("50", 50), ("3600000", 2000)] {
        let began = Instant::now();
        let headers = [("x-request-timeout-ms", asked)];
        let answer = post(&server, &headers, &json!({ "input": texts })).await;
        let took = began.elapsed();
        assert_eq!(answer.status, 504, "{}", answer.json());
        assert_eq!(answer.json()["error"]["code"], "deadline_exceeded");
        assert!(
            took >= Duration::from_millis(most) && took < Duration::from_millis(most + 1500),
            "{took:?}"
        );
    }
    let wrong = post(
        &server,
        &[("x-request-timeout-ms", "soon")],
        &json!({ "input": "x" }),
    )
    .await;
    assert_eq!(wrong.status, 400);
    assert_eq!(wrong.json()["error"]["param"], "x-request-timeout-ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_is_one_of_two_words() {
    let server = Server::start(&[], &[]);
    for priority in ["interactive", "bulk"] {
        let body = json!({ "input": "x", "priority": priority });
        let answer = server.post(&body).await;
        assert_eq!(
            (answer.status, answer.header("x-ignored-fields")),
            (200, "")
        );
    }
    let wrong = server
        .post(&json!({ "input": "x", "priority": "urgent" }))
        .await;
    assert_eq!(wrong.status, 400);
    assert_eq!(wrong.json()["error"]["param"], "priority");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_inputs_of_one_request_give_equal_bits_beside_others() {
    let server = Server::start(&[], &[]);
    let alone = server.vectors(&json!({ "input": "twice" })).await;
    let mixed = server
        .vectors(&json!({ "input": ["twice", "once", "twice", long_text(1)] }))
        .await;
    assert_eq!(mixed[0], alone[0]);
    assert_eq!(mixed[2], alone[0]);
    assert_ne!(mixed[1], alone[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_embedded_before_is_a_hit_with_the_same_bits_and_only_for_its_key() {
    let keys = ("MANIFOLD_API_KEY", "one,other");
    let server = Server::start(&["--cache-max-embedding-bytes", "1048576"], &[keys]);
    let ask = async |key: &str, body: Value| {
        let key = format!("Bearer {key}");
        let answer = post(&server, &[("authorization", &key)], &body).await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        (answer.header("x-embed-cache").to_owned(), answer.json())
    };
    let text = json!({ "input": "again" });
    let (first, computed) = ask("one", text.clone()).await;
    let (second, kept) = ask("one", text.clone()).await;
    assert_eq!((first.as_str(), second.as_str()), ("miss", "hit"));
    assert_eq!(kept["data"], computed["data"]);
    let all = &kept["usage"]["prompt_tokens"];
    assert_eq!(
        &kept["usage"]["prompt_tokens_details"]["cached_tokens"],
        all
    );
    assert_eq!(ask("other", text.clone()).await.0, "miss");
    // Another size is cut from the same row; another instruction is another input; a mixture is a miss with the same bits.
    let shorter = json!({ "input": "again", "dimensions": 64 });
    assert_eq!(ask("one", shorter).await.0, "hit");
    let instructed = json!({ "input": "again", "instruction": "Find it." });
    assert_eq!(ask("one", instructed).await.0, "miss");
    let (mixed, both) = ask("one", json!({ "input": ["new", "again"] })).await;
    assert_eq!(mixed, "miss");
    assert_eq!(
        both["data"][1]["embedding"],
        computed["data"][0]["embedding"]
    );

    let plain = Server::start(&[], &[]);
    let answer = plain.post(&text).await;
    assert_eq!(
        answer.header("x-embed-cache"),
        "",
        "nothing is kept by default"
    );
    assert_eq!(answer.json()["data"], computed["data"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_had_its_tokens_waits_and_another_does_not() {
    let keys = ("MANIFOLD_API_KEY", "one,other");
    let server = Server::start(&["--limits-tokens-per-minute", "4100"], &[keys]);
    let ask = async |key: &str, number: usize| {
        let key = format!("Bearer {key}");
        let body = json!({ "input": long_text(number) });
        post(&server, &[("authorization", &key)], &body).await
    };
    assert_eq!(ask("one", 1).await.status, 200);
    let refused = ask("one", 2).await;
    assert_eq!(refused.status, 429, "{}", refused.json());
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    let ms: u64 = refused.header("retry-after-ms").parse().unwrap();
    assert!((1000..60_000).contains(&ms), "{ms}");
    assert_eq!(ask("other", 1).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_become_more_pixels_than_may_be_held_are_refused() {
    // A patch of 32 x 32 pixels holds 6 KiB, a picture of the fixture some tens of them.
    let server = Server::start(&["--batch-max-pixel-bytes", "700000"], &[]);
    let picture = BASE64_STANDARD.encode(media("parity", "half_80x48.png"));
    let part = json!({ "type": "image_base64", "image_base64": picture });
    let one = server.post(&json!({ "input": [part] })).await;
    assert_eq!(one.status, 200, "{}", one.json());
    let many = server
        .post(&json!({ "input": vec![part.clone(); 200] }))
        .await;
    assert_eq!(many.status, 413, "{}", many.json());
    assert_eq!(many.json()["error"]["code"], "media_too_large");
    assert_eq!(many.header("x-should-retry"), "false");
    // All of it was given back.
    let again = server.post(&json!({ "input": [part] })).await;
    assert_eq!(again.status, 200, "{}", again.json());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_request_that_names_many_large_files_is_refused_before_they_are_decoded() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("large");
    std::fs::write(&file, vec![0; 600_000]).unwrap();
    let root = directory.path().to_str().unwrap();
    let server = Server::start(
        &[
            "--allowed-local-media-path",
            root,
            "--batch-max-pixel-bytes",
            "4000000",
        ],
        &[],
    );
    let url = format!("file://{}", file.display());
    let ask = |count: usize| json!({ "input": vec![json!({ "image": url }); count] });
    // What the files hold is no picture, which is told only when there is room for them.
    let few = server.post(&ask(3)).await;
    assert_eq!(few.json()["error"]["code"], "unsupported_media");
    // An answer may leave before the last bytes of its request are given back: until then a request meets a full queue.
    let settled = async |count: usize| {
        let started = Instant::now();
        loop {
            let answer = server.post(&ask(count)).await;
            if answer.status != 429 || started.elapsed() > Duration::from_secs(20) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let many = settled(20).await;
    assert_eq!(many.status, 413, "{}", many.json());
    assert_eq!(many.json()["error"]["code"], "media_too_large");
    // What was held is free again.
    let few = settled(3).await;
    assert_eq!(few.json()["error"]["code"], "unsupported_media");
}
