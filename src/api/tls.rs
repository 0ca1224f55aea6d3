//! TLS, where the operator gives a certificate. In: two PEM files. Out: what a connection is encrypted with, and again when the files
//! have changed; and a client that knows this server by its certificate.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
};

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, PEM, the server's own certificate first.
    pub cert: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{} cannot be read: {reason}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A file holds something else.
    #[error("{} holds no {expected} in PEM{}", path.display(), found)]
    Empty {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What it holds, or nothing.
        found: String,
    },
    /// The two do not belong together, or cannot be used.
    #[error("{} and {} cannot be used together: {source}", files.cert.display(), files.key.display())]
    Unusable {
        /// Which.
        files: TlsFiles,
        /// Why.
        source: rustls::Error,
    },
}

/// What connections are encrypted with. Clones share it, so that a reload reaches all.
#[derive(Clone)]
pub struct Tls {
    files: TlsFiles,
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.files).finish()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`], which names the file.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let config = server_config(&files)?;
        Ok(Tls {
            files,
            current: Arc::new(RwLock::new(Arc::new(config))),
        })
    }

    /// Reads the files again; connections from now on have what they hold. After an error all stays as it was.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn reload(&self) -> Result<(), TlsError> {
        let config = Arc::new(server_config(&self.files)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current).into()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn server_config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let certificates = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key);
    let key = key.map_err(|error| unread(&files.key, "private key", &error))?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certificates, key)
        });
    let mut config = config.map_err(|source| TlsError::Unusable {
        files: files.clone(),
        source,
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fault = |error: pem::Error| unread(path, "certificate", &error);
    let found = CertificateDer::pem_file_iter(path).map_err(fault)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(fault)?;
    if found.is_empty() {
        return Err(fault(pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn unread(path: &Path, expected: &'static str, error: &pem::Error) -> TlsError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(error) => TlsError::Unreadable {
            path,
            reason: error.to_string(),
        },
        pem::Error::NoItemsFound => TlsError::Empty {
            path,
            expected,
            found: String::new(),
        },
        // The words of a parser may repeat what it read, and one of the files is secret.
        _ => TlsError::Empty {
            path,
            expected,
            found: ", its text is damaged".to_owned(),
        },
    }
}

/// A client for the server of these files: it takes exactly their certificate, whatever name or address it is reached by.
///
/// # Errors
/// [`TlsError`].
pub fn own_client(files: &TlsFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let own = certificates(&files.cert)?.swap_remove(0);
    let provider = provider();
    let verifier = OnlyOwn {
        own,
        provider: Arc::clone(&provider),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Unusable {
            files: files.clone(),
            source,
        })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Takes one certificate. Its owner still has to prove that the key is theirs.
#[derive(Debug)]
struct OnlyOwn {
    own: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OnlyOwn {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.own {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate and its key in files of their own.
    fn made(directory: &Path, name: &str) -> TlsFiles {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let made = made.expect("a certificate");
        let files = TlsFiles {
            cert: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        };
        std::fs::write(&files.cert, made.cert.pem()).expect("written");
        std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("written");
        files
    }

    fn words(files: TlsFiles) -> String {
        Tls::open(files).expect_err("a fault").to_string()
    }

    #[test]
    fn each_fault_names_its_file_and_never_shows_what_is_in_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let right = made(directory.path(), "right");
        let other = made(directory.path(), "other");
        assert!(Tls::open(right.clone()).is_ok());
        let missing = directory.path().join("missing.pem");
        let no_cert = TlsFiles {
            cert: missing.clone(),
            ..right.clone()
        };
        assert!(words(no_cert).contains("missing.pem cannot be read"));
        let swapped = TlsFiles {
            cert: right.key.clone(),
            key: right.cert.clone(),
        };
        assert!(words(swapped).contains("right.key holds no certificate"));
        let no_key = TlsFiles {
            key: right.cert.clone(),
            ..right.clone()
        };
        assert!(words(no_key).contains("right.pem holds no private key"));
        let strangers = TlsFiles {
            key: other.key.clone(),
            ..right.clone()
        };
        let said = words(strangers);
        assert!(said.contains("right.pem") && said.contains("other.key"));
        let damaged = directory.path().join("damaged.key");
        let text = "-----BEGIN PRIVATE KEY-----\nhunter2!\n-----END PRIVATE KEY-----\n";
        std::fs::write(&damaged, text).expect("written");
        let said = words(TlsFiles {
            key: damaged,
            ..right
        });
        assert!(
            said.contains("damaged.key") && !said.contains("hunter"),
            "{said}"
        );
    }

    #[test]
    fn a_reload_that_fails_leaves_what_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = made(directory.path(), "cert");
        let tls = Tls::open(files.clone()).expect("a certificate");
        let before = Arc::clone(tls.acceptor().config());
        std::fs::write(&files.key, "").expect("written");
        assert!(tls.reload().is_err());
        assert!(Arc::ptr_eq(&before, tls.acceptor().config()));
        made(directory.path(), "cert");
        tls.reload().expect("a new pair");
        assert!(!Arc::ptr_eq(&before, tls.acceptor().config()));
    }
}
