//! The reranker's last step: how much more the model would answer "yes" than "no".
//!
//! In: a checkpoint's language-model head and the two answers' ids. Out: of a pooled row one number. Two rows of the head are all that is
//! read of it: the logits of the rest of the vocabulary have no part in the score.
//!
//! # Source
//! `src/models/qwen3_vl_reranker.py` of QwenLM/Qwen3-VL-Embedding: `sigmoid(h . (W[yes] - W[no]))`.

use half::bf16;

use super::ModelError;
use super::config::ModelConfig;
use crate::kernels::{HostTensor, WeightMap, check_shape};

/// The head, where it is not the embedding table.
const HEAD: &str = "lm_head.weight";
/// The embedding table, which is also the head where the two are tied.
const TABLE: &str = "model.language_model.embed_tokens.weight";

/// The ids of the two answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerIds {
    /// Of `yes`.
    pub yes: u32,
    /// Of `no`.
    pub no: u32,
}

/// The difference of two rows of the head.
#[derive(Debug, Clone)]
pub struct ScoreHead {
    /// `[hidden]`.
    weight: Vec<f32>,
}

impl ScoreHead {
    /// Takes the two rows out of a checkpoint. `rounded`: to bf16, where the model computes in it, as the reference does.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::Tensor`], and [`ModelError::Unsupported`] for an id beyond the vocabulary.
    pub fn load(
        config: &ModelConfig,
        tensors: &WeightMap,
        ids: AnswerIds,
        rounded: bool,
    ) -> Result<Self, ModelError> {
        let name = match config.tie_word_embeddings {
            true => TABLE,
            false => HEAD,
        };
        let tensor = tensors.get(name).ok_or_else(|| ModelError::MissingTensor {
            name: name.to_owned(),
        })?;
        let (rows, width) = (config.text.vocab_size, config.text.hidden_size);
        check_shape(tensor, &[rows, width]).map_err(|reason| ModelError::Tensor {
            name: name.to_owned(),
            reason,
        })?;
        for id in [ids.yes, ids.no] {
            if id as usize >= rows {
                return Err(ModelError::Unsupported {
                    field: "the id of an answer".to_owned(),
                    found: id.to_string(),
                    supported: format!("below text_config.vocab_size, {rows}"),
                });
            }
        }
        let difference = |(yes, no): (f32, f32)| match rounded {
            true => bf16::from_f32(yes - no).to_f32(),
            false => yes - no,
        };
        let (yes, no) = (row(tensor, ids.yes, width), row(tensor, ids.no, width));
        Ok(ScoreHead {
            weight: yes.into_iter().zip(no).map(difference).collect(),
        })
    }

    /// The logit of "yes" over "no"; its sigmoid is the score.
    ///
    /// # Shapes
    /// `pooled [hidden]`.
    pub fn logit(&self, pooled: &[f32]) -> f32 {
        let products = pooled.iter().zip(&self.weight);
        // In double precision, so that no order of the sum is better than another.
        products
            .map(|(x, w)| f64::from(*x) * f64::from(*w))
            .sum::<f64>() as f32
    }
}

fn row(tensor: &HostTensor, id: u32, width: usize) -> Vec<f32> {
    let bytes = width * tensor.dtype.size_bytes();
    let start = id as usize * bytes;
    let row = &tensor.bytes()[start..start + bytes];
    tensor.dtype.values(row).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kernels::WeightDtype;

    const IDS: AnswerIds = AnswerIds { yes: 3, no: 1 };

    fn config(tied: bool) -> ModelConfig {
        let json = include_bytes!("../../tests/fixtures/parity/model/config.json");
        let mut config = ModelConfig::from_json(json).unwrap();
        (config.text.vocab_size, config.text.hidden_size) = (4, 2);
        config.tie_word_embeddings = tied;
        config
    }

    fn table(values: [f32; 8]) -> HostTensor {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        HostTensor {
            dtype: WeightDtype::F32,
            shape: vec![4, 2],
            range: 0..bytes.len(),
            owner: Arc::new(bytes),
        }
    }

    fn logit(tied: bool, names: &[(&str, HostTensor)]) -> Result<f32, String> {
        let tensors = names
            .iter()
            .map(|(name, tensor)| ((*name).to_owned(), tensor.clone()));
        let head = ScoreHead::load(&config(tied), &tensors.collect(), IDS, false);
        head.map(|head| head.logit(&[1.0, 10.0]))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_score_is_of_the_head_and_of_the_table_only_where_they_are_tied() {
        let table_rows = table([0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 3.0, 5.0]);
        let head_rows = table([0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.25, 0.75]);
        assert_eq!(logit(true, &[(TABLE, table_rows.clone())]), Ok(32.0));
        let both = [(TABLE, table_rows.clone()), (HEAD, head_rows)];
        assert_eq!(logit(false, &both), Ok(2.25));
        assert_eq!(logit(true, &both), Ok(32.0));
        let missing = logit(false, &[(TABLE, table_rows)]).unwrap_err();
        assert!(missing.contains(HEAD), "{missing}");
    }

    #[test]
    fn an_id_beyond_the_vocabulary_is_refused() {
        let tensors = [(TABLE.to_owned(), table([0.0; 8]))].into();
        let ids = AnswerIds { yes: 4, no: 1 };
        let error = ScoreHead::load(&config(true), &tensors, ids, false).unwrap_err();
        assert!(error.to_string().contains('4'), "{error}");
    }
}
