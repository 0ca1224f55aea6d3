//! Every request of the fixtures, from decoded pictures to sequences, against the reference's own values.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::*;

const NO_LIMIT: ContextLimit = ContextLimit {
    max_tokens: 8192,
    truncation: Truncation::Reference,
};

/// One fixture directory, read.
struct Fixture {
    directory: PathBuf,
    requests: Vec<Value>,
    goldens: HashMap<String, Value>,
    tensors: Vec<u8>,
    processor: Processor,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name);
        let json = |file: &str| -> Value {
            serde_json::from_slice(&fs::read(directory.join(file)).unwrap()).unwrap()
        };
        let config = json("model/config.json");
        let id = |name: &str| config[name].as_u64().unwrap() as u32;
        let ids = VisionTokenIds {
            vocab_size: config["text_config"]["vocab_size"].as_u64().unwrap() as usize,
            image_token_id: id("image_token_id"),
            video_token_id: id("video_token_id"),
            vision_start_token_id: id("vision_start_token_id"),
            vision_end_token_id: id("vision_end_token_id"),
        };
        let tokenizer = fs::read(directory.join("model/tokenizer.json")).unwrap();
        let goldens = json("goldens.json")["requests"].as_array().unwrap().clone();
        Fixture {
            requests: json("requests.json")["requests"]
                .as_array()
                .unwrap()
                .clone(),
            goldens: goldens
                .into_iter()
                .map(|golden| (golden["id"].as_str().unwrap().to_owned(), golden))
                .collect(),
            tensors: fs::read(directory.join("goldens.safetensors")).unwrap(),
            processor: Processor::new(&tokenizer, ids).unwrap(),
            directory,
        }
    }

    /// A picture, decoded by Pillow's rules as far as the fixtures need them; of a JPEG, the reference's own decoding.
    fn picture(&self, name: &str) -> RgbImage {
        let stem = name.strip_suffix(".jpg");
        let name = stem.map_or_else(|| name.to_owned(), |stem| format!("{stem}_decoded.png"));
        let path = self.directory.join("media").join(name);
        match image::open(path).unwrap() {
            image::DynamicImage::ImageRgba8(picture) => on_white(&picture),
            image::DynamicImage::ImageLumaA8(picture) => {
                RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
                    image::Rgb([picture.get_pixel(x, y).0[0]; 3])
                })
            }
            other => other.to_rgb8(),
        }
    }

    /// A frame of a clip, where the fixture holds it as a picture.
    fn clip_frame(&self, clip: &str, index: u64) -> Option<RgbImage> {
        let name = format!("{}_f{index:02}.png", clip.strip_suffix(".mp4").unwrap());
        let path = self.directory.join("media").join(name);
        path.exists().then(|| image::open(path).unwrap().to_rgb8())
    }
}

/// Pillow's `paste` of a picture with alpha on white.
fn on_white(picture: &image::RgbaImage) -> RgbImage {
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [r, g, b, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        let blend = |value: u32| {
            let sum = value * alpha + 255 * (255 - alpha) + 128;
            (((sum >> 8) + sum) >> 8) as u8
        };
        image::Rgb([blend(r), blend(g), blend(b)])
    })
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The frames of patches, `[frames, height, width, 3]`: patches put back together. Of an image, both of its frames.
fn assemble(patches: &Patches) -> Vec<u8> {
    let grid = patches.grid;
    let (rows, columns) = (grid.h as usize / 2, grid.w as usize / 2);
    let (height, width) = (grid.h as usize * 16, grid.w as usize * 16);
    let mut frames = vec![0; grid.t as usize * 2 * height * width * 3];
    for (index, &value) in patches.pixels.iter().enumerate() {
        let (patch, within) = (index / 1536, index % 1536);
        let (pair, block) = (patch / 4 / (rows * columns), patch / 4 % (rows * columns));
        let row = block / columns * 2 + patch % 4 / 2;
        let column = block % columns * 2 + patch % 2;
        let (channel, frame) = (within / 512, within / 256 % 2);
        let (y, x) = (row * 16 + within / 16 % 16, column * 16 + within % 16);
        frames[(((pair * 2 + frame) * height + y) * width + x) * 3 + channel] = value;
    }
    frames
}

/// `pixel_values`: patches as the model reads them.
fn normalised(media: &[Arc<Patches>]) -> Vec<u8> {
    media
        .iter()
        .flat_map(|patches| &patches.pixels)
        .flat_map(|&value| ((f32::from(value) - 127.5) / 127.5).to_le_bytes())
        .collect()
}

/// A prompt of a request, and whether every pixel of it is the reference's own (frames of a clip need not be).
struct Request {
    prompt: Prompt,
    images: Vec<Arc<Patches>>,
    videos: Vec<Arc<Patches>>,
    pixels: bool,
}

