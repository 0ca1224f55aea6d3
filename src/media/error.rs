//! Why a picture or clip could not be had. Every variant is the client's to mend, except [`MediaError::Internal`].

/// What a client reads of every fetch that came to no answer, whatever the reason: which names exist, which hosts are up and which
/// addresses they have here is not told.
pub(super) const UNREACHABLE: &str =
    "the URL could not be fetched: its host must have a public address and answer with status 200";

/// What went wrong with one media string.
///
/// The text of a variant is what the client reads: our words only, no address, no inner status, no decoder's message.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// Not a URL, a data URI or base64.
    #[error("{reason}")]
    InvalidSource {
        /// What is wrong with the string.
        reason: String,
    },
    /// A URL, host, port, literal address or path the policy refuses.
    #[error("{reason}")]
    Blocked {
        /// Which rule refused it.
        reason: String,
    },
    /// A host name leads to an address the policy refuses. It reads like a name that leads nowhere, for whether a name exists
    /// in the networks of this machine is not the client's to learn; operators count it as blocked.
    #[error("{}", UNREACHABLE)]
    AddressRefused,
    /// The bytes could not be fetched or read.
    #[error("{reason}")]
    FetchFailed {
        /// What happened, without addresses and without the remote's words.
        reason: String,
    },
    /// More than a limit allows.
    #[error("{what} is {value}, the limit is {limit}")]
    TooLarge {
        /// What is too large, with its unit: "encoded size in bytes", "width in pixels", "frames".
        what: &'static str,
        /// What was found.
        value: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A format or codec this server does not read.
    #[error("{reason}")]
    Unsupported {
        /// What was found and what is read.
        reason: String,
    },
    /// The bytes are not a whole image.
    #[error("{reason}")]
    InvalidImage {
        /// What is wrong with it.
        reason: String,
    },
    /// The bytes are not a whole video.
    #[error("{reason}")]
    InvalidVideo {
        /// What is wrong with it.
        reason: String,
    },
    /// The decoder of a video came to one of its limits, and was stopped there.
    #[error(
        "decoding the video takes more than {limit} {unit}, the limit of this server ({setting})"
    )]
    TooCostly {
        /// What is allowed.
        limit: u64,
        /// Of what: "seconds of CPU time".
        unit: &'static str,
        /// The setting that says so, by its dotted name.
        setting: &'static str,
    },
    /// The request's time was over, or its client gone, before the video was decoded.
    #[error("the request's time was over before the video was decoded")]
    Abandoned,
    /// The server's own fault: a pool or a temporary file failed.
    #[error("the media could not be processed")]
    Internal(#[source] std::io::Error),
}
