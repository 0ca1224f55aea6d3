//! Small files that become large: refused at once, and without taking memory for them.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::server::{Server, fixture};

/// Longest an answer may take, of several tries the best: the machine may be busy.
const AT_ONCE: Duration = Duration::from_millis(50);
/// Most that the server's memory may grow by.
const GROWTH_BYTES: u64 = 16 << 20;
/// In the place of a code: it is read, and costs as little as a refusal.
const HARMLESS: &str = "";

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn adler32(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1_u32, 0_u32);
    for &byte in bytes {
        a = (a + u32::from(byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    b << 16 | a
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [kind.as_slice(), data].concat();
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    [&length, body.as_slice(), &crc32(&body).to_be_bytes()].concat()
}

/// Zeros, deflated to a thousandth: blocks of the fixed code, each a zero byte and then copies of 258 bytes from one byte before.
fn deflated_zeros(megabytes: usize) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.push(0b011, 3); // The last block, of the fixed code.
    bits.push(0b0000_1100, 8); // The literal 0 is code 0011_0000, written from its highest bit.
    let copies = (megabytes << 20) / 258;
    for _ in 0..copies {
        bits.push(0b1010_0011, 8); // Length 258 is symbol 285, code 1100_0101.
        bits.push(0, 5); // Distance 1.
    }
    bits.push(0, 7); // The end.
    let checksum = adler32(&vec![0; 1 + copies * 258]);
    [
        b"\x78\x9c".as_slice(),
        &bits.done(),
        &checksum.to_be_bytes(),
    ]
    .concat()
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    held: u32,
    count: u32,
}

impl Bits {
    fn push(&mut self, value: u32, count: u32) {
        self.held |= value << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.held as u8);
            (self.held, self.count) = (self.held >> 8, self.count - 8);
        }
    }

    fn done(mut self) -> Vec<u8> {
        self.bytes.push(self.held as u8);
        self.bytes
    }
}

fn png(width: u32, height: u32, extra: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
    let header = [
        &width.to_be_bytes(),
        &height.to_be_bytes(),
        [8, 2, 0, 0].as_slice(),
        &[0],
    ]
    .concat();
    let mut bytes = [b"\x89PNG\r\n\x1a\n".as_slice(), &chunk(b"IHDR", &header)].concat();
    bytes.extend(extra.concat());
    bytes.extend(chunk(b"IDAT", data));
    bytes.extend(chunk(b"IEND", b""));
    bytes
}

/// A GIF of so many frames of one pixel; the first of them may lie far out.
fn gif(screen: (u16, u16), first_at: (u16, u16), frames: usize) -> Vec<u8> {
    let le = |pair: (u16, u16)| [pair.0.to_le_bytes(), pair.1.to_le_bytes()].concat();
    let mut bytes = [
        b"GIF89a".as_slice(),
        &le(screen),
        b"\x80\0\0\0\0\0\xff\xff\xff",
    ]
    .concat();
    for frame in 0..frames {
        let at = if frame == 0 { first_at } else { (0, 0) };
        bytes.extend(b"\x21\xf9\x04\0\x02\0\0\0");
        bytes.extend(
            [
                b"\x2c".as_slice(),
                &le(at),
                &le((1, 1)),
                b"\0\x02\x02\x44\x01\0",
            ]
            .concat(),
        );
    }
    bytes.push(b';');
    bytes
}

/// The most memory the server has had, in bytes, since the last time this was asked.
fn peak_since(server: &Server) -> u64 {
    let process = format!("/proc/{}", server.child.id());
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    // Resets the peak to what is held now.
    std::fs::write(format!("{process}/clear_refs"), "5").unwrap();
    kilobytes << 10
}

fn image(bytes: &[u8]) -> Value {
    json!({ "image": BASE64_STANDARD.encode(bytes) })
}

fn video(bytes: &[u8]) -> Value {
    json!({ "video": BASE64_STANDARD.encode(bytes) })
}