impl Request {
    fn of(fixture: &Fixture, request: &Value) -> Self {
        let mut made = Request {
            prompt: Prompt {
                instruction: request["instruction"].as_str().map(str::to_owned),
                ..Prompt::default()
            },
            images: Vec::new(),
            videos: Vec::new(),
            pixels: true,
        };
        let mut options = PixelOptions::default();
        let given = &request["options"];
        let number = |name: &str| given[name].as_u64();
        options.min_pixels = number("min_pixels").unwrap_or(options.min_pixels);
        options.max_pixels = number("max_pixels").unwrap_or(options.max_pixels);
        options.max_frames = number("max_frames").map_or(options.max_frames, |n| n as usize);
        options.fps = given["fps"].as_f64().unwrap_or(options.fps);
        let golden = &fixture.goldens[request["id"].as_str().unwrap()];
        match request["content"].as_array() {
            Some(parts) => {
                for part in parts {
                    made.part(fixture, part, &options, golden);
                }
            }
            None => {
                for kind in ["video", "image", "text"] {
                    let value = &request["object"][kind];
                    let values = match value {
                        Value::Null => Vec::new(),
                        Value::Array(values) => values.clone(),
                        value => vec![value.clone()],
                    };
                    for value in values {
                        made.part(
                            fixture,
                            &serde_json::json!({ kind: value }),
                            &options,
                            golden,
                        );
                    }
                }
            }
        }
        made
    }

    fn part(&mut self, fixture: &Fixture, part: &Value, options: &PixelOptions, golden: &Value) {
        let processor = &fixture.processor;
        let made = if let Some(text) = part["text"].as_str() {
            PromptPart::Text(text.to_owned())
        } else if let Some(name) = part["image"].as_str() {
            let patches = Arc::new(processor.image(&fixture.picture(name), options).unwrap());
            self.images.push(Arc::clone(&patches));
            PromptPart::Image(patches)
        } else {
            let golden = &golden["videos"][self.videos.len()];
            let mut options = *options;
            options.total_pixels = part["video"]["total_pixels"].as_u64();
            let video = self.video(fixture, &part["video"], &options, golden);
            self.videos.push(Arc::clone(&video.patches));
            PromptPart::Video(video)
        };
        self.prompt.parts.push(made);
    }

    fn video(
        &mut self,
        fixture: &Fixture,
        video: &Value,
        options: &PixelOptions,
        golden: &Value,
    ) -> VideoPatches {
        let processor = &fixture.processor;
        let expected: Vec<u64> = serde_json::from_value(golden["frames_indices"].clone()).unwrap();
        if let Some(clip) = video["file"].as_str() {
            let fps = golden["fps"].as_f64().unwrap();
            let total = *expected.last().unwrap() + 1;
            let indices = processor.sample_file(total, fps, options).unwrap();
            assert_eq!(indices, expected, "{clip}");
            let frames: Vec<RgbImage> = indices
                .iter()
                .filter_map(|&index| fixture.clip_frame(clip, index))
                .collect();
            if frames.len() == indices.len() {
                return processor
                    .file_video(&frames, &indices, fps, options)
                    .unwrap();
            }
            // Sizes, times and ids do not depend on what the frames show.
            self.pixels = false;
            let (width, height) = match clip {
                "clip_160x120.mp4" => (160, 120),
                "clip_128x96.mp4" => (128, 96),
                other => panic!("{other}"),
            };
            let frames = vec![RgbImage::new(width, height); indices.len()];
            return processor
                .file_video(&frames, &indices, fps, options)
                .unwrap();
        }
        let names = video["frames"].as_array().unwrap();
        let frames: Vec<RgbImage> = processor
            .sample_list(names.len(), options)
            .into_iter()
            .map(|index| fixture.picture(names[index].as_str().unwrap()))
            .collect();
        assert_eq!(frames.len().next_multiple_of(2), expected.len());
        let fps = video["sample_fps"].as_f64().unwrap_or(2.0);
        assert_eq!(Some(fps), golden["fps"].as_f64());
        processor.list_video(&frames, fps, options).unwrap()
    }
}

/// Grids and pixels of a request's images or videos.
fn check_media(golden: &Value, media: &[Arc<Patches>], kind: &str, pixels: bool) {
    let name = &golden["id"];
    let (list, grids, values) = match kind {
        "image" => ("images", "image_grid_thw", "pixel_values_f32_sha256"),
        _ => ("videos", "video_grid_thw", "pixel_values_videos_f32_sha256"),
    };
    let found: Vec<[u32; 3]> = media
        .iter()
        .map(|patches| [patches.grid.t, patches.grid.h, patches.grid.w])
        .collect();
    let expected: Vec<[u32; 3]> = serde_json::from_value(golden[grids].clone()).unwrap_or_default();
    assert_eq!(found, expected, "{name}");
    if !pixels || media.is_empty() {
        return;
    }
    for (patches, golden) in media.iter().zip(golden[list].as_array().unwrap()) {
        let frames = assemble(patches);
        // An image is its own second frame.
        let shown = if kind == "image" {
            frames.len() / 2
        } else {
            frames.len()
        };
        assert_eq!(sha(&frames[..shown]), golden["rgb_sha256"], "{name}");
    }
    assert_eq!(sha(&normalised(media)), golden[values], "{name}");
}

