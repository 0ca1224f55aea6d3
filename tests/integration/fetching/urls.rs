//! The URLs: places no fetch may lead to, in every spelling of an address and of a URL, by name and by redirect; and honest ones.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{HOME, hidden};

/// Below this the world's name server answers.
pub(super) const ZONE: &str = "net.example";
/// What the world's certificate says.
pub(super) const CERTIFIED: [&str; 4] = [
    "v4-8-8-8-8.plain.net.example",
    "v6-26064700000000000000000000001111.plain.net.example",
    "8.8.8.8",
    "2606:4700::1111",
];
/// Who answers with redirects.
const OUTSIDE: &str = "93.184.216.34";

/// What should come of a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Fetched,
    Refused,
}

#[derive(Debug)]
pub(super) struct Case {
    pub(super) url: String,
    pub(super) expected: Answer,
}

fn cases(urls: impl IntoIterator<Item = String>, expected: Answer) -> Vec<Case> {
    let unique: BTreeSet<String> = urls.into_iter().collect();
    let case = |url| Case { url, expected };
    unique.into_iter().map(case).collect()
}

const V4: [&str; 14] = [
    "169.254.169.254",
    "169.254.170.2",
    "10.0.0.1",
    "10.255.255.254",
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "192.168.1.1",
    "172.16.0.1",
    "172.31.255.255",
    "100.64.0.1",
    "168.63.129.16",
    "198.18.0.1",
    HOME,
];

const V6: [&str; 10] = [
    "::1",
    "::",
    "fd00:ec2::254",
    "fd00::1",
    "fc00::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "5f00::1",
];

/// Spellings of an IPv4 address as a host.
fn spellings_v4(text: &str) -> Vec<String> {
    let address: Ipv4Addr = text.parse().unwrap();
    let [a, b, c, d] = address.octets();
    let bits = address.to_bits();
    let percent = |text: &str| -> String { text.bytes().map(|b| format!("%{b:02x}")).collect() };
    let wide = |text: &str| -> String {
        let wide = |c: char| match c {
            '0'..='9' => char::from_u32('０' as u32 + (c as u32 - '0' as u32)).unwrap(),
            other => other,
        };
        text.chars().map(wide).collect()
    };
    let (high, low) = (bits >> 16, bits & 0xffff);
    let teredo = !bits;
    let mut all = vec![
        text.to_owned(),
        format!("{text}."),
        format!("{bits}"),
        format!("{bits:#x}"),
        format!("0X{bits:X}"),
        format!("{bits:#o}").replace("0o", "0"),
        format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("0000{a:o}.{b}.{c}.{d}"),
        format!("{a}.{}", bits & 0xff_ffff),
        format!("{a}.{b}.{low}"),
        format!("{a:#x}.{b}.0{low:o}"),
        percent(text),
        text.replace('.', "%2e"),
        wide(text),
        text.replace('.', "。"),
        text.replace('.', "．"),
        text.replace('1', "①"),
        format!("[::ffff:{text}]"),
        format!("[::ffff:{high:x}:{low:x}]"),
        format!("[0:0:0:0:0:FFFF:{text}]"),
        format!("[::{text}]"),
        format!("[64:ff9b::{high:x}:{low:x}]"),
        format!("[64:ff9b:1::{high:x}:{low:x}]"),
        format!("[2002:{high:x}:{low:x}::]"),
        format!(
            "[2001:0:4136:e378:8000:63bf:{:x}:{:x}]",
            teredo >> 16,
            teredo & 0xffff
        ),
    ];
    // The embedded forms of the server's own public address lead to the world, not home; what they embed is public.
    if text == HOME {
        all.retain(|host| !host.contains("64:ff9b::"));
    }
    all
}

fn spellings_v6(text: &str) -> Vec<String> {
    let address: Ipv6Addr = text.parse().unwrap();
    let full: Vec<String> = address
        .segments()
        .iter()
        .map(|s| format!("{s:04X}"))
        .collect();
    vec![
        format!("[{text}]"),
        format!("[{}]", full.join(":")),
        format!("[{text}%25lo]"),
        format!("[{text}%lo]"),
        format!("%5b{text}%5d"),
        text.to_owned(),
    ]
}

