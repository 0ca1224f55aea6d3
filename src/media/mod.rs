//! Foreign bytes: the only room that opens outbound sockets, reads clients' files or decodes pictures and clips.
//!
//! In: what a client wrote in a media field. Out: [`RgbImage`]s. `source` says what the string is and loads it, `image` and
//! `video` decode.

pub mod error;
pub mod image;
pub mod source;
pub mod video;

pub use ::image::RgbImage;
pub use error::MediaError;
pub use source::{MediaLoader, MediaSource};

use std::path::PathBuf;
use std::time::Duration;

/// What this room may load and how much of it.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaSettings {
    /// Largest encoded image or video, after base64 decoding, in bytes.
    pub max_bytes: usize,
    /// Largest decoded image or video frame, in pixels.
    pub max_pixels: u64,
    /// Longest side of a decoded image or frame, in pixels.
    pub max_side_pixels: u32,
    /// Most frames of a frame list, or decoded from a video file.
    pub max_frames: usize,
    /// Longest video file, in seconds.
    pub max_video_seconds: f64,
    /// Whether http(s) URLs are fetched at all.
    pub url_fetch: bool,
    /// Hosts URLs may name: exact, or `*.suffix`. Empty: any public host.
    pub allowed_domains: Vec<String>,
    /// Whether URLs may lead to addresses that are not global unicast.
    pub allow_private_networks: bool,
    /// Ports URLs may name.
    pub allowed_ports: Vec<u16>,
    /// Time for one whole fetch.
    pub fetch_timeout: Duration,
    /// The directory beneath which `file://` may read. `None`: `file://` is refused.
    pub file_root: Option<PathBuf>,
    /// Whether EXIF orientation is applied; the reference ignores it.
    pub apply_exif_orientation: bool,
    /// The FFmpeg program, found on `PATH` when it has no slash.
    pub ffmpeg: PathBuf,
    /// The ffprobe program, found on `PATH` when it has no slash.
    pub ffprobe: PathBuf,
    /// Time a video's child process may take.
    pub video_timeout: Duration,
}
