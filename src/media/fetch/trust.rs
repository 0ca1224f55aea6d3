//! Whose certificates are believed when a URL is https. In: the operator's choice. Out: a TLS configuration for rustls.

use std::io;
use std::sync::Arc;

use rustls_platform_verifier::BuilderVerifierExt;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};

use crate::media::TlsRoots;

/// HTTP/2 where the server speaks it, else HTTP/1.1.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// # Errors
/// When the system has no certificate authorities.
pub(super) fn tls_config(roots: TlsRoots) -> io::Result<ClientConfig> {
    match roots {
        TlsRoots::System => {
            let config = builder()?.with_platform_verifier().map_err(|error| {
                let advice = "install ca-certificates, or set media.tls_roots to webpki";
                io::Error::other(format!(
                    "the system's certificate authorities: {error} ({advice})"
                ))
            })?;
            Ok(for_fetching(config.with_no_client_auth()))
        }
        TlsRoots::Webpki => believing(mozillas()?),
    }
}

/// Believes these and nobody else.
pub(super) fn believing(roots: RootCertStore) -> io::Result<ClientConfig> {
    let config = builder()?.with_root_certificates(roots);
    Ok(for_fetching(config.with_no_client_auth()))
}

/// Mozilla's list, all of it.
pub(super) fn mozillas() -> io::Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        store.add(root.clone()).map_err(io::Error::other)?;
    }
    Ok(store)
}

fn builder() -> io::Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)
}

/// What holds whoever is believed.
fn for_fetching(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    // A session that one client's fetch began would make another's shorter, and its server could tell that they come from one place.
    config.resumption = Resumption::disabled();
    config
}
