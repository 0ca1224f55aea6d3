//! The fixtures on disk: a tiny checkpoint, requests, and what transformers answers to them.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use manifold::engine::{Checkpoint, CheckpointSource};
use manifold::kernels::{Kernels, Precision, Simd};
use manifold::media::{self, MediaSettings, RgbImage};
use manifold::model::{ModelConfig, Patches, Qwen3VlEncoder, Sequence};
use manifold::processor::{
    ContextLimit, PixelOptions, Prepared, Processor, Prompt, PromptPart, Truncation, VideoPatches,
};
use safetensors::SafeTensors;
use serde_json::Value;

/// One fixture directory.
pub(crate) struct Fixture {
    pub(crate) root: PathBuf,
    pub(crate) requests: Vec<Value>,
    /// Queries and their documents.
    pub(crate) reranks: Vec<Value>,
    pub(crate) goldens: Value,
    tensors: Vec<u8>,
}

/// All fixtures: the public shape, one with head_dim 64, GQA 4:1, an untied head and no post-processor, and the embedded model, whose
/// weights are trained.
pub(crate) fn all() -> Vec<Fixture> {
    ["parity", "parity-untied", "demo"]
        .map(Fixture::open)
        .into()
}

impl Fixture {
    pub(crate) fn open(name: &str) -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name);
        let json = |file: &str| -> Value {
            serde_json::from_slice(&fs::read(root.join(file)).unwrap()).unwrap()
        };
        Fixture {
            requests: json("requests.json")["requests"]
                .as_array()
                .unwrap()
                .clone(),
            reranks: match &json("requests.json")["rerank"] {
                Value::Array(reranks) => reranks.clone(),
                _ => Vec::new(),
            },
            goldens: json("goldens.json"),
            tensors: fs::read(root.join("goldens.safetensors")).unwrap(),
            root,
        }
    }

    /// What transformers answers to a request.
    pub(crate) fn golden(&self, id: &str) -> &Value {
        let all = self.goldens["requests"].as_array().unwrap();
        all.iter().find(|golden| golden["id"] == id).unwrap()
    }

    /// A golden tensor's values and shape; integers are widened to f32.
    pub(crate) fn tensor(&self, name: &str) -> Option<(Vec<f32>, Vec<usize>)> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let tensor = tensors.tensor(name).ok()?;
        let four = |bytes: &[u8]| [bytes[0], bytes[1], bytes[2], bytes[3]];
        let values = match tensor.dtype() {
            safetensors::Dtype::F32 => tensor
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(four(b)))
                .collect(),
            safetensors::Dtype::I32 => tensor
                .data()
                .chunks_exact(4)
                .map(|b| i32::from_le_bytes(four(b)) as f32)
                .collect(),
            safetensors::Dtype::U8 => tensor.data().iter().map(|&b| f32::from(b)).collect(),
            other => panic!("{name} is {other:?}"),
        };
        Some((values, tensor.shape().to_vec()))
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&CheckpointSource::Directory(self.root.join("model"))).unwrap()
    }

    pub(crate) fn encoder(&self, kernels: Kernels) -> Qwen3VlEncoder {
        let checkpoint = self.checkpoint();
        let config = ModelConfig::from_json(&checkpoint.config_json).unwrap();
        Qwen3VlEncoder::load(&config, &checkpoint.weights, kernels).unwrap()
    }

    pub(crate) fn processor(&self) -> Processor {
        let checkpoint = self.checkpoint();
        let config = ModelConfig::from_json(&checkpoint.config_json).unwrap();
        Processor::new(&checkpoint.tokenizer_json, (&config).into()).unwrap()
    }

    /// A request of the fixture, taken through media and processor as the server takes it.
    pub(crate) fn prepare(&self, processor: &Processor, request: &Value) -> Prepared {
        let options = &request["options"];
        let defaults = PixelOptions::default();
        let number = |field: &str, default: u64| options[field].as_u64().unwrap_or(default);
        let pixels = PixelOptions {
            min_pixels: number("min_pixels", defaults.min_pixels),
            max_pixels: number("max_pixels", defaults.max_pixels),
            fps: options["fps"].as_f64().unwrap_or(defaults.fps),
            max_frames: number("max_frames", defaults.max_frames as u64) as usize,
            total_pixels: options["total_pixels"].as_u64(),
            excerpt: defaults.excerpt,
        };
        let mut parts = Vec::new();
        for part in request["content"].as_array().into_iter().flatten() {
            parts.push(self.part(processor, part, &pixels));
        }
        parts.extend(self.parts_of(processor, &request["object"], &pixels));
        let prompt = Prompt {
            instruction: request["instruction"].as_str().map(str::to_owned),
            parts,
            raw: false,
        };
        let max_tokens = number("max_length", 8192) as usize;
        processor
            .prepare(
                &prompt,
                ContextLimit {
                    max_tokens,
                    truncation: Truncation::Reference,
                },
            )
            .unwrap()
    }

    /// The parts of an object with default options.
    pub(crate) fn object_parts(&self, processor: &Processor, object: &Value) -> Vec<PromptPart> {
        self.parts_of(processor, object, &PixelOptions::default())
    }

    /// The object form has the reference's order: videos, images, texts.
    fn parts_of(
        &self,
        processor: &Processor,
        object: &Value,
        pixels: &PixelOptions,
    ) -> Vec<PromptPart> {
        let mut parts = Vec::new();
        for kind in ["video", "image", "text"] {
            for value in as_list(&object[kind]) {
                parts.push(self.part(processor, &serde_json::json!({ kind: value }), pixels));
            }
        }
        parts
    }

    fn part(&self, processor: &Processor, part: &Value, pixels: &PixelOptions) -> PromptPart {
        if let Some(text) = part["text"].as_str() {
            return PromptPart::Text(text.to_owned());
        }
        if let Some(image) = part["image"].as_str() {
            return PromptPart::Image(Arc::new(
                processor.image(&self.picture(image), pixels).unwrap(),
            ));
        }
        let video = &part["video"];
        let pixels = PixelOptions {
            total_pixels: video["total_pixels"].as_u64().or(pixels.total_pixels),
            ..*pixels
        };
        PromptPart::Video(match video["file"].as_str() {
            Some(file) => self.file_video(processor, file, &pixels),
            None => {
                let frames = video["frames"].as_array().unwrap();
                let kept = processor.sample_list(frames.len(), &pixels);
                let frames: Vec<RgbImage> = kept
                    .iter()
                    .map(|&i| self.picture(frames[i].as_str().unwrap()))
                    .collect();
                processor
                    .list_video(
                        &frames,
                        video["sample_fps"].as_f64().unwrap_or(2.0),
                        &pixels,
                    )
                    .unwrap()
            }
        })
    }

    fn file_video(&self, processor: &Processor, file: &str, pixels: &PixelOptions) -> VideoPatches {
        // The reference's total_pixels applies to frame lists only.
        let pixels = PixelOptions {
            total_pixels: None,
            ..*pixels
        };
        let bytes = fs::read(self.root.join("media").join(file)).unwrap();
        let settings = MediaSettings {
            decoder: env!("CARGO_BIN_EXE_manifold").into(),
            ..MediaSettings::default()
        };
        let video = media::video::VideoFile::open(bytes.into(), &settings).unwrap();
        let indices = processor
            .sample_file(video.info.frames, video.info.fps, &pixels)
            .unwrap();
        let frames = video.frames(&indices).unwrap();
        processor
            .file_video(&frames, &indices, video.info.fps, &pixels)
            .unwrap()
    }

    fn picture(&self, file: &str) -> RgbImage {
        let bytes = fs::read(self.root.join("media").join(file)).unwrap();
        media::image::decode(&bytes, &MediaSettings::default()).unwrap()
    }
}

