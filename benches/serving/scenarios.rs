//! What is asked of the server, and what must hold. In: options. Out: printed numbers, and an error where a promise is broken.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::Options;
use crate::bare::Bare;
use crate::client::{Connection, get, post};
use crate::load::{BROKEN, Pace, Report, Requests, closed, open};
use crate::server::{Server, cpu_of};

/// What the scenarios promise: all of it is said in one place.
const GOODPUT_OF_PEAK: f64 = 0.95;
const REFUSAL_P99_MS: f64 = 20.0;
const HEALTH_P99_MS: f64 = 20.0;
const P99_BESIDE_SLOW: f64 = 1.2;
const P99_BESIDE_FLOOD: f64 = 1.5;
const SLOW_MAY_LAST: Duration = Duration::from_secs(30);
const MEMORY_SLOPE_PERCENT_PER_HOUR: f64 = 0.5;
const MEMORY_UNDER_OVERLOAD: f64 = 1.1;
const P99_AFTER_OVERLOAD: f64 = 1.5;
const OF_BARE_ENCODER: f64 = 0.97;
/// Of fewer answers the p99 is one or two of them.
const ENOUGH_FOR_P99: f64 = 200.0;

type Held = Result<(), String>;

fn require(holds: bool, promise: impl FnOnce() -> String) -> Held {
    if holds { Ok(()) } else { Err(promise()) }
}

/// Texts of so many words, each other than all before it; more fields of the body, more header lines.
fn texts(words: usize, fields: &'static str, headers: &str) -> Requests {
    const WORDS: [&str; 8] = [
        "river", "stone", "cat", "window", "blue", "market", "seven", "garden",
    ];
    let headers = headers.to_owned();
    Rc::new(move |number| {
        // All have as many tokens: each digit is one.
        let mut text = format!("{number:06}");
        for i in 1..words as u64 {
            text.push(' ');
            // A multiplicative hash: the order of words differs from text to text.
            let mixed = (number * 31 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61;
            text.push_str(WORDS[mixed as usize]);
        }
        post(&format!("{{\"input\":\"{text}\"{fields}}}"), &headers)
    })
}

fn image(file: &str) -> String {
    let media = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/parity/media/");
    let bytes = std::fs::read(format!("{media}{file}")).expect("a picture of the fixtures");
    BASE64_STANDARD.encode(bytes)
}

fn images(file: &str, headers: &str) -> Requests {
    let (picture, headers) = (image(file), headers.to_owned());
    Rc::new(move |number| {
        let body = format!("{{\"input\":{{\"text\":\"{number}\",\"image\":\"{picture}\"}}}}");
        post(&body, &headers)
    })
}

/// The same two inputs all the time, alone and in any company: their vectors must not differ in a bit.
struct Probe {
    requests: [Vec<u8>; 2],
    seen: RefCell<[BTreeSet<String>; 2]>,
    answers: Cell<usize>,
}

impl Probe {
    fn new(headers: &str) -> Self {
        let format = "\"encoding_format\":\"base64\"";
        let picture = image("rgba_200x150.png");
        let inputs = [
            "\"The probe.\"".to_owned(),
            format!("{{\"image\":\"{picture}\"}}"),
        ];
        Probe {
            requests: inputs.map(|input| post(&format!("{{\"input\":{input},{format}}}"), headers)),
            seen: RefCell::default(),
            answers: Cell::new(0),
        }
    }

    async fn ask(&self, address: &str) {
        for (request, seen) in self.requests.iter().zip(0..) {
            let Ok(mut connection) = Connection::open(address).await else {
                continue;
            };
            // A refusal says nothing of vectors.
            if !matches!(connection.ask(request).await, Ok(answer) if answer.status == 200) {
                continue;
            }
            let body: serde_json::Value =
                serde_json::from_slice(&connection.body).expect("JSON of the server");
            let vector = body["data"][0]["embedding"].as_str().expect("a vector");
            self.seen.borrow_mut()[seen].insert(vector.to_owned());
            self.answers.set(self.answers.get() + 1);
        }
    }

    /// Asks twice a second, or as seldom as it takes to be a small part of what a slow device does.
    async fn watch(&self, address: &str, lasting: Duration) {
        let began = Instant::now();
        while began.elapsed() < lasting {
            let asked = Instant::now();
            self.ask(address).await;
            let pause = (asked.elapsed() * 20).max(Duration::from_millis(500));
            tokio::time::sleep(pause.min(lasting.saturating_sub(began.elapsed()))).await;
        }
    }

    async fn finish(&self, address: &str) -> Held {
        self.ask(address).await;
        let vectors: Vec<usize> = self.seen.borrow().iter().map(BTreeSet::len).collect();
        println!(
            "probe/{} answers, different vectors: {} of the text, {} of the picture",
            self.answers.get(),
            vectors[0],
            vectors[1]
        );
        require(vectors == [1, 1], || {
            "the same input gave different bits".to_owned()
        })
    }
}

/// Tokens of a request's input, which the server counts.
async fn tokens(address: &str, request: &[u8]) -> u64 {
    let mut connection = Connection::open(address).await.expect("a connection");
    let answer = connection.ask(request).await.expect("an answer");
    let body = String::from_utf8_lossy(&connection.body).into_owned();
    assert_eq!(answer.status, 200, "{body}");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    body["usage"]["total_tokens"].as_u64().expect("a count")
}

/// The number format the server computes in.
async fn dtype(address: &str) -> String {
    let mut connection = Connection::open(address).await.expect("a connection");
    let asked = connection.ask(&get("/v1/models")).await;
    asked.expect("an answer");
    let body: serde_json::Value = serde_json::from_slice(&connection.body).expect("JSON");
    let dtype = body["data"][0]["dtype"].as_str();
    dtype.expect("the number format").to_owned()
}

/// Passes so far and the sequences in them, which the server counts.
async fn passes(address: &str) -> (f64, f64) {
    let mut connection = Connection::open(address).await.expect("a connection");
    let asked = connection.ask(&get("/metrics")).await;
    asked.expect("an answer");
    let text = String::from_utf8_lossy(&connection.body).into_owned();
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.trim().parse::<f64>().ok());
        value.expect("a number of the server's")
    };
    (
        number("manifold_batch_sequences_count "),
        number("manifold_batch_sequences_sum "),
    )
}

