//! What a media string is: the classification every later step relies on.
//!
//! In: the text a client wrote. Out: a [`MediaSource`], with inline bytes decoded and URLs parsed, once. Nothing is fetched or
//! read here. Data URIs follow RFC 2397 (read leniently: browsers and SDKs write them in many ways), base64 RFC 4648.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use url::Url;

use super::MediaError;

/// Longest URL that is parsed, in bytes. The same bound as most HTTP servers put on a request line.
pub(super) const MAX_URL_BYTES: usize = 8 << 10;
/// How much of a string that is none of ours an error repeats.
const SHOWN_CHARS: usize = 32;
const EXPECTED: &str = "expected a data: URI, base64, or an http://, https:// or file:// URL";

/// Padding may be absent and the unused low bits of the last character may be set: Python's decoder takes both, so clients
/// send both.
const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A media string, classified once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaSource {
    /// From a `data:` URI or bare base64, decoded.
    Inline(Bytes),
    /// `http://` or `https://`.
    Url(Url),
    /// `file://`.
    File(Url),
}

impl MediaSource {
    /// Classifies a string and decodes what it carries inline; nothing is fetched or read.
    ///
    /// # Errors
    /// [`MediaError::InvalidSource`] for anything else, [`MediaError::TooLarge`] before decoding more than `max_bytes`.
    pub fn parse(text: &str, max_bytes: usize) -> Result<Self, MediaError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(invalid(format!("the media string is empty: {EXPECTED}")));
        }
        // Base64 has no colon, so a colon after a word means a URL of some scheme.
        match text.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("data") => {
                parse_data_uri(rest, max_bytes)
            }
            Some((scheme, _)) => parse_url(scheme, text),
            None => decode_base64(text, max_bytes)
                .map(Self::Inline)
                .map_err(|error| match error {
                    MediaError::InvalidSource { .. } => not_a_source(text),
                    other => other,
                }),
        }
    }
}

fn is_scheme(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

fn parse_url(scheme: &str, text: &str) -> Result<MediaSource, MediaError> {
    let kind: fn(Url) -> MediaSource = match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => MediaSource::Url,
        "file" => MediaSource::File,
        _ => return Err(not_a_source(text)),
    };
    if text.len() > MAX_URL_BYTES {
        return Err(MediaError::TooLarge {
            what: "length of the URL in bytes",
            value: text.len() as u64,
            limit: MAX_URL_BYTES as u64,
        });
    }
    let url = Url::parse(text).map_err(|_| invalid(format!("not a valid URL: {}", shown(text))))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid(
            "a media URL may not carry a user name or password".to_owned(),
        ));
    }
    Ok(kind(url))
}

/// The part of a data URI after `data:`.
fn parse_data_uri(rest: &str, max_bytes: usize) -> Result<MediaSource, MediaError> {
    let Some((head, payload)) = rest.split_once(',') else {
        return Err(invalid(format!(
            "a data: URI needs a comma between its media type and its data, after \"data:\" came {}",
            shown(rest)
        )));
    };
    // The media type is not read: the bytes say what they are.
    let base64 = head
        .rsplit(';')
        .next()
        .is_some_and(|last| last.trim().eq_ignore_ascii_case("base64"));
    let bytes = if base64 {
        decode_base64(payload, max_bytes)?
    } else {
        decode_percent(payload, max_bytes)?
    };
    Ok(MediaSource::Inline(bytes))
}

fn decode_base64(payload: &str, max_bytes: usize) -> Result<Bytes, MediaError> {
    if payload.contains('%') {
        let unescaped: Vec<u8> = percent_decode_str(payload).collect();
        return match String::from_utf8(unescaped) {
            Ok(text) if !text.contains('%') => decode_base64(&text, max_bytes),
            _ => Err(not_base64(payload)),
        };
    }
    let significant = payload
        .bytes()
        .filter(|b| !b.is_ascii_whitespace() && *b != b'=')
        .count();
    check_length(significant / 4 * 3 + significant % 4 * 3 / 4, max_bytes)?;
    let decoded = if payload
        .bytes()
        .any(|b| b.is_ascii_whitespace() || matches!(b, b'-' | b'_'))
    {
        let standard: Vec<u8> = payload
            .bytes()
            .filter(|b| !b.is_ascii_whitespace())
            .map(|b| match b {
                b'-' => b'+',
                b'_' => b'/',
                other => other,
            })
            .collect();
        LENIENT_BASE64.decode(standard)
    } else {
        LENIENT_BASE64.decode(payload)
    };
    decoded.map(Bytes::from).map_err(|_| not_base64(payload))
}

fn decode_percent(payload: &str, max_bytes: usize) -> Result<Bytes, MediaError> {
    check_length(percent_decode_str(payload).count(), max_bytes)?;
    Ok(percent_decode_str(payload).collect::<Vec<u8>>().into())
}

fn check_length(value: usize, limit: usize) -> Result<(), MediaError> {
    if value > limit {
        return Err(MediaError::TooLarge {
            what: "encoded size in bytes",
            value: value as u64,
            limit: limit as u64,
        });
    }
    Ok(())
}

fn invalid(reason: String) -> MediaError {
    MediaError::InvalidSource { reason }
}

fn not_a_source(text: &str) -> MediaError {
    invalid(format!("{EXPECTED}, got {}", shown(text)))
}

fn not_base64(payload: &str) -> MediaError {
    invalid(format!(
        "the data is marked as base64 and is not: it begins {}",
        shown(payload)
    ))
}

/// The beginning of a string, quoted, with nothing in it that could disturb a terminal or a log.
fn shown(text: &str) -> String {
    let beginning: String = text.chars().take(SHOWN_CHARS).collect();
    let more = if beginning.len() < text.len() {
        "…"
    } else {
        ""
    };
    format!("\"{}{more}\"", beginning.escape_debug())
}

#[cfg(test)]
mod tests;
