//! `config.json`: both dialects of it, checked against what this crate computes.
//!
//! transformers 4.57 writes `text_config.rope_theta` and `rope_scaling`; 5.x writes `rope_parameters`. Numbers may be anything
//! that fits together (2B, 8B, tiny); choices (activations, biases, patch sizes) must be the ones Qwen3-VL has.

use serde::Deserialize;
use serde_json::Value;

use super::ModelError;
use crate::kernels::Heads;

/// The whole model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Language model.
    pub text: TextConfig,
    /// Vision tower.
    pub vision: VisionConfig,
    /// `image_token_id`.
    pub image_token_id: u32,
    /// `video_token_id`.
    pub video_token_id: u32,
    /// `vision_start_token_id`.
    pub vision_start_token_id: u32,
    /// `vision_end_token_id`.
    pub vision_end_token_id: u32,
    /// Whether the head of the language model is its embedding table, where the checkpoint has no head of its own.
    pub tie_word_embeddings: bool,
}

/// The language model; fields keep the checkpoint's names.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Width of the residual stream and of an embedding.
    pub hidden_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Added to the variance in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Frequencies that turn with time, height and width.
    pub mrope_section: [usize; 3],
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Longest position the checkpoint was trained for.
    pub max_position_embeddings: usize,
}

impl TextConfig {
    /// Numbers in the matrices of all decoder layers.
    pub fn layer_weights(&self) -> usize {
        let heads = 2 * (self.heads.heads + self.heads.kv_heads) * self.heads.head_dim;
        self.num_hidden_layers * self.hidden_size * (heads + 3 * self.intermediate_size)
    }
}

/// The vision tower; fields keep the checkpoint's names.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Blocks.
    pub depth: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Width of what the mergers hand to the language model.
    pub out_hidden_size: usize,
    /// Blocks after which features are tapped.
    pub deepstack_visual_indexes: Vec<usize>,
    /// Side of the square table of position embeddings.
    pub position_side: usize,
}

/// Values of one patch: 3 channels, 2 frames, 16 x 16 pixels.
pub(super) const PATCH_VALUES: usize = 3 * 2 * 16 * 16;
/// Patches merged into one vision token: 2 x 2.
pub(super) const MERGED_PATCHES: usize = 4;

#[derive(Deserialize)]
struct RawConfig {
    model_type: String,
    #[serde(default)]
    architectures: Vec<String>,
    text_config: RawText,
    vision_config: RawVision,
    image_token_id: u32,
    video_token_id: u32,
    vision_start_token_id: u32,
    vision_end_token_id: u32,
    #[serde(default)]
    tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize)]
struct RawText {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    intermediate_size: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default)]
    attention_bias: bool,
    hidden_act: String,
}

#[derive(Deserialize)]
struct RawRope {
    rope_theta: Option<f64>,
    mrope_section: Option<Vec<usize>>,
    mrope_interleaved: Option<bool>,
    rope_type: Option<String>,
}

#[derive(Deserialize)]
struct RawVision {
    depth: usize,
    hidden_size: usize,
    num_heads: usize,
    intermediate_size: usize,
    out_hidden_size: usize,
    deepstack_visual_indexes: Vec<usize>,
    num_position_embeddings: usize,
    patch_size: usize,
    temporal_patch_size: usize,
    spatial_merge_size: usize,
    #[serde(default = "three")]
    in_channels: usize,
    hidden_act: String,
}

fn three() -> usize {
    3
}