fn seconds(options: &Options, default: f64) -> Duration {
    Duration::from_secs_f64(options.number("seconds", default))
}

/// 64 clients, each asking as soon as it was answered.
pub(crate) async fn concurrency(options: &Options) -> Held {
    let server = Server::start(options, &[], None);
    let clients = options.number("clients", 64.0) as usize;
    let words = options.number("words", 8.0) as usize;
    let mut faults = 0;
    for (name, fields) in [
        ("float", ""),
        ("base64", ",\"encoding_format\":\"base64\""),
        ("raw, float", ",\"raw\":true"),
    ] {
        if !name.contains(options.text("only").unwrap_or_default()) {
            continue;
        }
        let requests = texts(words, fields, "");
        let count = tokens(&server.address, &requests(0)).await;
        let warm = Duration::from_secs(1);
        closed(&server.address, clients, warm, requests.clone()).await;
        let (before, own) = (server.cpu(), cpu_of("self"));
        let report = closed(&server.address, clients, seconds(options, 10.0), requests).await;
        let per_request = |spent: Duration| spent.as_secs_f64() * 1e6 / report.total() as f64;
        println!(
            "concurrency/{clients} clients, {count} tokens, {name}: {}; CPU a request: server {:.0} us, client {:.0} us",
            report.shown(),
            per_request(server.cpu() - before),
            per_request(cpu_of("self") - own),
        );
        faults += report.total() - report.count(200);
    }
    require(faults == 0, || format!("{faults} requests failed"))
}

