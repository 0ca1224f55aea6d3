//! How many tokens one key may have computed in a minute. In: a request's tokens. Out: whether they are within what is left.
//!
//! Off unless configured. A key may spend its minute at once and then gets it back evenly, so a minute never sees more than twice the
//! limit, an hour no more than sixty-one times.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::model::Tenant;

/// What is left to each key.
#[derive(Debug)]
pub struct TokenQuota {
    limiter: RateLimiter<Tenant, HashMapStateStore<Tenant>, DefaultClock>,
    tokens_per_minute: NonZeroU32,
}

/// A key has no tokens left for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// Not now.
    #[error("this key has no {tokens} of its {limit} tokens a minute left")]
    Spent {
        /// What the request has.
        tokens: usize,
        /// What the key may have.
        limit: u32,
        /// When it will have them.
        retry_after: Duration,
    },
    /// Never.
    #[error("the request has {tokens} tokens, this key may have {limit} a minute: split it")]
    TooMany {
        /// What the request has.
        tokens: usize,
        /// What the key may have.
        limit: u32,
    },
}

impl TokenQuota {
    /// So many tokens for each key; `None` for 0, which is no limit.
    pub fn new(tokens_per_minute: u32) -> Option<Self> {
        let tokens_per_minute = NonZeroU32::new(tokens_per_minute)?;
        Some(TokenQuota {
            limiter: RateLimiter::new(
                Quota::per_minute(tokens_per_minute),
                HashMapStateStore::default(),
                DefaultClock::default(),
            ),
            tokens_per_minute,
        })
    }

    /// Takes a request's tokens off what its key has left: all of them, or none.
    ///
    /// # Errors
    /// [`QuotaError`] when they are not there.
    pub(super) fn spend(&self, tenant: Tenant, tokens: usize) -> Result<(), QuotaError> {
        let limit = self.tokens_per_minute.get();
        let too_many = QuotaError::TooMany { tokens, limit };
        let count = u32::try_from(tokens).map_err(|_| too_many)?;
        let Some(count) = NonZeroU32::new(count) else {
            return Ok(());
        };
        let within = self.limiter.check_key_n(&tenant, count);
        within
            .map_err(|_| too_many)?
            .map_err(|not_until| QuotaError::Spent {
                tokens,
                limit,
                retry_after: not_until.wait_time_from(self.limiter.clock().now()),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_has_spent_its_minute_waits_and_another_does_not() {
        let quota = TokenQuota::new(6000).unwrap();
        let (one, other) = (Tenant(1), Tenant(2));
        quota.spend(one, 4000).unwrap();
        let spent = quota.spend(one, 4000).unwrap_err();
        let QuotaError::Spent { retry_after, .. } = spent else {
            panic!("{spent}")
        };
        // 2000 are missing, and 100 come back in a second.
        assert!(retry_after > Duration::from_secs(15) && retry_after <= Duration::from_secs(20));
        // Being refused costs nothing.
        quota.spend(one, 1900).unwrap();
        quota.spend(other, 6000).unwrap();
    }

    #[test]
    fn what_is_more_than_a_minute_is_told_apart_and_nothing_costs_nothing() {
        let quota = TokenQuota::new(100).unwrap();
        for tokens in [101, usize::MAX] {
            let refused = quota.spend(Tenant(1), tokens).unwrap_err();
            assert_eq!(refused, QuotaError::TooMany { tokens, limit: 100 });
        }
        for _ in 0..1000 {
            quota.spend(Tenant(1), 0).unwrap();
        }
        quota.spend(Tenant(1), 100).unwrap();
        assert!(TokenQuota::new(0).is_none());
    }
}
