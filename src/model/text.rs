//! The language model: Qwen3 decoder layers over packed sequences, causal, without a cache and without logits.

use candle_core::{Result, Tensor};

use super::config::TextConfig;
use super::parameters::Parameters;
use super::{ModelError, Trace};
use crate::kernels::{Activation, GatedMlp, Kernels, Linear, Matrix, Norm, Rope, Spans};

#[derive(Debug)]
struct DecoderLayer {
    input_layernorm: Norm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Norm,
    k_norm: Norm,
    post_attention_layernorm: Norm,
    mlp: GatedMlp,
}

/// The language model.
#[derive(Debug)]
pub(super) struct TextModel {
    config: TextConfig,
    embed_tokens: Matrix,
    layers: Vec<DecoderLayer>,
    norm: Norm,
}

/// Which tokens of a packed batch belong together and which are pooled.
pub(super) struct Packing<'a> {
    /// `[sequences + 1]`.
    pub(super) cu_seqlens: &'a [u32],
    /// `[vision_tokens]`.
    pub(super) vision_rows: &'a [u32],
    /// `[tokens, head_dim / 2]`.
    pub(super) rope: Rope,
}

impl Packing<'_> {
    /// The last token of each sequence.
    fn pooled(&self) -> Vec<u32> {
        self.cu_seqlens[1..].iter().map(|end| end - 1).collect()
    }
}

impl TextModel {
    pub(super) fn load(
        config: &TextConfig,
        parameters: Parameters<'_>,
    ) -> std::result::Result<Self, ModelError> {
        let root = "model.language_model";
        let layers = (0..config.num_hidden_layers)
            .map(|i| DecoderLayer::load(config, parameters, &format!("{root}.layers.{i}")))
            .collect::<std::result::Result<_, _>>()?;
        let table = [config.vocab_size, config.hidden_size];
        Ok(TextModel {
            config: config.clone(),
            embed_tokens: parameters.matrix(&format!("{root}.embed_tokens.weight"), &table)?,
            layers,
            norm: parameters.rms_norm(
                &format!("{root}.norm"),
                config.hidden_size,
                config.rms_norm_eps,
            )?,
        })
    }

    /// `[tokens]` -> `[tokens, hidden]`.
    pub(super) fn embed(&self, input_ids: &[u32], kernels: &Kernels) -> Result<Tensor> {
        kernels.embedding(&self.embed_tokens, input_ids)
    }

    /// Runs the layers and pools the last token of each sequence after the final norm.
    ///
    /// # Shapes
    /// `x [tokens, hidden]`, `deepstack` each `[vision_tokens, hidden]` -> `[sequences, hidden]`.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        packing: &Packing<'_>,
        (deepstack, kernels): (&[Tensor], &Kernels),
        trace: Trace<'_>,
    ) -> Result<Tensor> {
        let spans = Spans::of(packing.cu_seqlens, true);
        let pooled = packing.pooled();
        let (last, layers) = self
            .layers
            .split_last()
            .ok_or_else(|| candle_core::Error::Msg("no layers".to_owned()))?;
        for (i, layer) in layers.iter().enumerate() {
            trace(&format!("text.layer{i}"), &x)?;
            x = layer.forward(&x, &self.config, (&packing.rope, &spans), kernels)?;
            if let Some(features) = deepstack.get(i) {
                x = kernels.add_rows(&x, packing.vision_rows, features)?;
            }
        }
        trace(&format!("text.layer{}", layers.len()), &x)?;
        // Nothing reads the other rows after the last layer, and a pooled token is never a vision token, so DeepStack ends here.
        let x = last.forward_pooled(&x, &self.config, (packing, &spans, &pooled), kernels)?; // [sequences, hidden]
        trace("text.norm_in", &x)?;
        let x = kernels.rms_norm(&x, &self.norm)?;
        trace("text.pooled", &x)?;
        Ok(x)
    }
}