/// So many token ids, other ones for each number.
fn token_ids(number: u64, count: u64) -> impl Iterator<Item = u32> {
    // A multiplicative hash of numbers that no two sequences have in common.
    let mixed = move |i: u64| (number * 4099 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
    (0..count).map(move |i| 256 + mixed(i) as u32)
}

/// So many token ids without a template.
fn ids(count: u64) -> Requests {
    Rc::new(move |number| {
        let ids: Vec<String> = token_ids(number, count).map(|id| id.to_string()).collect();
        post(
            &format!("{{\"input\":[[{}]],\"raw\":true}}", ids.join(",")),
            "",
        )
    })
}

/// 32 clients with texts of 128 tokens, in turn with the bare encoder on as many: how much of its speed is left.
pub(crate) async fn throughput(options: &Options) -> Held {
    let server = Server::start(options, &[], None);
    let (address, lasting) = (server.address.as_str(), seconds(options, 5.0));
    let clients = options.number("clients", 32.0) as usize;
    let count = options.number("tokens", 128.0) as u64;
    // What the tokenizer adds by itself.
    let added = tokens(address, &ids(1)(0)).await - 1;
    let requests = ids(count - added);
    assert_eq!(tokens(address, &requests(0)).await, count);
    let inputs = (0..clients as u64).map(|number| token_ids(number, count).collect());
    let bare = Bare::load(options, &dtype(address).await, inputs);
    bare.encode(Duration::ZERO);
    closed(address, clients, lasting, requests.clone()).await;
    let before = passes(address).await;
    let (mut served, mut alone) = (Report::default(), [(0, Duration::ZERO); 2]);
    for _ in 0..options.number("rounds", 10.0) as usize {
        for (sum, (sequences, took)) in alone.iter_mut().zip(bare.encode(lasting)) {
            *sum = (sum.0 + sequences, sum.1 + took);
        }
        served.join(closed(address, clients, lasting, requests.clone()).await);
    }
    let after = passes(address).await;
    // The server makes batches as they come, so it is held to the faster way.
    let [one, two] = alone.map(|(sequences, took)| sequences as f64 / took.as_secs_f64());
    let bare = one.max(two);
    let share = served.goodput() / bare;
    println!(
        "throughput/{clients} x {count}: {:.1} tokens/s, {:.1} % of the bare encoder's {:.1} (in one batch {:.1}), {:.1} sequences a pass; {}",
        served.goodput() * count as f64,
        100.0 * share,
        bare * count as f64,
        one * count as f64,
        (after.1 - before.1) / (after.0 - before.0),
        served.shown()
    );
    require(served.count(200) == served.total(), || served.shown())?;
    require(share >= OF_BARE_ENCODER, || {
        format!("{share:.3} of the bare encoder's speed")
    })
}

/// Health, asked all the time.
async fn health(address: &str, lasting: Duration) -> Report {
    let ask = get("/health/ready");
    open(
        address,
        Pace::even(50.0, 8),
        lasting,
        Rc::new(move |_| ask.clone()),
    )
    .await
}

/// What must hold of answers, refusals and health under ten times the load, beside the peak; the deadline in milliseconds.
fn check_overload((load, health): (&Report, &Report), peak: &Report, deadline: f64) -> Held {
    let (goodput, most) = (load.goodput(), peak.goodput());
    println!(
        "overload/goodput {goodput:.2} of the peak's {most:.2} answers/s: {:.1} %",
        100.0 * goodput / most
    );
    require(goodput >= GOODPUT_OF_PEAK * most, || {
        "goodput under overload".to_owned()
    })?;
    let refused = load.quantile(&[429, 503], 0.99);
    require(refused <= REFUSAL_P99_MS, || {
        format!("refusals {refused} ms")
    })?;
    let healthy = health.quantile(&[200], 0.99);
    require(
        healthy <= HEALTH_P99_MS && health.count(200) == health.total(),
        || format!("health {healthy} ms: {}", health.shown()),
    )?;
    require(load.without_retry_after == 0, || "Retry-After".to_owned())?;
    require(load.faults() == 0, || format!("faults: {}", load.shown()))?;
    let slowest = load.quantile(&[200], 1.0);
    require(slowest <= deadline, || {
        format!("an accepted request took {slowest:.0} ms")
    })
}

/// Prints what became of refusals and health, of the server's memory from early to late, and the share of a core the client took.
fn show_overload((load, health): (&Report, &Report), (early, late): (u64, u64), client: f64) {
    println!(
        "overload/refusals p99 {:.2} ms, health p99 {:.2} ms, {} without Retry-After, memory {:.1} -> {:.1} MB, client {:.0} % of a core",
        load.quantile(&[429, 503], 0.99),
        health.quantile(&[200], 0.99),
        load.without_retry_after,
        early as f64 / 1e6,
        late as f64 / 1e6,
        100.0 * client,
    );
}

/// What 64 clients bring who have no deadline: where some are refused, who asks again at once takes from those who are answered, and it is
/// no peak.
async fn peak(address: &str, measure: Duration, unhurried: &Requests) -> Result<Report, String> {
    let peak = closed(address, 64, measure, unhurried.clone()).await;
    require(peak.count(200) == peak.total(), || {
        format!("the peak: {}", peak.shown())
    })?;
    Ok(peak)
}

/// What must hold of one deadline later, beside what was before: the server is itself again.
fn check_recovery(before: &Report, after: &Report) -> Held {
    let p99 = |report: &Report| report.quantile(&[200], 0.99);
    let late = p99(after) / p99(before);
    println!("overload/p99 afterwards {late:.2} of before");
    require(
        after.count(200) == after.total() && late <= P99_AFTER_OVERLOAD,
        || format!("recovery: {}", after.shown()),
    )
}

/// Ten times what can be sustained.
pub(crate) async fn overload(options: &Options) -> Held {
    let server = Server::start(options, &[], None);
    let (address, lasting) = (server.address.as_str(), seconds(options, 20.0));
    let words = options.number("words", 400.0) as usize;
    let deadline = options.number("deadline-ms", 5000.0);
    let headers = format!("x-request-timeout-ms: {deadline}\r\n");
    let requests = texts(words, "", &headers);
    let count = tokens(address, &requests(0)).await;
    let measure = Duration::from_secs_f64(options.number("peak-seconds", 10.0));
    let unhurried = texts(words, "", "");
    closed(address, 64, measure / 2, unhurried.clone()).await;
    let mut peak = peak(address, measure, &unhurried).await?;
    println!("overload/peak, {count} tokens: {}", peak.shown());
    let half = Pace::even(peak.goodput() / 2.0, 256);
    let calm = measure.max(Duration::from_secs_f64(ENOUGH_FOR_P99 / half.rate));
    // Both calms follow as long a pause: a virtual machine is slow to touch again what it let lie for seconds.
    let pause = Duration::from_secs_f64(deadline / 1e3);
    tokio::time::sleep(pause).await;
    let before = open(address, half, calm, requests.clone()).await;
    println!("overload/half the peak: {}", before.shown());
    let probe = Probe::new("");
    probe.ask(address).await;
    // Where client and server share two cores, waking the client for every single request takes the server as much as refusing it.
    let tenfold = Pace {
        rate: options.number("times", 10.0) * peak.goodput(),
        burst: Duration::from_secs_f64(options.number("burst-ms", 10.0) / 1e3),
        connections: 3000,
    };
    let cpu = cpu_of("self");
    let early = Cell::new(0);
    let remember = async {
        tokio::time::sleep(lasting / 4).await;
        early.set(server.memory());
    };
    let (mut load, health, (), ()) = tokio::join!(
        open(address, tenfold, lasting, requests.clone()),
        health(address, lasting),
        remember,
        probe.watch(address, lasting)
    );
    let memory = early.get();
    let spent = (cpu_of("self") - cpu).as_secs_f64() / lasting.as_secs_f64();
    println!("overload/{:.0} a second: {}", tenfold.rate, load.shown());
    let late = server.memory();
    show_overload((&load, &health), (memory, late), spent);
    let grown = late as f64 / memory as f64;
    tokio::time::sleep(pause).await;
    let mut after = open(address, half, calm, requests.clone()).await;
    println!(
        "overload/half the peak, one deadline later: {}\n{}",
        after.shown(),
        after.slowest(8)
    );
    // In turn: a machine that others use, too, is faster now and slower then.
    for _ in 0..options.number("rounds", 3.0) as usize {
        let alone = self::peak(address, measure, &unhurried).await?;
        let again = open(address, tenfold, 3 * measure, requests.clone()).await;
        println!(
            "overload/a round: peak {:.1} answers/s, ten times the load {:.1}",
            alone.goodput(),
            again.goodput()
        );
        peak.join(alone);
        load.join(again);
    }
    check_overload((&load, &health), &peak, deadline)?;
    require(grown <= MEMORY_UNDER_OVERLOAD, || {
        format!("memory grew to {grown:.2} of what it was a quarter into the load")
    })?;
    check_recovery(&before, &after)?;
    probe.finish(address).await
}

/// A connection that sends next to nothing; how long the server let it.
async fn slow(address: String, kind: usize) -> Duration {
    const HEAD: &str = "POST /v1/embeddings HTTP/1.1\r\nhost: bench\r\n";
    let (start, drop) = match kind % 4 {
        0 => (String::new(), ""),
        1 => (HEAD.to_owned(), "a: b\r\n"),
        2 => (format!("{HEAD}content-length: 100000\r\n\r\n"), " "),
        _ => (
            "GET /health/live HTTP/1.1\r\nhost: bench\r\n\r\n".to_owned(),
            "",
        ),
    };
    let stream = TcpStream::connect(address).await.expect("a connection");
    let (mut reader, mut writer) = stream.into_split();
    let began = Instant::now();
    writer.write_all(start.as_bytes()).await.ok();
    let dripping = async {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if writer.write_all(drop.as_bytes()).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut said = Vec::new();
    tokio::select! {
        () = dripping => {}
        _ = reader.read_to_end(&mut said) => {}
        () = tokio::time::sleep(2 * SLOW_MAY_LAST) => {}
    }
    began.elapsed()
}

/// Thousands that hold their connections, beside honest clients.
pub(crate) async fn slow_connections(options: &Options) -> Held {
    let server = Server::start(options, &[], None);
    let (address, lasting) = (server.address.as_str(), seconds(options, 20.0));
    let count = options.number("count", 2000.0) as usize;
    let load = Pace::even(options.number("rate", 300.0), 128);
    let requests = texts(8, "", "");
    open(address, load, Duration::from_secs(2), requests.clone()).await;
    let alone = open(address, load, lasting, requests.clone()).await;
    println!("slow-connections/alone: {}", alone.shown());
    let tasks = LocalSet::new();
    let longest = Rc::new(Cell::new(Duration::ZERO));
    for kind in 0..count {
        let (address, longest) = (server.address.clone(), longest.clone());
        tasks.spawn_local(async move {
            // Not all in one instant: the queue of the kernel is not what is measured.
            tokio::time::sleep(Duration::from_millis(kind as u64)).await;
            let took = slow(address, kind).await;
            longest.set(longest.get().max(took));
        });
    }
    let files = Cell::new(0);
    let beside = async {
        tokio::time::sleep(Duration::from_millis(count as u64)).await;
        files.set(server.files());
        open(
            address,
            load,
            lasting - Duration::from_millis(count as u64),
            requests.clone(),
        )
        .await
    };
    let probe = Probe::new("");
    let (beside, (), ()) = tokio::join!(beside, tasks, probe.watch(address, lasting));
    println!("slow-connections/beside {count}: {}", beside.shown());
    let after = server.files();
    // A machine that others use, too, is faster now and slower then.
    let again = open(address, load, lasting, requests).await;
    println!("slow-connections/alone again: {}", again.shown());
    let longest = longest.get();
    let p99 = |report: &Report| report.quantile(&[200], 0.99);
    let ratio = 2.0 * p99(&beside) / (p99(&alone) + p99(&again));
    println!(
        "slow-connections/p99 {ratio:.2} of alone; files open {} with them, {} after; the longest was let be for {:.1} s",
        files.get(),
        after,
        longest.as_secs_f64()
    );
    require(files.get() > count, || "too few were open".to_owned())?;
    require(longest <= SLOW_MAY_LAST, || format!("open for {longest:?}"))?;
    require(beside.count(200) == beside.total(), || beside.shown())?;
    require(ratio <= P99_BESIDE_SLOW, || {
        format!("p99 {ratio:.2} of alone")
    })?;
    probe.finish(address).await
}

/// Short texts, long ones and pictures, as a day brings them.
fn mixture() -> Requests {
    let (short, long) = (texts(8, "", ""), texts(300, "", ""));
    let picture = images("rgba_200x150.png", "");
    Rc::new(move |number| match number % 20 {
        0 => picture(number),
        1..=3 => long(number),
        _ => short(number),
    })
}

/// The slope of a line through the points, by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let covered: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let shared: f64 = points
        .iter()
        .map(|point| (point.0 - x) * (point.1 - y))
        .sum();
    shared / covered
}

/// 70 % of what can be sustained, for long: memory and files.
pub(crate) async fn mixed(options: &Options) -> Held {
    let server = Server::start(options, &[], None);
    let (address, lasting) = (server.address.as_str(), seconds(options, 150.0));
    let requests = mixture();
    closed(address, 64, Duration::from_secs(5), requests.clone()).await;
    let peak = closed(address, 64, Duration::from_secs(10), requests.clone()).await;
    println!("mixed/peak: {}", peak.shown());
    let probe = Probe::new("");
    // Without a load nobody is connected.
    let unloaded = async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.files()
    };
    let before = unloaded().await;
    let memory = RefCell::new(Vec::new());
    let most_files = Cell::new(before);
    let watching = async {
        let began = Instant::now();
        while began.elapsed() < lasting {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let hours = began.elapsed().as_secs_f64() / 3600.0;
            memory.borrow_mut().push((hours, server.memory() as f64));
            most_files.set(most_files.get().max(server.files()));
        }
    };
    let pace = Pace::even(0.7 * peak.goodput(), 256);
    let load = open(address, pace, lasting, requests);
    let (load, (), ()) = tokio::join!(load, watching, probe.watch(address, lasting));
    println!("mixed/70 %: {}", load.shown());
    let memory = memory.into_inner();
    let tenths = (1..=10).filter_map(|i| memory.get((memory.len() * i / 10).checked_sub(1)?));
    let tenths: Vec<String> = tenths
        .map(|point| format!("{:.1}", point.1 / 1e6))
        .collect();
    println!("mixed/memory by tenths: {} MB", tenths.join(", "));
    // The first half warms up.
    let warm = &memory[memory.len() / 2..];
    let last = warm.last().map_or(0.0, |point| point.1);
    // What requests need while they are there comes and goes within seconds; what stays is the least of each thirtieth: of an hour's
    // second half, of a minute.
    let least = |part: &[(f64, f64)]| part.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
    let lowest: Vec<(f64, f64)> = warm
        .chunks(warm.len().div_ceil(30).max(1))
        .filter_map(least)
        .collect();
    let percent = 100.0 * slope(&lowest) / last;
    let of_all = 100.0 * slope(warm) / last;
    let after = unloaded().await;
    println!(
        "mixed/memory {:.1} MB, {percent:.2} % an hour over the second half by the least of each thirtieth, {of_all:.2} % by all; files {before} before, at most {} meanwhile, {after} after",
        last / 1e6,
        most_files.get()
    );
    require(load.count(200) == load.total(), || load.shown())?;
    // Within minutes the allocator's own steps are larger than any leak the promise is about.
    let long = lasting >= Duration::from_secs(1200);
    require(!long || percent <= MEMORY_SLOPE_PERCENT_PER_HOUR, || {
        format!("memory grows by {percent:.2} % an hour")
    })?;
    require(after <= before, || {
        format!("open files {before} before and {after} after")
    })?;
    probe.finish(address).await
}

