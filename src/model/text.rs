//! The language model: Qwen3 decoder layers over packed sequences, causal, without a cache and without logits.

use std::sync::Arc;

use candle_core::Result;

use super::config::TextConfig;
use super::parameters::Parameters;
use super::prefix::{Past, Prefix, Reuse};
use super::vision::VisionFeatures;
use super::{ModelError, Trace};
use crate::kernels::{
    Activations, GatedMlp, HeadRange, Kernels, Linear, Norm, Projections, Rope, Sensitivity, Spans,
    Table,
};

/// One in so many decoder layers, the first ones, is [`Sensitivity::High`]: 4 of 28 in the 2B, 5 of 36 in the 8B.
const LAYERS_FOR_A_SENSITIVE_ONE: usize = 8;

#[derive(Debug)]
struct DecoderLayer {
    input_layernorm: Norm,
    q_proj: Linear,
    /// `k_proj`, then `v_proj`.
    kv_proj: Linear,
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
    embed_tokens: Table,
    layers: Vec<DecoderLayer>,
    norm: Norm,
}

/// What the vision tower says of some tokens.
pub(super) struct View {
    /// `[vision_tokens]`.
    pub(super) rows: Vec<u32>,
    pub(super) features: Arc<VisionFeatures>,
}

/// Which tokens of a packed batch belong together and which are pooled.
pub(super) struct Packing<'a> {
    /// `[sequences + 1]`.
    pub(super) cu_seqlens: &'a [u32],
    /// What the vision tower says, and of which tokens; no token twice.
    pub(super) views: &'a [View],
    /// `[tokens, head_dim / 2]`.
    pub(super) rope: Rope,
    /// What earlier passes computed.
    pub(super) reuse: Reuse<'a>,
}

impl Packing<'_> {
    /// The last token of each sequence.
    fn pooled(&self) -> Vec<u32> {
        self.cu_seqlens[1..].iter().map(|end| end - 1).collect()
    }

    /// The keys and values of a layer that come before those of each sequence; `begun` are those of this pass's own beginnings.
    fn past<'a>(&'a self, layer: usize, begun: &'a [Activations]) -> Vec<Option<&'a Activations>> {
        let of = |past: &'a Past| match past {
            Past::Nothing => None,
            Past::Kept(prefix) => Some(&prefix.layers[layer]),
            Past::Beginning(i) => Some(&begun[*i]),
        };
        self.reuse.past.iter().map(of).collect()
    }
}

impl TextModel {
    pub(super) fn load(
        config: &TextConfig,
        parameters: Parameters<'_>,
    ) -> std::result::Result<Self, ModelError> {
        let root = "model.language_model";
        let sensitive = config
            .num_hidden_layers
            .div_ceil(LAYERS_FOR_A_SENSITIVE_ONE);
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let sensitivity = if i < sensitive {
                    Sensitivity::High
                } else {
                    Sensitivity::Ordinary
                };
                let parameters = parameters.with(sensitivity);
                DecoderLayer::load(config, parameters, &format!("{root}.layers.{i}"))
            })
            .collect::<std::result::Result<_, _>>()?;
        let table = [config.vocab_size, config.hidden_size];
        Ok(TextModel {
            config: config.clone(),
            embed_tokens: parameters.table(&format!("{root}.embed_tokens.weight"), table)?,
            layers,
            norm: parameters.rms_norm(
                &format!("{root}.norm"),
                config.hidden_size,
                config.rms_norm_eps,
            )?,
        })
    }

    /// `[tokens]` -> `[tokens, hidden]`.
    pub(super) fn embed(&self, input_ids: &[u32], kernels: &Kernels) -> Result<Activations> {
        kernels.embedding(&self.embed_tokens, input_ids)
    }

    /// Runs the layers and pools the last token of each sequence after the final norm. Also returns what was to be kept.
    ///
    /// # Shapes
    /// `x [tokens, hidden]` -> `[sequences, hidden]`.
    pub(super) fn forward(
        &self,
        mut x: Activations,
        packing: &Packing<'_>,
        kernels: &Kernels,
        trace: Trace<'_>,
    ) -> Result<(Activations, Vec<Prefix>)> {
        let pass = Pass {
            config: &self.config,
            packing,
            spans: Spans::of(packing.cu_seqlens, true),
            kernels,
        };
        let mut kept: Vec<Prefix> = packing
            .reuse
            .beginnings
            .iter()
            .filter(|beginning| beginning.keep)
            .map(|beginning| Prefix {
                tokens: beginning.rows.len(),
                layers: Vec::with_capacity(self.layers.len()),
            })
            .collect();
        for (i, layer) in self.layers.iter().enumerate() {
            trace(&format!("text.layer{i}"), &x)?;
            if i + 1 < self.layers.len() {
                x = layer.forward(x, &pass, i, &mut kept)?;
                for View { rows, features } in packing.views {
                    if let Some(tap) = features.deepstack.get(i) {
                        x = kernels.add_rows(x, rows, tap)?;
                    }
                }
            } else {
                // Nothing reads the other rows after the last layer, and a pooled token is never a vision token, so DeepStack
                // ends before it.
                x = layer.forward_pooled(&x, &pass, i, &mut kept)?; // [sequences, hidden]
            }
        }
        trace("text.norm_in", &x)?;
        let x = kernels.norm(&x, &self.norm)?;
        trace("text.pooled", &x)?;
        Ok((x, kept))
    }
}

