//! A photograph of 12 megapixels, from its JPEG to patches, on one core: `pictures/jpeg/4000x3000`, in milliseconds of CPU time.
//!
//! ```sh
//! cargo bench --bench pictures
//! ```

#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot go on should stop where it is"
)]

use std::path::Path;

use manifold::media::{MediaSettings, RgbImage, image};
use manifold::model::ModelConfig;
use manifold::processor::{PixelOptions, Processor};

const ROUNDS: usize = 20;
/// The bound of the first release.
const MOST_MS: f64 = 150.0;

/// CPU time of this thread so far, in milliseconds: on a busy machine the clock says nothing.
fn cpu_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}

/// Soft shapes with grain, as photographs have them.
fn photograph(width: u32, height: u32) -> RgbImage {
    let mut state = 1_u32;
    RgbImage::from_fn(width, height, |x, y| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let grain = (state >> 28) as u8;
        let wave = |a: f32, b: f32| {
            let at = (x as f32 * a).sin() + (y as f32 * b).cos();
            (at * 50.0 + 110.0) as u8 + grain
        };
        ::image::Rgb([wave(0.011, 0.007), wave(0.005, 0.013), wave(0.017, 0.003)])
    })
}

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/model");
    let tokenizer = std::fs::read(folder.join("tokenizer.json")).unwrap();
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let config = ModelConfig::from_json(&config).unwrap();
    let processor = Processor::new(&tokenizer, (&config).into()).unwrap();
    let photograph = photograph(4000, 3000);
    let raw = turbojpeg::Image {
        pixels: photograph.as_raw().as_slice(),
        width: 4000,
        pitch: 12_000,
        height: 3000,
        format: turbojpeg::PixelFormat::RGB,
    };
    let jpeg = turbojpeg::compress(raw, 90, turbojpeg::Subsamp::Sub2x2).unwrap();
    let jpeg: &[u8] = &jpeg;
    let (settings, options) = (MediaSettings::default(), PixelOptions::default());
    let one = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    let mut best = (f64::MAX, f64::MAX);
    one.install(|| {
        for _ in 0..ROUNDS {
            let began = cpu_ms();
            let picture = image::decode(jpeg, &settings).unwrap();
            let decoded = cpu_ms();
            let patches = processor.image(&picture, &options).unwrap();
            let done = cpu_ms();
            assert!(patches.grid.vision_tokens() > 1000);
            best = (best.0.min(decoded - began), best.1.min(done - decoded));
        }
    });
    let total = best.0 + best.1;
    println!(
        "pictures/jpeg/4000x3000: {:.1} ms decoding, {:.1} ms resizing and cutting, {total:.1} ms together (best of {ROUNDS})",
        best.0, best.1
    );
    assert!(total <= MOST_MS, "more than {MOST_MS} ms");
}
