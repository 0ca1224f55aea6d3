//! What `MediaSource::parse` takes and refuses.

use super::*;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;

const LIMIT: usize = 1 << 20;

fn inline(text: &str) -> Vec<u8> {
    match MediaSource::parse(text, LIMIT) {
        Ok(MediaSource::Inline(bytes)) => bytes.to_vec(),
        other => panic!("{text:?} gave {other:?}"),
    }
}

fn reason(text: &str) -> String {
    match MediaSource::parse(text, LIMIT) {
        Err(MediaError::InvalidSource { reason }) => reason,
        other => panic!("{text:?} gave {other:?}"),
    }
}

#[test]
fn data_uris_are_read_in_every_spelling() {
    for text in [
        "data:image/png;base64,+/8BAg==",
        "data:image/png;base64,+/8BAg",
        "DATA:image/PNG;BASE64,+/8BAg==",
        "data:;base64,+/8BAg==",
        "data:image/svg+xml;charset=utf-8;base64,+/8BAg==",
        "data:image/png; base64,+/8BAg==",
        "data:image/png;base64,-_8BAg",
        "data:image/png;base64,%2B%2F8BAg%3D%3D",
        "  data:image/png;base64,+/8B\r\n  Ag==\n",
        "data:image/png,%fb%FF%01%02",
    ] {
        assert_eq!(inline(text), [0xfb, 0xff, 1, 2], "{text}");
    }
    assert_eq!(inline("data:,a%20b%"), b"a b%");
    assert_eq!(inline("data:image/png;base64,"), b"");
}

#[test]
fn bare_base64_is_read_in_either_alphabet() {
    for text in ["+/8BAg==", "-_8BAg==", "-_8BAg", "+_8B\nAg"] {
        assert_eq!(inline(text), [0xfb, 0xff, 1, 2], "{text}");
    }
}

#[test]
fn urls_are_parsed_once_and_kept_as_parsed() {
    let url = |text: &str| match MediaSource::parse(text, LIMIT) {
        Ok(MediaSource::Url(url) | MediaSource::File(url)) => url.to_string(),
        other => panic!("{text:?} gave {other:?}"),
    };
    assert_eq!(
        url("HTTP://Example.COM/a b.png"),
        "http://example.com/a%20b.png"
    );
    // The backslash on which two parsers disagreed: this one value is checked and dialled.
    assert_eq!(
        url(r"http://good.example\@bad.example/"),
        "http://good.example/@bad.example/"
    );
    assert_eq!(url("http://0x7f.1/"), "http://127.0.0.1/");
    assert_eq!(url("file:///srv/media/../a.png"), "file:///srv/a.png");
}

#[test]
fn user_names_and_passwords_in_urls_are_refused() {
    for text in [
        "http://user@example.com/",
        "https://user:secret@example.com/",
        "http://:secret@example.com/",
    ] {
        let reason = reason(text);
        assert!(
            reason.contains("user name") && !reason.contains("secret"),
            "{reason}"
        );
    }
}

#[test]
fn what_is_none_of_these_is_refused_with_what_was_expected() {
    for text in [
        "",
        "   ",
        "ftp://example.com/a.png",
        "javascript:alert(1)",
        "/srv/a.png",
        "not base64!",
        "abcde",
        "http://",
        "http://[::1",
        "data:image/png",
    ] {
        assert!(!reason(text).is_empty());
    }
    assert!(reason("ftp://example.com/a.png").contains("expected a data: URI, base64"));
    assert!(reason("a.png").contains("\"a.png\""));
    let long = format!("a.png{}", "x".repeat(10_000));
    assert!(
        reason(&long).len() < 200,
        "an error repeats the beginning only"
    );
}

#[test]
fn urls_longer_than_8_kib_are_refused_before_parsing() {
    let text = format!("http://example.com/{}", "a".repeat(8 << 10));
    assert!(matches!(
        MediaSource::parse(&text, LIMIT),
        Err(MediaError::TooLarge {
            value: 8211,
            limit: 8192,
            ..
        })
    ));
}

#[test]
fn too_many_bytes_are_refused_before_decoding_and_the_limit_itself_is_allowed() {
    let at_limit = vec![7u8; 300];
    for (text, over) in [
        (STANDARD.encode(&at_limit), STANDARD.encode(vec![7u8; 301])),
        (
            format!("data:,{}", "%07".repeat(300)),
            format!("data:,{}", "%07".repeat(301)),
        ),
    ] {
        assert_eq!(
            MediaSource::parse(&text, 300).unwrap(),
            MediaSource::Inline(at_limit.clone().into())
        );
        assert!(matches!(
            MediaSource::parse(&over, 300),
            Err(MediaError::TooLarge {
                what: "encoded size in bytes",
                value: 301,
                limit: 300
            })
        ));
    }
    // Not even valid base64: the length is what is refused, so nothing was decoded.
    assert!(matches!(
        MediaSource::parse(&"*".repeat(1000), 300),
        Err(MediaError::TooLarge { .. })
    ));
}

proptest! {
    #[test]
    fn parsing_never_panics(text in any::<String>(), prefix in prop::sample::select(vec!["", "data:", "data:;base64,", "http://", "file://", "https:"])) {
        let _ = MediaSource::parse(&format!("{prefix}{text}"), 64);
    }

    #[test]
    fn bytes_survive_every_encoding(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        for encoded in [STANDARD.encode(&bytes), STANDARD_NO_PAD.encode(&bytes), URL_SAFE.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes)] {
            prop_assert_eq!(inline(&encoded), &bytes[..]);
            prop_assert_eq!(inline(&format!("data:image/png;base64,{encoded}")), &bytes[..]);
        }
        let escaped: String = bytes.iter().map(|b| format!("%{b:02x}")).collect();
        prop_assert_eq!(inline(&format!("data:,{escaped}")), &bytes[..]);
    }
}

/// Fuzz target: data URIs, base64 and URLs.
#[test]
fn any_media_string_is_read_or_refused_and_a_url_is_read_the_same_again() {
    const BEGINNINGS: [&str; 6] = [
        "",
        "data:",
        "data:image/png;base64,",
        "http://",
        "https://",
        "file:///",
    ];
    bolero::check!()
        .with_type::<(u8, String)>()
        .for_each(|(beginning, rest)| {
            let text = format!("{}{rest}", BEGINNINGS[usize::from(*beginning) % 6]);
            match MediaSource::parse(&text, 64) {
                Ok(MediaSource::Inline(bytes)) => assert!(bytes.len() <= 64),
                Ok(read @ (MediaSource::Url(_) | MediaSource::File(_))) => {
                    let (MediaSource::Url(url) | MediaSource::File(url)) = &read else {
                        return;
                    };
                    assert!(url.username().is_empty() && url.password().is_none());
                    assert!(matches!(url.scheme(), "http" | "https" | "file"));
                    // Percent-encoding may have made it too long to be sent again.
                    if url.as_str().len() <= MAX_URL_BYTES {
                        assert_eq!(
                            MediaSource::parse(url.as_str(), 64).ok().as_ref(),
                            Some(&read)
                        );
                    }
                }
                Err(_) => {}
            }
        });
}