/// A value as a list: nothing, itself, or its elements.
fn as_list(value: &Value) -> Vec<Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(values) => values.clone(),
        value => vec![value.clone()],
    }
}

/// Whether any medium of the request is named `*.{extension}`.
pub(crate) fn has(request: &Value, extension: &str) -> bool {
    request.to_string().contains(&format!(".{extension}\""))
}

/// The instruction sets of this CPU that compute a precision each in its own way: in f32 those beyond AVX-512 have nothing to add.
pub(crate) fn instruction_sets(precision: Precision) -> Vec<Simd> {
    let mut present = Simd::present();
    present.retain(|simd| precision != Precision::F32 || *simd <= Simd::Avx512);
    present
}

/// The specification, and the host with every instruction set this CPU has.
pub(crate) fn exact_kernels() -> Vec<Kernels> {
    let precision = Precision::F32;
    let host = instruction_sets(precision)
        .into_iter()
        .map(|simd| Kernels::Host { precision, simd });
    let plain = Kernels::Candle {
        device: candle_core::Device::Cpu,
        dtype: candle_core::DType::F32,
    };
    std::iter::once(plain).chain(host).collect()
}

/// `x / ||x||`.
pub(crate) fn normalized(x: &[f32]) -> Vec<f32> {
    let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
    x.iter().map(|x| x / norm).collect()
}

/// Largest difference and cosine of two vectors.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> (f32, f32) {
    assert_eq!(a.len(), b.len());
    let largest = a
        .iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum::<f64>();
    (largest, (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()) as f32)
}

/// The images, or the videos, of a prepared request, in order.
pub(crate) fn of_kind<'a>(
    request: &Value,
    sequence: &'a Sequence,
    videos: bool,
) -> Vec<&'a Patches> {
    let mut kinds = Vec::new();
    for part in request["content"].as_array().into_iter().flatten() {
        kinds.extend(part.get("image").map(|_| false));
        kinds.extend(part.get("video").map(|_| true));
    }
    kinds.extend(as_list(&request["object"]["video"]).iter().map(|_| true));
    kinds.extend(as_list(&request["object"]["image"]).iter().map(|_| false));
    assert_eq!(kinds.len(), sequence.media.len());
    sequence
        .media
        .iter()
        .zip(kinds)
        .filter(|(_, kind)| *kind == videos)
        .map(|(media, _)| &**media)
        .collect()
}
