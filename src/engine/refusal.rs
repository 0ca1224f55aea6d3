//! What the hub's refusals mean for the operator.
//!
//! In: an error of hf-hub. Out: an [`EngineError::Hub`] that names the repository, the cause and, where there is one, the way out.

use std::error::Error;

use hf_hub::{HFError, HFResult};

use super::EngineError;
use super::hub::HubSession;

impl HubSession {
    /// Waits for the hub's answer, but not for ever, and turns a refusal into words.
    ///
    /// # Errors
    /// [`EngineError::Hub`].
    pub(super) async fn ask<T>(
        &self,
        request: impl Future<Output = HFResult<T>>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(self.settings.stall, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.fail(self.describe(error))),
            Err(_) => {
                Err(self
                    .fail(self.unreachable(&format!("no answer for {:?}", self.settings.stall))))
            }
        }
    }

    /// An error of this repository.
    pub(super) fn fail(&self, reason: String) -> EngineError {
        EngineError::Hub {
            repository: self.repository.to_string(),
            reason,
        }
    }

    /// What the hub's refusal means for the operator.
    pub(super) fn describe(&self, error: HFError) -> String {
        let revision = &self.repository.revision;
        match error {
            HFError::AuthRequired { context } | HFError::Forbidden { context } => {
                self.locked(context.status.as_u16())
            }
            HFError::Http { context } if matches!(context.status.as_u16(), 401 | 403) => {
                self.locked(context.status.as_u16())
            }
            HFError::RepoNotFound { .. } => format!("{} has no such repository", self.endpoint),
            HFError::RevisionNotFound { context, .. } => match context
                .and_then(|context| context.error_code)
                .as_deref()
            {
                Some("RepoNotFound") => format!("{} has no such repository", self.endpoint),
                Some("RevisionNotFound") => format!("the repository has no revision {revision}"),
                _ => format!(
                    "{} has no such repository, or it has no revision {revision} (404)",
                    self.endpoint
                ),
            },
            HFError::EntryNotFound { path, .. } => format!("the repository has no file {path}"),
            HFError::RateLimited {
                retry_after: Some(pause),
                ..
            } => format!("{} asks to wait {pause:?} (429)", self.endpoint),
            HFError::RateLimited { .. } => {
                format!("{} refuses so many requests for now (429)", self.endpoint)
            }
            HFError::Http { context } => {
                let words = context
                    .server_message
                    .map(|message| format!(": {message}"))
                    .unwrap_or_default();
                format!("{} answered {}{words}", self.endpoint, context.status)
            }
            HFError::Request { source, .. } => self.unreachable(&transport_fault(source)),
            other => format!(
                "{} gave an answer that cannot be used: {other}",
                self.endpoint
            ),
        }
    }

    fn locked(&self, status: u16) -> String {
        format!(
            "{} refuses access ({status}): the repository does not exist, or it is private or gated; accept its terms on its page \
             and set HF_TOKEN to a token that may read it",
            self.endpoint
        )
    }

    fn unreachable(&self, cause: &str) -> String {
        format!(
            "{} cannot be reached: {cause}; in offline mode only the cache in {} is used",
            self.endpoint,
            self.cache_directory.display()
        )
    }
}

/// What happened to a connection, with its causes, on one line.
pub(super) fn transport_fault(error: reqwest::Error) -> String {
    // A signed download address is as good as a token for a while: it stays out of the log.
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(&format!(": {error}"));
        cause = error.source();
    }
    words
}
