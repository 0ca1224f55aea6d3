//! Foreign bytes: the only room that opens outbound sockets, reads clients' files or decodes pictures and clips.
//!
//! In: what a client wrote in a media field. Out: [`RgbImage`]s. `source` says what the string is, `loader` loads its bytes
//! (`fetch` over HTTP, from where its policy allows; `local_file` from a directory), `image` and `video` decode.

pub mod error;
mod fetch;
pub mod image;
pub mod loader;
mod local_file;
pub mod source;
pub mod video;

pub use ::image::RgbImage;
pub use error::MediaError;
pub use loader::{LoadedMedia, MediaLoader, Origin};
pub use source::MediaSource;

use std::path::PathBuf;
use std::time::Duration;

/// Whose certificates are believed when media are fetched over https.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsRoots {
    /// The authorities of the operating system.
    System,
    /// Mozilla's, inside the binary.
    Webpki,
}

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
    /// Redirects that are followed, each under the whole policy.
    pub max_redirects: usize,
    /// Time for one whole fetch.
    pub fetch_timeout: Duration,
    /// Fetches at a time, all together.
    pub max_fetches: usize,
    /// Fetches at a time from one host.
    pub max_fetches_per_host: usize,
    /// Most memory for fetched bodies that may come again; 0: none.
    pub max_kept_bytes: usize,
    /// Whose certificates are believed.
    pub tls_roots: TlsRoots,
    /// The directory beneath which `file://` may read. `None`: `file://` is refused.
    pub file_root: Option<PathBuf>,
    /// Whether BMP is read.
    pub bmp: bool,
    /// Whether TIFF is read.
    pub tiff: bool,
    /// Whether EXIF orientation is applied; the reference ignores it.
    pub apply_exif_orientation: bool,
    /// The FFmpeg program, found on `PATH` when it has no slash.
    pub ffmpeg: PathBuf,
    /// The ffprobe program, found on `PATH` when it has no slash.
    pub ffprobe: PathBuf,
    /// Time a video's child process may take.
    pub video_timeout: Duration,
    /// This program, which a child becomes FFmpeg by: it confines itself first.
    pub decoder: PathBuf,
    /// Most address space of a child, in bytes.
    pub max_decoder_bytes: u64,
    /// Most CPU time of a child, in seconds.
    pub max_decoder_seconds: u64,
    /// Most frames of a video file, and so most that are walked to reach the last one wanted.
    pub max_video_frames: u64,
    /// Whether video files are refused rather than decoded without Landlock or seccomp.
    pub require_sandbox: bool,
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
            max_redirects: 0,
            fetch_timeout: Duration::from_secs(10),
            max_fetches: 64,
            max_fetches_per_host: 8,
            max_kept_bytes: 0,
            tls_roots: TlsRoots::System,
            file_root: None,
            bmp: false,
            tiff: false,
            apply_exif_orientation: false,
            ffmpeg: PathBuf::from("ffmpeg"),
            ffprobe: PathBuf::from("ffprobe"),
            video_timeout: Duration::from_secs(30),
            decoder: this_program(),
            max_decoder_bytes: 4 << 30,
            max_decoder_seconds: 60,
            max_video_frames: 36_000,
            require_sandbox: false,
        }
    }
}

/// Linux knows the running program also when its file has been replaced by a newer one.
fn this_program() -> PathBuf {
    if cfg!(target_os = "linux") {
        return PathBuf::from("/proc/self/exe");
    }
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("manifold"))
}
