//! More than the server can do: lanes, refusals, deadlines, equal inputs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{Answer, Server};

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

/// Sends long texts, one a request, without waiting for the answers.
fn flood(
    server: &Server,
    key: &'static str,
    count: usize,
) -> Vec<tokio::task::JoinHandle<(u16, Instant)>> {
    let one = |number| {
        let url = format!("{}/v1/embeddings", server.url);
        tokio::spawn(async move {
            let sent = reqwest::Client::new()
                .post(url)
                .bearer_auth(key)
                .header("content-type", "application/json")
                .body(json!({ "input": long_text(number) }).to_string())
                .send();
            (sent.await.unwrap().status().as_u16(), Instant::now())
        })
    };
    (0..count).map(one).collect()
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
    let flood = flood(&server, "", 30);
    let mut refused = None;
    let began = Instant::now();
    while refused.is_none() && began.elapsed() < Duration::from_secs(60) {
        let answer = post(&server, &[], &json!({ "input": long_text(99) })).await;
        refused = Some(answer).filter(|answer| answer.status == 429);
    }
    let refused = refused.expect("the queue was never full");
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    let ms: u64 = refused.header("retry-after-ms").parse().unwrap();
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert!(
        (100..=60_000).contains(&ms) && seconds == ms.div_ceil(1000),
        "{ms}, {seconds}"
    );
    let mut statuses = Vec::new();
    for request in flood {
        statuses.push(request.await.unwrap().0);
    }
    assert!(statuses.contains(&200), "{statuses:?}");
    assert!(
        statuses.iter().all(|status| [200, 429].contains(status)),
        "{statuses:?}"
    );
    // What was refused left nothing behind.
    assert_eq!(
        server.post(&json!({ "input": long_text(99) })).await.status,
        200
    );
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
        let (status, at) = request.await.unwrap();
        assert_eq!(status, 200);
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
