//! Lists of other files, dressed as videos: FFmpeg would read local files and make requests for them, here nothing is read and nobody
//! is asked. The tests need FFmpeg installed.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use manifold::media::MediaError;
use manifold::media::video::VideoFile;

use crate::clips;

/// Where lists lead to: a clip that FFmpeg would gladly read, and a port where somebody waits.
struct Trap {
    clip: PathBuf,
    listener: TcpListener,
    home: tempfile::TempDir,
}

impl Trap {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let clip = home.path().join("clip.mp4");
        fs::write(&clip, clips::clip()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Trap {
            clip,
            listener,
            home,
        }
    }

    fn url(&self) -> String {
        format!("http://{}/clip.ts", self.listener.local_addr().unwrap())
    }

    /// Every list that names the clip or the port.
    fn lists(&self) -> Vec<(&'static str, String)> {
        let (clip, url) = (self.clip.display(), self.url());
        let hls = |target: &str| {
            format!(
                "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\n{target}\n#EXT-X-ENDLIST\n"
            )
        };
        let dash = |target: &str| {
            format!(
                "<?xml version=\"1.0\"?>\n<MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" type=\"static\" mediaPresentationDuration=\"PT5S\" \
                 profiles=\"urn:mpeg:dash:profile:isoff-on-demand:2011\"><Period><AdaptationSet mimeType=\"video/mp4\"><Representation id=\"1\" \
                 bandwidth=\"1000\" codecs=\"avc1.4d4015\" width=\"160\" height=\"120\"><BaseURL>{target}</BaseURL></Representation>\
                 </AdaptationSet></Period></MPD>\n"
            )
        };
        vec![
            ("HLS, a file", hls(&clip.to_string())),
            ("HLS, a file URL", hls(&format!("file://{clip}"))),
            ("HLS, a request", hls(&url)),
            (
                "HLS, subfile",
                hls(&format!("subfile,,start,0,end,0,,:{clip}")),
            ),
            ("HLS, concat of both", hls(&format!("concat:{url}|{clip}"))),
            (
                "HLS, a key",
                hls("x.ts").replace(
                    "#EXTINF",
                    &format!("#EXT-X-KEY:METHOD=AES-128,URI=\"{url}\"\n#EXTINF"),
                ),
            ),
            (
                "concat, a file",
                format!("ffconcat version 1.0\nfile '{clip}'\n"),
            ),
            (
                "concat, a request",
                format!("ffconcat version 1.0\nfile '{url}'\n"),
            ),
            ("DASH, a file", dash(&clip.to_string())),
            ("DASH, a request", dash(&url)),
            (
                "SDP",
                format!(
                    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {} RTP/AVP 96\n",
                    self.listener.local_addr().unwrap().port()
                ),
            ),
        ]
    }

    fn visitors(&self) -> usize {
        std::iter::from_fn(|| self.listener.accept().ok()).count()
    }
}

/// A list as it is, and behind the beginnings of real containers.
fn dressed(list: &str) -> Vec<(&'static str, Bytes)> {
    let within = |front: &[u8]| Bytes::from([front, list.as_bytes()].concat());
    let mut in_a_box = b"\0\0\0\x18ftypisom\0\0\0\0isommp42".to_vec();
    in_a_box.extend(u32::try_from(list.len() + 8).unwrap().to_be_bytes());
    in_a_box.extend(b"mdat");
    // The size of the first box may itself be read as the first characters of a list.
    let mut list_first = list.as_bytes().to_vec();
    list_first.resize(list_first.len().max(12), b' ');
    list_first[4..8].copy_from_slice(b"ftyp");
    vec![
        ("bare", within(b"")),
        ("behind ftyp", within(b"\0\0\0\x18ftypisom\0\0\0\0isommp42")),
        ("in mdat", within(&in_a_box)),
        ("with ftyp written over it", list_first.into()),
        ("behind EBML", within(b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08\x42\x82\x84webm\x42\x87\x81\x04\x42\x85\x81\x02")),
        ("behind a whole clip", [clips::clip().as_ref(), list.as_bytes()].concat().into()),
    ]
}

#[test]
fn lists_dressed_as_videos_read_no_file_and_ask_nobody() {
    use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
    let trap = Trap::new();
    let watch = inotify::init(CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, &trap.clip, WatchFlags::OPEN | WatchFlags::ACCESS).unwrap();
    let opened = || rustix::io::read(&watch, &mut [0; 4096]).is_ok();

    // FFmpeg as people run it walks into the trap, so the trap works.
    let (_, list) = &trap.lists()[6];
    let path = trap.home.path().join("list.mp4");
    fs::write(&path, list).unwrap();
    plain_ffmpeg(&path, &["-f", "concat", "-safe", "0"]);
    assert!(opened(), "FFmpeg opens what a list names");
    let (_, list) = &trap.lists()[2];
    fs::write(&path, list).unwrap();
    plain_ffmpeg(
        &path,
        &[
            "-f",
            "hls",
            "-allowed_extensions",
            "ALL",
            "-protocol_whitelist",
            "file,http,tcp",
        ],
    );
    assert!(trap.visitors() > 0, "FFmpeg asks for what a list names");

    for (name, list) in trap.lists() {
        for (dress, bytes) in dressed(&list) {
            let result =
                VideoFile::open(bytes, &clips::settings()).and_then(|video| video.frames(&[0]));
            match result {
                Ok(frames) => {
                    assert_eq!((dress, frames.len()), ("behind a whole clip", 1), "{name}")
                }
                Err(MediaError::Unsupported { .. } | MediaError::InvalidVideo { .. }) => {
                    assert_ne!(dress, "behind a whole clip", "{name}");
                }
                Err(other) => panic!("{name}, {dress}: {other:?}"),
            }
            assert!(!opened(), "{name}, {dress}: a file was opened");
            assert_eq!(trap.visitors(), 0, "{name}, {dress}: a request was made");
        }
    }
}

/// FFmpeg without any of our care, for two seconds at most: somebody who listens and never answers would hold it for ever.
fn plain_ffmpeg(list: &std::path::Path, options: &[&str]) {
    let mut child = Command::new("ffmpeg")
        .args(["-v", "quiet", "-nostdin"])
        .args(options)
        .arg("-i")
        .arg(list)
        .args(["-f", "null", "-"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(2);
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    child.wait().unwrap();
}
