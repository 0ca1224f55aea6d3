//! Foreign bytes: the only room that opens outbound sockets, reads clients' files or decodes pictures and clips.
//!
//! In: what a client wrote in a media field. Out: [`RgbImage`]s. `source` says what the string is, `loader` loads its bytes
//! (`fetch` over HTTP, to addresses `address` allows; `local_file` from a directory), `image` and `video` decode.

mod address;
pub mod error;
mod fetch;
pub mod image;
pub mod loader;
mod local_file;
pub mod source;
pub mod video;

pub use ::image::RgbImage;
pub use error::MediaError;
pub use loader::MediaLoader;
pub use source::MediaSource;

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

impl Default for MediaSettings {
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_pixels: 50_000_000,
            max_side_pixels: 16_384,
            max_frames: 768,
            max_video_seconds: 600.0,
            url_fetch: true,
            allowed_domains: Vec::new(),
            allow_private_networks: false,
            allowed_ports: vec![80, 443],
            fetch_timeout: Duration::from_secs(10),
            file_root: None,
            apply_exif_orientation: false,
            ffmpeg: PathBuf::from("ffmpeg"),
            ffprobe: PathBuf::from("ffprobe"),
            video_timeout: Duration::from_secs(30),
        }
    }
}