/// A WebP of this size whose pixels are a few bytes: lossless, all of one colour.
///
/// # Source
/// RFC 9649, section 3.4 (VP8L).
fn webp(width: u32, height: u32) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.push(0x2f, 8);
    bits.push(width - 1, 14);
    bits.push(height - 1, 14);
    bits.push(0, 4); // No alpha, version 0.
    bits.push(0, 1); // No transform.
    bits.push(0, 1); // No colour cache.
    bits.push(0, 1); // One group of codes.
    for _ in 0..5 {
        bits.push(0b0001, 4); // A simple code of one symbol, of one bit: 0. No bits are read for a pixel.
    }
    let pixels = bits.done();
    let mut body = [
        b"WEBPVP8L".as_slice(),
        &(pixels.len() as u32).to_le_bytes(),
        &pixels,
    ]
    .concat();
    body.resize(body.len().next_multiple_of(2), 0);
    [
        b"RIFF".as_slice(),
        &(body.len() as u32).to_le_bytes(),
        &body,
    ]
    .concat()
}

/// A progressive JPEG of so many scans, each of which says in a few bytes that nothing changes anywhere.
///
/// # Source
/// ITU-T T.81, annexes B and G; "Two Issues with the JPEG Standard" of libjpeg-turbo's authors.
fn jpeg_of_scans(side: u16, scans: usize) -> Vec<u8> {
    let [high, low] = side.to_be_bytes();
    let segment = |marker: u8, payload: &[u8]| {
        let length = u16::try_from(payload.len() + 2).unwrap().to_be_bytes();
        [&[0xff, marker], length.as_slice(), payload].concat()
    };
    let mut bytes = vec![0xff, 0xd8];
    bytes.extend(segment(0xdb, &[&[0][..], &[1; 64]].concat()));
    bytes.extend(segment(0xc2, &[8, high, low, high, low, 1, 1, 0x11, 0]));
    // One code of each kind: a difference of nothing; a run of 2^14 blocks in which nothing changes, of 14 bits more.
    let one_code = |class: u8, symbol: u8| [&[class, 1][..], &[0; 15], &[symbol]].concat();
    bytes.extend(segment(0xc4, &one_code(0x00, 0x00)));
    bytes.extend(segment(0xc4, &one_code(0x10, 0xe0)));
    let blocks = usize::from(side).div_ceil(8).pow(2);
    let mut first = Bits::default();
    (0..blocks).for_each(|_| first.push(0, 1));
    bytes.extend(segment(0xda, &[1, 1, 0x00, 0, 0, 0]));
    bytes.extend(first.done());
    for scan in 0..scans {
        let refined = u8::from(scan > 0);
        // The first of them sends a band, all others refine its lowest bit again, which only earns a warning.
        bytes.extend(segment(0xda, &[1, 1, 0x00, 1, 63, refined << 4]));
        let mut run = Bits::default();
        // Runs of 2^14 to 2^15 - 1 blocks: as many as fit, all ones would be stuffed, so zeros.
        for _ in 0..blocks.div_ceil(1 << 14) {
            run.push(0, 15);
        }
        bytes.extend(run.done());
    }
    bytes.extend([0xff, 0xd9]);
    bytes
}