/// Short texts of one key while another sends the largest pictures.
pub(crate) async fn flood(options: &Options) -> Held {
    let server = Server::start(options, &[], Some("texts,pictures"));
    let (address, lasting) = (server.address.as_str(), seconds(options, 10.0));
    let texts = texts(8, "", "authorization: Bearer texts\r\n");
    let pictures = images("huge_2400x1800.png", "authorization: Bearer pictures\r\n");
    let probe = Probe::new("authorization: Bearer texts\r\n");
    probe.ask(address).await;
    let load = Pace::even(options.number("rate", 50.0), 64);
    open(address, load, Duration::from_secs(2), texts.clone()).await;
    let clients = options.number("clients", 8.0) as usize;
    let (mut alone, mut beside, mut flood) = <(Report, Report, Report)>::default();
    // In turn: a machine that others use, too, is faster now and slower then.
    for _ in 0..options.number("rounds", 4.0) as usize {
        alone.join(open(address, load, lasting, texts.clone()).await);
        let (flooded, pictures, ()) = tokio::join!(
            open(address, load, lasting, texts.clone()),
            closed(address, clients, lasting, pictures.clone()),
            probe.watch(address, lasting)
        );
        beside.join(flooded);
        flood.join(pictures);
    }
    println!("flood/texts alone: {}", alone.shown());
    println!("flood/texts beside pictures: {}", beside.shown());
    print!("flood/the slowest of them:\n{}", beside.slowest(20));
    println!("flood/pictures: {}", flood.shown());
    let p99 = |report: &Report| report.quantile(&[200], 0.99);
    let ratio = p99(&beside) / p99(&alone);
    println!("flood/p99 {ratio:.2} of alone");
    require(
        flood.count(BROKEN) == 0 && beside.count(200) == beside.total(),
        || beside.shown(),
    )?;
    require(flood.count(200) > 0, || {
        format!("no picture was answered: {}", flood.shown())
    })?;
    require(ratio <= P99_BESIDE_FLOOD, || {
        format!("p99 {ratio:.2} of alone")
    })?;
    probe.finish(address).await
}