/// Spellings of a URL with this host.
fn syntaxes(host: &str) -> Vec<String> {
    vec![
        format!("http://{host}/"),
        format!("HTTP://{host}"),
        format!("https://{host}/latest/meta-data/"),
        format!("http://{host}:80/"),
        format!("http://{host}:443/"),
        format!("http://{host}:00080/?a#b"),
        format!(r"http:\\{host}\"),
        format!(r"http:/\{host}/"),
        format!("http:/{host}/"),
        format!("http:{host}/"),
        format!("http:////{host}/"),
        format!(" \t http://{host}/\n"),
        format!("ht\ntp://{host}/"),
        format!("http:/\t/{host}/"),
        format!("http://\t{host}/"),
        format!("http://user@{host}/"),
        format!("http://8.8.8.8@{host}/"),
        format!("http://8.8.8.8:80@{host}/"),
        format!(r"http://{host}\@8.8.8.8/"),
        format!("http://{host}#@8.8.8.8/"),
        format!("http://{host}?@8.8.8.8/"),
        format!("http://{host}%2f@8.8.8.8/"),
        format!("http://{host}%00.net.example/"),
        format!("http://{host} 8.8.8.8/"),
    ]
}

fn label_v4(text: &str) -> String {
    format!("v4-{}", text.replace('.', "-"))
}

fn label_v6(text: &str) -> String {
    format!("v6-{:032x}", text.parse::<Ipv6Addr>().unwrap().to_bits())
}

/// Names that lead to one bad address, alone, among good ones, by aliases and by turns.
fn bad_names() -> Vec<String> {
    let good = ["v4-8-8-8-8", "v6-26064700000000000000000000001111"];
    let v4 = V4.iter().map(|text| label_v4(text));
    let v6 = V6.iter().map(|text| label_v6(text));
    let mapped = V4[..5]
        .iter()
        .map(|text| label_v6(&format!("::ffff:{text}")));
    let mut names = Vec::new();
    for bad in v4.chain(v6).chain(mapped) {
        let is_v4 = bad.starts_with("v4");
        let same = good[usize::from(!is_v4)];
        names.push(format!("{bad}.plain.{ZONE}"));
        names.push(format!("{bad}.plain.{ZONE}."));
        names.push(format!("{bad}.PLAIN.{}", ZONE.to_uppercase()));
        names.push(format!("{bad}.{}.{}.plain.{ZONE}", good[0], good[1]));
        names.push(format!("{}.{}.{bad}.plain.{ZONE}", good[0], good[1]));
        names.push(format!("{bad}.alias.{ZONE}"));
        names.push(format!("{same}.{bad}.aliases.{ZONE}"));
    }
    names.push(format!("v4-169-254-169-254.metadata.{ZONE}"));
    for name in [
        "localhost",
        "LocalHost.",
        "a.localhost",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata.goog",
        "instance-data",
        "nowhere.invalid",
    ] {
        names.push(name.to_owned());
    }
    names
}

/// A name that leads outside first and home the next time, and whose server at first only redirects to itself.
fn rebinding(tag: &str) -> Vec<String> {
    let mut urls = Vec::new();
    for (number, bad) in V4.iter().enumerate() {
        for (code, good) in [(302, OUTSIDE), (307, "8.8.4.4")] {
            let (good, bad) = (label_v4(good), label_v4(bad));
            let name = format!("{good}.{bad}.rebind.{tag}-{number}-{code}.{ZONE}");
            urls.push(format!(
                "http://{name}/to/{code}/3/{}",
                hidden(&format!("http://{name}/"))
            ));
        }
    }
    urls
}

/// Redirects from outside to a place, of each code and after so many hops.
fn redirects(places: &[String], hops: &[usize]) -> Vec<String> {
    let mut urls = Vec::new();
    for place in places {
        for code in [301, 302, 303, 307, 308] {
            for hops in hops {
                urls.push(format!(
                    "http://{OUTSIDE}/to/{code}/{hops}/{}",
                    hidden(place)
                ));
            }
        }
    }
    urls
}

/// Where redirects lead that no URL may.
fn bad_places() -> Vec<String> {
    let mut places: Vec<String> = V4.iter().map(|host| format!("http://{host}/")).collect();
    places.extend(V6.iter().map(|host| format!("http://[{host}]/")));
    for place in [
        "//169.254.169.254/",
        r"\\10.0.0.1\",
        "http:/\t/127.0.0.1/",
        "http://0x7f.1/",
        "http://2852039166/",
        "http://[::ffff:169.254.169.254]/",
        "http://v4-10-0-0-1.plain.net.example/",
        "http://v4-8-8-8-8.v4-127-0-0-1.plain.net.example/",
        "http://localhost/",
        "http://metadata.google.internal/",
        "https://169.254.169.254/",
        "http://user@8.8.8.8/",
        "http://8.8.8.8:8080/",
        "ftp://8.8.8.8/",
        "file:///etc/passwd",
        "gopher://10.0.0.1:6379/_INFO",
        "data:image/png;base64,AAAA",
        "",
        "http://",
    ] {
        places.push(place.to_owned());
    }
    places
}

/// URLs for a server that follows no redirects.
pub(super) fn hostile() -> Vec<Case> {
    let hosts = V4.iter().flat_map(|text| spellings_v4(text));
    let hosts = hosts.chain(V6.iter().flat_map(|text| spellings_v6(text)));
    let mut urls: Vec<String> = hosts.flat_map(|host| syntaxes(&host)).collect();
    // Their hosts are the good ones behind them, which a parser that disagrees with ours would not see: not home in any case.
    let honest_by_ours = |url: &String| {
        let parsed = url::Url::parse(url.trim());
        parsed.is_ok_and(|url| url.host_str() == Some("8.8.8.8") && url.username().is_empty())
    };
    urls.retain(|url| !honest_by_ours(url));
    for name in bad_names() {
        urls.push(format!("http://{name}/"));
        urls.push(format!("https://{name}/"));
    }
    urls.extend(rebinding("a"));
    urls.extend(redirects(&bad_places(), &[1]));
    for port in [21, 22, 25, 6379, 8080, 11211] {
        urls.push(format!("http://8.8.8.8:{port}/"));
    }
    for other in [
        "ftp://8.8.8.8/",
        "gopher://8.8.8.8/",
        "ws://8.8.8.8/",
        "dict://8.8.8.8/",
    ] {
        urls.push(other.to_owned());
    }
    // A certificate of another, and none at all.
    urls.push("https://8.8.4.4/".to_owned());
    urls.push(format!("https://v4-8-8-8-8.other.{ZONE}/"));
    urls.push(format!("http://v4-8-8-8-8.silent.{ZONE}/"));
    cases(urls, Answer::Refused)
}

/// Redirects for a server that follows three.
pub(super) fn redirected() -> Vec<Case> {
    let bad = redirects(&bad_places(), &[1, 2, 3]);
    let good = [
        "http://8.8.8.8/".to_owned(),
        "https://8.8.8.8/".to_owned(),
        "/a.png".to_owned(),
        "//v4-8-8-8-8.plain.net.example/b.png".to_owned(),
    ];
    let too_far = redirects(&good, &[4, 5, 100]);
    let loops: [String; 1] = [format!("http://{OUTSIDE}/to/302/1/{}", hidden("?again"))];
    // Encrypted at first, and then not.
    let downgrade = format!("https://8.8.8.8/to/302/1/{}", hidden("http://8.8.8.8/"));
    let upgrade = format!(
        "https://8.8.8.8/to/302/1/{}",
        hidden("https://[2606:4700::1111]/")
    );
    let mut all = cases(bad, Answer::Refused);
    all.extend(cases(too_far, Answer::Refused));
    all.extend(cases(loops, Answer::Refused));
    all.extend(cases(rebinding("b"), Answer::Refused));
    all.extend(cases([downgrade], Answer::Refused));
    all.extend(cases([upgrade], Answer::Fetched));
    all.extend(cases(redirects(&good, &[1, 2, 3]), Answer::Fetched));
    all
}

/// URLs of ordinary clients.
pub(super) fn honest() -> Vec<Case> {
    let mut urls = Vec::new();
    let hosts = [
        "8.8.8.8".to_owned(),
        "1.1.1.1".to_owned(),
        "93.184.216.34".to_owned(),
        "134744072".to_owned(),
        "0x8.8.2056".to_owned(),
        "223.255.255.254".to_owned(),
        "172.32.0.1".to_owned(),
        "192.169.0.1".to_owned(),
        "[2606:4700::1111]".to_owned(),
        "[2001:4860:4860::8888]".to_owned(),
        "[::ffff:8.8.8.8]".to_owned(),
        "[64:ff9b::8.8.8.8]".to_owned(),
        format!("v4-8-8-8-8.plain.{ZONE}"),
        format!("V4-8-8-8-8.Plain.{ZONE}."),
        format!("v6-26064700000000000000000000001111.plain.{ZONE}"),
        format!("v4-8-8-8-8.v6-26064700000000000000000000001111.plain.{ZONE}"),
        format!("v4-8-8-8-8.v4-8-8-4-4.v4-1-1-1-1.v4-9-9-9-9.v4-1-0-0-1.plain.{ZONE}"),
        format!("v4-8-8-8-8.alias.{ZONE}"),
        format!("v4-8-8-8-8.aliases.{ZONE}"),
        format!("v4-8-8-8-8.plain.bücher.{ZONE}"),
        format!("v4-8-8-8-8.plain.日本.{ZONE}"),
        format!("v4-8-8-8-8.plain.with_underscore.{ZONE}"),
        format!("v4-8-8-8-8.plain.localhost.{ZONE}"),
        format!("v4-8-8-8-8.plain.10.0.0.1.{ZONE}"),
    ];
    for host in &hosts {
        urls.push(format!("http://{host}/a.png"));
        urls.push(format!(
            "HTTP://{host}:80/a%20b/ü.png?x=y&z=http://127.0.0.1/#f"
        ));
        urls.push(format!("http://{host}/chunked"));
    }
    for host in CERTIFIED {
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        urls.push(format!("https://{host}/"));
        urls.push(format!("https://{host}:443/a.png?b"));
    }
    urls.push(format!("https://{}./", CERTIFIED[0]));
    assert!(urls.len() >= 50);
    cases(urls, Answer::Fetched)
}

/// What is reached, and what is not even then, where private networks are allowed. Nothing at home answers, so nothing is fetched there.
pub(super) fn allowed_by_option() -> Vec<Case> {
    let mut all = cases(
        ["http://10.0.0.1/", "http://[fd00::1]/"].map(str::to_owned),
        Answer::Fetched,
    );
    let silent = ["http://127.0.0.1/", "http://[::1]/"];
    let metadata = [
        "http://169.254.169.254/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://v4-169-254-169-254.metadata.net.example/",
        "http://metadata.google.internal/",
    ];
    let refused = silent.into_iter().chain(metadata).map(str::to_owned);
    all.extend(cases(refused, Answer::Refused));
    all
}