impl DecoderLayer {
    fn load(
        config: &TextConfig,
        parameters: Parameters<'_>,
        prefix: &str,
    ) -> std::result::Result<Self, ModelError> {
        let (hidden, inner, eps) = (
            config.hidden_size,
            config.intermediate_size,
            config.rms_norm_eps,
        );
        let heads = config.heads;
        let (q, kv) = (
            heads.heads * heads.head_dim,
            heads.kv_heads * heads.head_dim,
        );
        let at = |name: &str| format!("{prefix}.{name}");
        Ok(DecoderLayer {
            input_layernorm: parameters.rms_norm(&at("input_layernorm"), hidden, eps)?,
            q_proj: parameters.linear_without_bias(&at("self_attn.q_proj"), q, hidden)?,
            k_proj: parameters.linear_without_bias(&at("self_attn.k_proj"), kv, hidden)?,
            v_proj: parameters.linear_without_bias(&at("self_attn.v_proj"), kv, hidden)?,
            o_proj: parameters.linear_without_bias(&at("self_attn.o_proj"), hidden, q)?,
            q_norm: parameters.rms_norm(&at("self_attn.q_norm"), heads.head_dim, eps)?,
            k_norm: parameters.rms_norm(&at("self_attn.k_norm"), heads.head_dim, eps)?,
            post_attention_layernorm: parameters.rms_norm(
                &at("post_attention_layernorm"),
                hidden,
                eps,
            )?,
            mlp: GatedMlp {
                gate: parameters.matrix(&at("mlp.gate_proj.weight"), &[inner, hidden])?,
                up: parameters.matrix(&at("mlp.up_proj.weight"), &[inner, hidden])?,
                down: parameters.matrix(&at("mlp.down_proj.weight"), &[hidden, inner])?,
            },
        })
    }

    /// `[tokens, hidden]` -> the same.
    fn forward(
        &self,
        x: &Tensor,
        config: &TextConfig,
        (rope, spans): (&Rope, &Spans),
        kernels: &Kernels,
    ) -> Result<Tensor> {
        let normed = kernels.rms_norm(x, &self.input_layernorm)?;
        let q = kernels.linear(&normed, &self.q_proj, Activation::None)?;
        let q = kernels.rope(&q, Some(&self.q_norm), rope)?;
        self.attend(x, &normed, (&q, config, rope, spans), kernels)
    }

    /// The same, but queries, output projection and MLP only for the pooled tokens.
    ///
    /// # Shapes
    /// `x [tokens, hidden]` -> `[sequences, hidden]`.
    fn forward_pooled(
        &self,
        x: &Tensor,
        config: &TextConfig,
        (packing, spans, pooled): (&Packing<'_>, &Spans, &[u32]),
        kernels: &Kernels,
    ) -> Result<Tensor> {
        let normed = kernels.rms_norm(x, &self.input_layernorm)?;
        let q = kernels.gather_rows(&normed, pooled)?; // [sequences, hidden]
        let q = kernels.linear(&q, &self.q_proj, Activation::None)?;
        let pooled_rope = Rope {
            cos: kernels.gather_rows(&packing.rope.cos, pooled)?,
            sin: kernels.gather_rows(&packing.rope.sin, pooled)?,
        };
        let q = kernels.rope(&q, Some(&self.q_norm), &pooled_rope)?;
        let spans = Spans {
            cu_q: (0..=pooled.len() as u32).collect(),
            ..spans.clone()
        };
        let residual = kernels.gather_rows(x, pooled)?;
        self.attend(
            &residual,
            &normed,
            (&q, config, &packing.rope, &spans),
            kernels,
        )
    }

    /// Keys and values of all of `normed`, attention of `q` over them, output projection and MLP onto `residual`.
    fn attend(
        &self,
        residual: &Tensor,
        normed: &Tensor,
        (q, config, rope, spans): (&Tensor, &TextConfig, &Rope, &Spans),
        kernels: &Kernels,
    ) -> Result<Tensor> {
        let k = kernels.linear(normed, &self.k_proj, Activation::None)?;
        let k = kernels.rope(&k, Some(&self.k_norm), rope)?;
        let v = kernels.linear(normed, &self.v_proj, Activation::None)?;
        let mixed = kernels.attention([q, &k, &v], spans, config.heads)?;
        let x = kernels.linear_add(&mixed, &self.o_proj, residual)?;
        let normed = kernels.rms_norm(&x, &self.post_attention_layernorm)?;
        kernels.gated_mlp(&normed, &self.mlp, &x)
    }
}