fn require(
    ok: bool,
    field: &str,
    found: impl Into<Value>,
    supported: impl ToString,
) -> Result<(), ModelError> {
    if ok {
        return Ok(());
    }
    Err(ModelError::Unsupported {
        field: field.to_owned(),
        found: found.into().to_string(),
        supported: supported.to_string(),
    })
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Json`], or [`ModelError::Unsupported`] naming the first field that does not fit.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ModelError> {
        let raw: RawConfig = serde_json::from_slice(bytes)?;
        require(
            raw.model_type == "qwen3_vl",
            "model_type",
            raw.model_type.as_str(),
            "\"qwen3_vl\"",
        )?;
        let known = ["Qwen3VLForConditionalGeneration", "Qwen3VLModel"];
        for architecture in &raw.architectures {
            let ok = known.contains(&architecture.as_str());
            require(ok, "architectures", architecture.as_str(), known[0])?;
        }
        let text = raw.text_config.check()?;
        let vision = raw.vision_config.check()?;
        let out = vision.out_hidden_size;
        require(
            out == text.hidden_size,
            "vision_config.out_hidden_size",
            out,
            text.hidden_size,
        )?;
        let taps = vision.deepstack_visual_indexes.len();
        require(
            taps <= text.num_hidden_layers,
            "vision_config.deepstack_visual_indexes",
            taps,
            "no more entries than the language model has layers",
        )?;
        Ok(ModelConfig {
            text,
            vision,
            image_token_id: raw.image_token_id,
            video_token_id: raw.video_token_id,
            vision_start_token_id: raw.vision_start_token_id,
            vision_end_token_id: raw.vision_end_token_id,
            // Source: the default of Qwen3VLConfig, transformers 4.57.
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
        })
    }
}

impl RawText {
    fn check(self) -> Result<TextConfig, ModelError> {
        let at = |field: &str| format!("text_config.{field}");
        require(
            self.hidden_act == "silu",
            &at("hidden_act"),
            self.hidden_act.as_str(),
            "\"silu\"",
        )?;
        require(!self.attention_bias, &at("attention_bias"), true, "false")?;
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        let divides = kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads);
        require(
            divides,
            &at("num_key_value_heads"),
            kv_heads,
            format!("a divisor of {heads} heads"),
        )?;
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / heads);
        let even = head_dim > 0 && head_dim.is_multiple_of(2);
        require(even, &at("head_dim"), head_dim, "an even number")?;
        require(
            self.num_hidden_layers > 0,
            &at("num_hidden_layers"),
            0,
            "at least 1",
        )?;
        require(self.hidden_size > 0, &at("hidden_size"), 0, "at least 1")?;
        let (rope_theta, mrope_section) = self.rope(head_dim)?;
        Ok(TextConfig {
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            heads: Heads {
                heads,
                kv_heads,
                head_dim,
            },
            intermediate_size: self.intermediate_size,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta,
            mrope_section,
            vocab_size: self.vocab_size,
            max_position_embeddings: self.max_position_embeddings,
        })
    }

    /// `rope_parameters` (5.x) before `rope_scaling` (4.57), which 5.x may repeat.
    fn rope(&self, head_dim: usize) -> Result<(f64, [usize; 3]), ModelError> {
        let (name, rope) = match (&self.rope_parameters, &self.rope_scaling) {
            (Some(rope), _) => ("text_config.rope_parameters", rope),
            (None, Some(rope)) => ("text_config.rope_scaling", rope),
            (None, None) => {
                return Err(ModelError::Unsupported {
                    field: "text_config.rope_scaling".to_owned(),
                    found: "absent".to_owned(),
                    supported: "an object with mrope_section, here or as rope_parameters"
                        .to_owned(),
                });
            }
        };
        let at = |field: &str| format!("{name}.{field}");
        let kind = rope.rope_type.as_deref().unwrap_or("default");
        require(kind == "default", &at("rope_type"), kind, "\"default\"")?;
        let interleaved = rope.mrope_interleaved.unwrap_or(false);
        require(interleaved, &at("mrope_interleaved"), interleaved, "true")?;
        let section = rope.mrope_section.clone().unwrap_or_default();
        let fits = section.len() == 3 && section.iter().sum::<usize>() == head_dim / 2;
        require(
            fits,
            &at("mrope_section"),
            section.clone(),
            format!("three numbers that add up to {}", head_dim / 2),
        )?;
        let theta = rope.rope_theta.or(self.rope_theta).unwrap_or(f64::NAN);
        require(theta > 0.0, &at("rope_theta"), theta, "a positive number")?;
        Ok((theta, [section[0], section[1], section[2]]))
    }
}

impl RawVision {
    fn check(self) -> Result<VisionConfig, ModelError> {
        let at = |field: &str| format!("vision_config.{field}");
        let act = self.hidden_act.as_str();
        require(
            act == "gelu_pytorch_tanh",
            &at("hidden_act"),
            act,
            "\"gelu_pytorch_tanh\"",
        )?;
        require(
            self.patch_size == 16,
            &at("patch_size"),
            self.patch_size,
            16,
        )?;
        require(
            self.temporal_patch_size == 2,
            &at("temporal_patch_size"),
            self.temporal_patch_size,
            2,
        )?;
        require(
            self.spatial_merge_size == 2,
            &at("spatial_merge_size"),
            self.spatial_merge_size,
            2,
        )?;
        require(
            self.in_channels == 3,
            &at("in_channels"),
            self.in_channels,
            3,
        )?;
        let heads = self.num_heads;
        let divides = heads > 0 && self.hidden_size.is_multiple_of(heads * 4);
        require(
            divides,
            &at("num_heads"),
            heads,
            "a number whose fourfold divides hidden_size",
        )?;
        let side = self.num_position_embeddings.isqrt();
        let square = side > 0 && side * side == self.num_position_embeddings;
        require(
            square,
            &at("num_position_embeddings"),
            self.num_position_embeddings,
            "a square number",
        )?;
        let taps = &self.deepstack_visual_indexes;
        let ascending = taps.is_sorted_by(|a, b| a < b) && taps.iter().all(|&tap| tap < self.depth);
        require(
            ascending,
            &at("deepstack_visual_indexes"),
            taps.clone(),
            format!("ascending numbers below the depth, {}", self.depth),
        )?;
        Ok(VisionConfig {
            depth: self.depth,
            hidden_size: self.hidden_size,
            heads: Heads {
                heads,
                kv_heads: heads,
                head_dim: self.hidden_size / heads,
            },
            intermediate_size: self.intermediate_size,
            out_hidden_size: self.out_hidden_size,
            deepstack_visual_indexes: self.deepstack_visual_indexes,
            position_side: side,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &[u8] = include_bytes!("../../tests/fixtures/parity/model/config.json");

    fn with(change: impl FnOnce(&mut Value)) -> Result<ModelConfig, ModelError> {
        let mut value: Value = serde_json::from_slice(TINY).unwrap();
        change(&mut value);
        ModelConfig::from_json(value.to_string().as_bytes())
    }

    #[test]
    fn both_dialects_give_the_same_configuration() {
        let old = with(|_| ()).unwrap();
        let new = with(|config| {
            let text = config["text_config"].as_object_mut().unwrap();
            let mut rope = text.remove("rope_scaling").unwrap();
            rope["rope_theta"] = text.remove("rope_theta").unwrap();
            text.insert("rope_parameters".to_owned(), rope);
        })
        .unwrap();
        assert_eq!(old, new);
        assert_eq!(old.text.mrope_section, [6, 5, 5]);
        assert_eq!(old.text.rope_theta, 5e6);
    }

    #[test]
    fn an_unknown_choice_is_refused_by_name() {
        type Change = fn(&mut Value);
        let cases: [(&str, Change); 8] = [
            ("model_type", |c| c["model_type"] = "qwen2_vl".into()),
            ("architectures", |c| {
                c["architectures"] = serde_json::json!(["LlamaForCausalLM"])
            }),
            ("text_config.hidden_act", |c| {
                c["text_config"]["hidden_act"] = "gelu".into()
            }),
            ("text_config.attention_bias", |c| {
                c["text_config"]["attention_bias"] = true.into()
            }),
            ("vision_config.patch_size", |c| {
                c["vision_config"]["patch_size"] = 14.into()
            }),
            ("text_config.rope_scaling.mrope_section", |c| {
                c["text_config"]["rope_scaling"]["mrope_section"] = serde_json::json!([24, 20, 20])
            }),
            ("text_config.rope_scaling.mrope_interleaved", |c| {
                c["text_config"]["rope_scaling"]["mrope_interleaved"] = false.into()
            }),
            ("vision_config.deepstack_visual_indexes", |c| {
                c["vision_config"]["deepstack_visual_indexes"] = serde_json::json!([0, 2, 4])
            }),
        ];
        for (field, change) in cases {
            let error = with(change).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }
}
