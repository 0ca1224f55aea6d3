//! Who may ask: API keys, compared in constant time. Decided on the matched route; only health stands outside.

use std::sync::PoisonError;

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::ApiState;
use super::error::{ApiError, ErrorCode};
use crate::model::Tenant;

/// The keys that open the door, as digests. None: the door is open.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ApiKeys {
    digests: Vec<[u8; 32]>,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl ApiKeys {
    /// Keeps the digests of `keys`.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        ApiKeys {
            digests: keys
                .into_iter()
                .map(|key| Sha256::digest(key).into())
                .collect(),
        }
    }

    /// Whether no key is needed.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Whether `key` is one of them, and then whose it is. Takes the same time whichever it is, and however much of it is right.
    pub fn tenant(&self, key: &str) -> Option<Tenant> {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let found = self
            .digests
            .iter()
            .fold(Choice::from(0), |found, known| found | known.ct_eq(&digest));
        // Half of the digest: enough that no two keys meet, and nothing that leads back to the key.
        let (half, _) = digest.split_first_chunk::<16>()?;
        bool::from(found).then(|| Tenant(u128::from_le_bytes(*half)))
    }
}

/// Whose request it is, by the key it carries; where there are no keys all are one tenant's.
///
/// # Errors
/// The code of `invalid_api_key`, where there are keys and it carries none of them.
pub(super) fn tenant_of(state: &ApiState, headers: &HeaderMap) -> Result<Tenant, ApiError> {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let key = given.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    let opens = {
        let keys = state.keys.read().unwrap_or_else(PoisonError::into_inner);
        if keys.is_empty() {
            Some(Tenant::default())
        } else {
            key.and_then(|key| keys.tenant(key))
        }
    };
    opens.ok_or_else(|| refusal(key))
}

/// What a key that does not open the door is told, or a request without one.
pub(super) fn refusal(key: Option<&str>) -> ApiError {
    let message = match key {
        Some(_) => "the API key is not known here",
        None => "an API key is needed: Authorization: Bearer <key>",
    };
    ApiError::new(ErrorCode::InvalidApiKey, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_keys_open_and_none_is_printed() {
        let keys = ApiKeys::new(["alpha", "beta"]);
        assert!(keys.tenant("alpha").is_some() && keys.tenant("alpha") != keys.tenant("beta"));
        for wrong in ["alph", "alphaa", ""] {
            assert_eq!(keys.tenant(wrong), None);
        }
        assert_eq!(format!("{keys:?}"), "***");
    }
}
