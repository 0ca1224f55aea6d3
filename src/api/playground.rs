//! `GET /`: the playground, one page that compares what is dropped on it. It calls the routes every client calls.
//!
//! The page is open to everybody, also where requests need a key: it says nothing about the server, and asks for the key itself. It
//! loads nothing from anywhere, and the policy it is sent with forbids that, and any script but its own.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("playground/playground.html");

/// What stands between two tags of the page.
fn between(open: &str, close: &str) -> &'static str {
    let inner = PAGE
        .split_once(open)
        .and_then(|(_, rest)| rest.split_once(close));
    inner.map_or("", |(inner, _)| inner)
}

/// The page's own script and style by their hashes, pictures and videos that were dropped on it, calls of this server; nothing else.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(between("<script>", "</script>")),
        hash(between("<style>", "</style>")),
    )
});

/// `GET /`.
pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_and_names_no_other_place() {
        for tag in ["<script", "<style"] {
            assert_eq!(PAGE.matches(tag).count(), 1, "{tag}");
        }
        for foreign in [
            "http://", "https://", "href=\"/", "src=\"", "@import", "style=\"",
        ] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
        assert!(between("<script>", "</script>").contains("addEventListener"));
        assert!(POLICY.matches("'sha256-").count() == 2 && !POLICY.contains("unsafe"));
    }
}