/// Each with its name and the code of its refusal.
#[expect(clippy::too_many_lines, reason = "it is a list")]
fn bombs() -> Vec<(&'static str, Value, &'static str)> {
    let zeros = deflated_zeros(100);
    assert!(zeros.len() < 1 << 20);
    let ztxt = chunk(b"zTXt", &[b"Comment\0\0".as_slice(), &zeros].concat());
    // A line of one pixel: the filter's byte and three samples, in a block that is not packed.
    let line = [0; 4];
    let one_black = [
        b"\x78\x01\x01\x04\0\xfb\xff".as_slice(),
        &line,
        &adler32(&line).to_be_bytes(),
    ]
    .concat();
    let iccp = chunk(b"iCCP", &[b"profile\0\0".as_slice(), &zeros].concat());
    let mut jpeg = std::fs::read(fixture("images").join("jpeg_420_19x13.jpg")).unwrap();
    let frame = jpeg
        .windows(2)
        .position(|pair| pair == [0xff, 0xc0])
        .unwrap();
    // libjpeg-turbo itself reads 65,500 at most.
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xfd, 0xe8, 0xfd, 0xe8]);
    let one_pixel = gif((1, 1), (0, 0), 1);
    vec![
        (
            "a PNG of 30,000 x 30,000",
            image(&png(30_000, 30_000, &[], &zeros)),
            "media_too_large",
        ),
        (
            "a PNG of 2^31 x 2^31",
            image(&png(0x7fff_ffff, 0x7fff_ffff, &[], &zeros)),
            "media_too_large",
        ),
        ("a JPEG of 65,000 x 65,000", image(&jpeg), "media_too_large"),
        (
            "a GIF that grows",
            image(&gif((1, 1), (60_000, 60_000), 1)),
            "media_too_large",
        ),
        (
            "a GIF of 5,000 frames as a video",
            video(&gif((9, 9), (0, 0), 5_000)),
            "media_too_large",
        ),
        (
            "a GIF of 700 large frames as a video",
            video(&gif((4_000, 4_000), (0, 0), 700)),
            "media_too_large",
        ),
        (
            "a list of 5,000 frames",
            json!({ "video": vec![BASE64_STANDARD.encode(&one_pixel); 5_000] }),
            "media_too_large",
        ),
        (
            "a strip of 16,000 x 1",
            image(&png(16_000, 1, &[], &deflated_zeros(1)[..])),
            "invalid_image",
        ),
        (
            "a WebP of 16,383 x 16,383",
            image(&webp(16_383, 16_383)),
            "media_too_large",
        ),
        (
            "a JPEG of 5,000 scans",
            image(&jpeg_of_scans(1_024, 5_000)),
            "invalid_image",
        ),
        (
            "a PNG whose data goes on for ever",
            image(&png(1, 1, &[], &zeros)),
            HARMLESS,
        ),
        // The picture in these is whole, and nobody reads what is packed beside it.
        (
            "a PNG with a comment of 100 MiB",
            image(&png(1, 1, &[ztxt], &one_black)),
            HARMLESS,
        ),
        (
            "a PNG with a profile of 100 MiB",
            image(&png(1, 1, &[iccp], &one_black)),
            HARMLESS,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_are_refused_or_disarmed_at_once_and_take_no_memory() {
    let one_pixel = image(&gif((1, 1), (0, 0), 1));
    let server = Server::start(&[], &[]);
    for _ in 0..2 {
        // What any first picture takes is not a bomb's doing.
        server.post(&json!({ "input": one_pixel })).await;
        server.post(&json!({ "input": bombs()[0].1 })).await;
    }
    peak_since(&server);
    for (name, input, code) in bombs() {
        let body = json!({ "input": input });
        let before = peak_since(&server);
        let mut quickest = Duration::MAX;
        for _ in 0..5 {
            let began = Instant::now();
            let answer = server.post(&body).await;
            quickest = quickest.min(began.elapsed());
            let found = answer.json();
            if code == HARMLESS {
                assert_eq!(answer.status, 200, "{name}: {found}");
            } else {
                assert_eq!(found["error"]["code"], code, "{name}: {found}");
            }
        }
        // The body is JSON and base64 and is there twice for a moment; that is the sender's own size, not the bomb's.
        let grown = peak_since(&server).saturating_sub(before);
        println!("{name}: {quickest:?}, {} KiB more", grown >> 10);
        assert!(quickest <= AT_ONCE, "{name} took {quickest:?}");
        assert!(grown <= GROWTH_BYTES, "{name}: {grown} bytes more");
    }
}
