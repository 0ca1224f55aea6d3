//! SIGHUP: API keys and certificate are read again from their files, while the server goes on. In: the signal. Out: new keys and a
//! new certificate for whoever connects from then on; after a fault, a line in the log and the old ones.

use std::sync::Arc;

use anyhow::Context;

use crate::api::{ApiKeys, ApiState, Tls};
use crate::config::{Config, Secret};

/// What is read again, and who uses it.
pub(super) struct Reload {
    pub(super) config: Arc<Config>,
    pub(super) state: ApiState,
    pub(super) tls: Option<Tls>,
}

impl Reload {
    /// Waits for signals as long as the process lives.
    ///
    /// # Errors
    /// When the signal cannot be listened for.
    #[cfg(unix)]
    pub(super) fn on_hangup(self) -> anyhow::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut hangups = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        let reload = Arc::new(self);
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                let reload = Arc::clone(&reload);
                // Files are read where that may take its time.
                let _ = tokio::task::spawn_blocking(move || reload.run()).await;
            }
        });
        Ok(())
    }

    #[cfg(not(unix))]
    pub(super) fn on_hangup(self) -> anyhow::Result<()> {
        Ok(())
    }

    fn run(&self) {
        match self.config.auth.read_keys() {
            Ok(keys) => {
                let count = keys.len();
                let keys = ApiKeys::new(keys.iter().map(Secret::expose));
                self.state.set_keys(keys);
                tracing::info!(keys = count, "API keys are read again");
            }
            Err(fault) => tracing::error!(%fault, "the API keys stay as they were"),
        }
        match self.tls.as_ref().map(Tls::reload) {
            None => {}
            Some(Ok(())) => tracing::info!("the certificate is read again"),
            Some(Err(error)) => tracing::error!(%error, "the certificate stays as it was"),
        }
    }
}
