//! Bodies that were fetched before, with the tag their server gave them, bounded in bytes. In: who asks, and a URL. Out: the body, which the
//! caller may use only when the server says that the tag still holds.
//!
//! Every use asks the server, through the whole policy, so a body is never served from a host that is refused by now. Only strong tags
//! count: a weak one stays when bytes change.

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, ETAG, HeaderMap, HeaderValue};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use url::{Position, Url};

/// Whose body, and from where.
type Key = (u128, Box<str>);

/// What a body takes beside its bytes.
const ENTRY_BYTES: u64 = 256;
/// Expected size of a body, to size the table by.
const TYPICAL_BODY_BYTES: usize = 256 << 10;
/// Longer tags are not kept: they are sent back with each request.
const MAX_TAG_BYTES: usize = 256;

/// A body and its tag.
#[derive(Debug, Clone)]
pub(super) struct KeptBody {
    pub(super) tag: HeaderValue,
    pub(super) body: Bytes,
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Key, KeptBody> for ByBytes {
    fn weight(&self, (_, url): &Key, kept: &KeptBody) -> u64 {
        ENTRY_BYTES + (url.len() + kept.tag.len() + kept.body.len()) as u64
    }
}

/// The bodies used lately.
#[derive(Debug)]
pub(super) struct KeptBodies(Cache<Key, KeptBody, ByBytes>);

impl KeptBodies {
    /// Holds up to `max_bytes`; `None` for 0, which holds nothing.
    pub(super) fn new(max_bytes: usize) -> Option<Self> {
        if max_bytes == 0 {
            return None;
        }
        // One shard: each would hold only its part of the bytes.
        let options = OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity(max_bytes / TYPICAL_BODY_BYTES + 1)
            .weight_capacity(max_bytes as u64)
            .build()
            .ok()?;
        Some(KeptBodies(Cache::with_options(
            options,
            ByBytes,
            DefaultHashBuilder::default(),
            DefaultLifecycle::default(),
        )))
    }

    pub(super) fn get(&self, owner: u128, url: &Url) -> Option<KeptBody> {
        self.0.get(&key(owner, url))
    }

    /// Keeps a body, if its server gave it a tag that tells its bytes and does not forbid it.
    pub(super) fn insert(&self, owner: u128, url: &Url, headers: &HeaderMap, body: &Bytes) {
        let Some(tag) = headers.get(ETAG).filter(|tag| is_strong(tag)) else {
            self.0.remove(&key(owner, url));
            return;
        };
        if forbids(headers) {
            return;
        }
        let kept = KeptBody {
            tag: tag.clone(),
            // Its own memory, of its own size: what was grown while it was read may be twice as large.
            body: Bytes::copy_from_slice(body),
        };
        self.0.insert(key(owner, url), kept);
    }
}

fn key(owner: u128, url: &Url) -> Key {
    (owner, url[..Position::AfterQuery].into())
}

/// # Source
/// RFC 9110, section 8.8.3: a quoted string; a weak one begins with `W/`.
fn is_strong(tag: &HeaderValue) -> bool {
    let bytes = tag.as_bytes();
    let quoted = bytes.len() >= 2 && bytes.starts_with(b"\"") && bytes.ends_with(b"\"");
    quoted && bytes.len() <= MAX_TAG_BYTES
}

fn forbids(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CACHE_CONTROL).iter();
    values.any(|value| {
        let words = value.as_bytes().split(|byte| *byte == b',');
        let mut words = words.map(|word| word.trim_ascii());
        words.any(|word| word.eq_ignore_ascii_case(b"no-store"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_body_comes_back_to_its_own_key_and_url_only() {
        let kept = KeptBodies::new(1 << 20).unwrap();
        let tagged = headers(&[("etag", "\"a\"")]);
        let body = Bytes::from_static(b"picture");
        kept.insert(1, &url("http://a.example/x?y#z"), &tagged, &body);
        let found = kept.get(1, &url("http://a.example/x?y#other")).unwrap();
        assert_eq!((&found.body, found.tag.as_bytes()), (&body, &b"\"a\""[..]));
        assert!(kept.get(2, &url("http://a.example/x?y")).is_none());
        assert!(kept.get(1, &url("http://a.example/x")).is_none());
        assert!(kept.get(1, &url("https://a.example/x?y")).is_none());
        // The server does not say any more which bytes these are.
        kept.insert(1, &url("http://a.example/x?y"), &headers(&[]), &body);
        assert!(kept.get(1, &url("http://a.example/x?y")).is_none());
    }

    #[test]
    fn weak_tags_no_tags_and_no_store_keep_nothing() {
        let kept = KeptBodies::new(1 << 20).unwrap();
        for refused in [
            headers(&[]),
            headers(&[("etag", "W/\"a\"")]),
            headers(&[("etag", "a")]),
            headers(&[("etag", "\"a\""), ("cache-control", "private, No-Store")]),
        ] {
            kept.insert(1, &url("http://a.example/"), &refused, &Bytes::new());
            assert!(
                kept.get(1, &url("http://a.example/")).is_none(),
                "{refused:?}"
            );
        }
        assert!(KeptBodies::new(0).is_none());
    }

    #[test]
    fn never_more_is_kept_than_may_be() {
        let kept = KeptBodies::new(10_000).unwrap();
        let tagged = headers(&[("etag", "\"a\"")]);
        for number in 0..100 {
            let body = Bytes::from(vec![0; 1000]);
            kept.insert(
                1,
                &url(&format!("http://a.example/{number}")),
                &tagged,
                &body,
            );
            assert!(kept.0.weight() <= 10_000);
        }
        kept.insert(
            1,
            &url("http://a.example/"),
            &tagged,
            &Bytes::from(vec![0; 20_000]),
        );
        assert!(kept.get(1, &url("http://a.example/")).is_none());
    }
}