/// What all layers of a forward pass share.
struct Pass<'a> {
    config: &'a TextConfig,
    packing: &'a Packing<'a>,
    spans: Spans,
    kernels: &'a Kernels,
}

impl Pass<'_> {
    /// Normalises and rotates heads that begin at the first column.
    fn rotate(
        &self,
        x: Activations,
        heads: usize,
        norm: &Norm,
        rope: &Rope,
    ) -> Result<Activations> {
        let range = HeadRange {
            columns: 0..heads * self.config.heads.head_dim,
            norm: Some(norm),
        };
        self.kernels.rotate(x, &[range], rope)
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
        let weight = |name: &str, columns| (at(&format!("self_attn.{name}_proj.weight")), columns);
        Ok(DecoderLayer {
            input_layernorm: parameters.rms_norm(&at("input_layernorm"), hidden, eps)?,
            q_proj: parameters.stacked(&[weight("q", q)], hidden)?,
            kv_proj: parameters.stacked(&[weight("k", kv), weight("v", kv)], hidden)?,
            o_proj: parameters.stacked(&[weight("o", hidden)], q)?,
            q_norm: parameters.rms_norm(&at("self_attn.q_norm"), heads.head_dim, eps)?,
            k_norm: parameters.rms_norm(&at("self_attn.k_norm"), heads.head_dim, eps)?,
            post_attention_layernorm: parameters.rms_norm(
                &at("post_attention_layernorm"),
                hidden,
                eps,
            )?,
            mlp: parameters.gated_mlp(&at("mlp"), (hidden, inner))?,
        })
    }

    /// `[tokens, hidden]` -> the same.
    fn forward(
        &self,
        x: Activations,
        pass: &Pass<'_>,
        layer: usize,
        kept: &mut [Prefix],
    ) -> Result<Activations> {
        let linears = [&self.q_proj, &self.kv_proj];
        let [q, kv] = pass
            .kernels
            .norm_apply(&x, &self.input_layernorm, linears)?;
        let (rope, heads) = (&pass.packing.rope, pass.config.heads);
        let q = pass.rotate(q, heads.heads, &self.q_norm, rope)?;
        let kv = pass.rotate(kv, heads.kv_heads, &self.k_norm, rope)?;
        self.attend(x, [&q, &kv], (pass, &pass.spans, layer), kept)
    }

    /// The same, but queries, output projection and MLP only for the pooled tokens.
    ///
    /// # Shapes
    /// `x [tokens, hidden]` -> `[sequences, hidden]`.
    fn forward_pooled(
        &self,
        x: &Activations,
        pass: &Pass<'_>,
        layer: usize,
        kept: &mut [Prefix],
    ) -> Result<Activations> {
        let Pass {
            packing, kernels, ..
        } = *pass;
        let pooled = packing.pooled();
        let residual = kernels.gather_rows(x, &pooled)?; // [sequences, hidden]
        let [q] = kernels.norm_apply(&residual, &self.input_layernorm, [&self.q_proj])?;
        let [kv] = kernels.norm_apply(x, &self.input_layernorm, [&self.kv_proj])?;
        let heads = pass.config.heads;
        let pooled_rope = kernels.gather_rope(&packing.rope, &pooled)?;
        let q = pass.rotate(q, heads.heads, &self.q_norm, &pooled_rope)?;
        let kv = pass.rotate(kv, heads.kv_heads, &self.k_norm, &packing.rope)?;
        let spans = Spans {
            cu_q: (0..=pooled.len() as u32).collect(),
            ..pass.spans.clone()
        };
        self.attend(residual, [&q, &kv], (pass, &spans, layer), kept)
    }

    /// Attention of `q` over keys and values, output projection and MLP onto `residual`.
    fn attend(
        &self,
        residual: Activations,
        [q, kv]: [&Activations; 2],
        (pass, spans, layer): (&Pass<'_>, &Spans, usize),
        kept: &mut [Prefix],
    ) -> Result<Activations> {
        let Pass {
            kernels, packing, ..
        } = *pass;
        let mut begun = Vec::with_capacity(packing.reuse.beginnings.len());
        for beginning in packing.reuse.beginnings {
            let rows: Vec<u32> = beginning.rows.clone().collect();
            begun.push(kernels.gather_rows(kv, &rows)?);
        }
        let heads = pass.config.heads;
        let projections = Projections {
            q: (q, 0),
            k: (kv, 0),
            v: (kv, heads.kv_heads * heads.head_dim),
        };
        let past = packing.past(layer, &begun);
        let mixed = kernels.attention(projections, &past, spans, heads)?;
        let to_keep = begun.into_iter().zip(packing.reuse.beginnings);
        let to_keep = to_keep.filter(|(_, beginning)| beginning.keep);
        for (prefix, (layer, _)) in kept.iter_mut().zip(to_keep) {
            prefix.layers.push(layer);
        }
        let x = kernels.apply_add(&mixed, &self.o_proj, residual)?;
        kernels.gated_mlp(x, &self.post_attention_layernorm, &self.mlp)
    }
}