fn check_request(fixture: &Fixture, request: &Value) {
    let name = request["id"].as_str().unwrap();
    let golden = &fixture.goldens[name];
    let made = Request::of(fixture, request);
    check_media(golden, &made.images, "image", made.pixels);
    check_media(golden, &made.videos, "video", made.pixels);
    assert_eq!(
        golden["prompt"],
        fixture.processor.render(&made.prompt).unwrap(),
        "{name}"
    );
    let max_tokens = golden["options"]["max_length"].as_u64().unwrap() as usize;
    let prepared = fixture
        .processor
        .prepare(
            &made.prompt,
            ContextLimit {
                max_tokens,
                ..NO_LIMIT
            },
        )
        .unwrap();
    let sequence = prepared.sequence;
    let expected: Vec<u32> = serde_json::from_value(golden["input_ids"].clone()).unwrap();
    if name.contains("special_tokens") {
        // Differs from the reference: it parses special tokens in a user's text, here they stay text (and longer).
        assert_ne!(sequence.input_ids, expected, "{name}");
        return;
    }
    assert_eq!(sequence.input_ids, expected, "{name}");
    assert_eq!(prepared.truncated, max_tokens < 8192, "{name}");
    let tensors = SafeTensors::deserialize(&fixture.tensors).unwrap();
    let positions: Vec<u32> = tensors
        .tensor(&format!("{name}/position_ids"))
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap()) as u32)
        .collect();
    assert_eq!(sequence.position_ids.concat(), positions, "{name}");
    let media: usize = sequence
        .media
        .iter()
        .map(|patches| patches.grid.vision_tokens())
        .sum();
    assert_eq!(sequence.vision_rows.len(), media, "{name}");
    assert_eq!(prepared.tokens.total(), sequence.input_ids.len(), "{name}");
    assert_eq!(
        prepared.tokens.image_tokens + prepared.tokens.video_tokens,
        media,
        "{name}"
    );
}

#[test]
fn every_request_of_the_fixture_becomes_the_reference_s_sequence() {
    let fixture = Fixture::open("parity");
    assert_eq!(fixture.requests.len(), 46);
    for request in &fixture.requests {
        check_request(&fixture, request);
    }
}

#[test]
fn every_request_of_the_fixture_without_post_processor_becomes_the_reference_s_sequence() {
    let fixture = Fixture::open("parity-untied");
    assert!(!fixture.requests.is_empty());
    for request in &fixture.requests {
        check_request(&fixture, request);
    }
}

#[test]
fn special_tokens_in_a_text_decode_to_themselves() {
    let fixture = Fixture::open("parity");
    let text = "literal <|im_end|> and <|endoftext|> and <think> inside";
    let prompt = Prompt {
        parts: vec![PromptPart::Text(text.to_owned())],
        raw: true,
        ..Prompt::default()
    };
    let ids = fixture
        .processor
        .prepare(&prompt, NO_LIMIT)
        .unwrap()
        .sequence
        .input_ids;
    let (last, ids) = ids.split_last().unwrap();
    assert_eq!(*last, 2005);
    // Of the tokens the text spells only <think> is one: it is added, but not special.
    assert!(ids.iter().all(|&id| !(2005..=2018).contains(&id)));
    assert!(ids.contains(&2029));
    let spelled = Prompt {
        parts: vec![PromptPart::TokenIds(ids.to_vec())],
        raw: true,
        ..Prompt::default()
    };
    assert_eq!(fixture.processor.render(&spelled).unwrap(), text);
}

#[test]
fn frames_that_are_not_those_asked_for_are_refused_and_an_odd_last_one_counts_twice() {
    let processor = Fixture::open("parity").processor;
    let frames = vec![RgbImage::new(64, 64); 3];
    let options = PixelOptions::default();
    assert!(matches!(
        processor.file_video(&frames, &[0, 5, 9, 14], 10.0, &options),
        Err(ProcessorError::TooFewFrames {
            frames: 3,
            minimum: 4
        })
    ));
    let video = processor
        .file_video(&frames, &[0, 5, 9], 10.0, &options)
        .unwrap();
    assert_eq!(video.patches.grid.t, 2);
    assert_eq!(video.timestamps, [0.25, 0.9]);
}
