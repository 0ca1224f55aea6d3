//! The checkpoint's tokenizer, made safe for strangers' text: strings in, ids with their places out.
//!
//! Special tokens in a text are encoded as the plain text they are; the template's are placed by id. The file's own truncation and
//! padding are off, what its post-processor adds is put around the finished ids, and texts that cannot fit are found out before they
//! cost anything.

use std::fmt;

use tokenizers::models::ModelWrapper;
use tokenizers::{
    DecoderWrapper, Encoding, NormalizerWrapper, Offsets, PostProcessorWrapper, Tokenizer,
    TokenizerBuilder, TokenizerImpl,
};

use super::linear_split::LinearPreTokenizer;
use super::{ProcessorError, VisionTokenIds};

type Inner = TokenizerImpl<
    ModelWrapper,
    NormalizerWrapper,
    LinearPreTokenizer,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// Tokens the template places by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TemplateIds {
    /// `<|im_start|>`.
    pub(super) im_start: u32,
    /// `<|im_end|>`.
    pub(super) im_end: u32,
    /// Those `config.json` names.
    pub(super) vision: VisionTokenIds,
}

/// A text, encoded.
#[derive(Debug)]
pub(super) struct Encoded {
    /// `[tokens]`.
    pub(super) ids: Vec<u32>,
    /// `[tokens]`: which bytes of the text each came from; the tokens of one character all have its bytes.
    pub(super) bytes: Vec<Offsets>,
}

/// A `tokenizer.json`, checked against the ids of `config.json`.
pub(super) struct TextTokenizer {
    inner: Inner,
    ids: TemplateIds,
    /// `[vocabulary]`: what each id stands for.
    kinds: Vec<Kind>,
    /// Bytes the longest token stands for, at most.
    pub(super) longest_token_bytes: usize,
    added: Added,
}

/// What an id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Text,
    Special,
}

/// What the file's post-processor puts around the ids of one input, whatever they are.
#[derive(Debug)]
struct Added {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl fmt::Debug for TextTokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TextTokenizer")
            .field("ids", &self.ids)
            .field("vocabulary", &self.kinds.len())
            .field("added", &self.added)
            .finish_non_exhaustive()
    }
}

fn unusable(reason: impl Into<String>) -> ProcessorError {
    ProcessorError::Tokenizer {
        reason: reason.into(),
    }
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`ProcessorError::Tokenizer`] when it cannot be read, lacks a template token or disagrees with `ids`.
    pub(super) fn new(json: &[u8], ids: VisionTokenIds) -> Result<Self, ProcessorError> {
        let file = Tokenizer::from_bytes(json)
            .map_err(|error| unusable(format!("cannot be read: {error}")))?;
        if let ModelWrapper::BPE(bpe) = file.get_model()
            && bpe.dropout.is_some_and(|share| share > 0.0)
        {
            return Err(unusable("the model has dropout, its ids would be random"));
        }
        let steps = LinearPreTokenizer::from_file(file.get_pre_tokenizer()).map_err(unusable)?;
        let byte_level = steps.is_byte_level();
        let mut inner: Inner = TokenizerBuilder::new()
            .with_model(file.get_model().clone())
            .with_normalizer(file.get_normalizer().cloned())
            .with_pre_tokenizer(Some(steps))
            .with_post_processor(file.get_post_processor().cloned())
            .with_decoder(file.get_decoder().cloned())
            .with_added_vocabulary(file.get_added_vocabulary().clone())
            .build()
            .map_err(|error| unusable(format!("cannot be used: {error}")))?;
        inner.set_encode_special_tokens(true);

        let tokens = inner.get_vocab(true);
        let vocabulary = tokens.values().max().map_or(0, |&id| id as usize + 1);
        if vocabulary > ids.vocab_size {
            return Err(unusable(format!(
                "it has {vocabulary} ids, config.json says vocab_size is {}",
                ids.vocab_size
            )));
        }
        let added = inner.get_added_tokens_decoder();
        let longest_token_bytes = tokens
            .iter()
            .map(|(token, id)| match byte_level && !added.contains_key(id) {
                true => token.chars().count(),
                false => token.len(),
            })
            .max()
            .unwrap_or(1);
        let mut kinds = vec![Kind::Nothing; vocabulary];
        for &id in tokens.values() {
            let special = added.get(&id).is_some_and(|token| token.special);
            kinds[id as usize] = if special { Kind::Special } else { Kind::Text };
        }
        Ok(Self {
            ids: template_ids(&inner, ids)?,
            kinds,
            longest_token_bytes,
            added: Added::by(&inner)?,
            inner,
        })
    }

    /// The tokens the template places by id.
    pub(super) fn ids(&self) -> TemplateIds {
        self.ids
    }

    /// The id of a word that is one token.
    ///
    /// # Errors
    /// [`ProcessorError::Tokenizer`] when it is none.
    pub(super) fn id_of(&self, word: &str) -> Result<u32, ProcessorError> {
        let id = self.inner.token_to_id(word);
        id.ok_or_else(|| unusable(format!("has no token {word:?}")))
    }

    /// How many tokens the post-processor adds.
    pub(super) fn added_tokens(&self) -> usize {
        self.added.before.len() + self.added.after.len()
    }

    /// Encodes one uninterrupted text. Special tokens in it stay text, added tokens that are not special (`<think>`) are parsed.
    pub(super) fn encode(&self, text: &str) -> Result<Encoded, ProcessorError> {
        let encoding = self.encoding(text)?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            bytes: encoding.get_offsets().to_vec(),
        })
    }

    pub(super) fn encoding(&self, text: &str) -> Result<Encoding, ProcessorError> {
        self.inner
            .encode(text, false)
            .map_err(|_| unusable("its model cannot encode a text"))
    }

    /// The text of `ids`.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, ProcessorError> {
        self.inner
            .decode(ids, false)
            .map_err(|_| unusable("its decoder cannot decode ids"))
    }

    /// Refuses ids that are none of the vocabulary, or structure.
    ///
    /// # Errors
    /// [`ProcessorError::TokenId`].
    pub(super) fn check_ids(&self, ids: &[u32]) -> Result<(), ProcessorError> {
        let is_text = |&id: &u32| self.kinds.get(id as usize) == Some(&Kind::Text);
        let Some(position) = ids.iter().position(|id| !is_text(id)) else {
            return Ok(());
        };
        let id = ids[position];
        let reason = match self.kinds.get(id as usize) {
            None => format!("is not below the vocabulary size {}", self.kinds.len()),
            Some(Kind::Special) => "is a special token".to_owned(),
            Some(_) => "is not in the vocabulary".to_owned(),
        };
        Err(ProcessorError::TokenId {
            position,
            id,
            reason,
        })
    }

    /// Checks that a finished prompt has as many placeholders as its media have merged tokens.
    ///
    /// # Errors
    /// [`ProcessorError::Tokenizer`]: the user's ids and the template's are known by now, so only a text or the post-processor can
    /// have brought one more. Better here than in a batch.
    pub(super) fn check_placeholders(
        &self,
        ids: &[u32],
        media_tokens: usize,
    ) -> Result<(), ProcessorError> {
        let VisionTokenIds {
            image_token_id,
            video_token_id,
            ..
        } = self.ids.vision;
        let placeholders = ids
            .iter()
            .filter(|&&id| id == image_token_id || id == video_token_id)
            .count();
        if placeholders == media_tokens {
            Ok(())
        } else {
            Err(unusable(format!(
                "it gives {placeholders} placeholders for {media_tokens} tokens of media"
            )))
        }
    }

    /// The finished ids, with what the file's post-processor adds, and how many of them stand before those given.
    pub(super) fn post_process(&self, mut ids: Vec<u32>) -> (Vec<u32>, usize) {
        let Added { before, after } = &self.added;
        ids.splice(..0, before.iter().copied());
        ids.extend(after);
        (ids, before.len())
    }
}

impl Added {
    /// What a post-processor adds: it is run once, on ids that stand for any.
    ///
    /// # Errors
    /// [`ProcessorError::Tokenizer`] when it fails, or does more than adding.
    fn by(inner: &Inner) -> Result<Self, ProcessorError> {
        const SAMPLE: [u32; 2] = [0, 1];
        let tokens = SAMPLE.len();
        let encoding = Encoding::new(
            SAMPLE.to_vec(),
            vec![0; tokens],
            vec![String::new(); tokens],
            vec![None; tokens],
            vec![(0, 0); tokens],
            vec![0; tokens],
            vec![1; tokens],
            Vec::new(),
            Default::default(),
        );
        let finished = inner
            .post_process(encoding, None, true)
            .map_err(|_| unusable("its post-processor fails"))?;
        // What it adds is marked as special, what was given is not.
        let mask = finished.get_special_tokens_mask();
        let before = mask.iter().take_while(|&&special| special != 0).count();
        let ids = finished.get_ids();
        if ids.get(before..before + tokens) != Some(&SAMPLE) {
            return Err(unusable(
                "its post-processor changes the tokens it is given",
            ));
        }
        Ok(Added {
            before: ids[..before].to_vec(),
            after: ids[before + tokens..].to_vec(),
        })
    }
}

/// Looks up and checks the template's tokens.
fn template_ids(inner: &Inner, vision: VisionTokenIds) -> Result<TemplateIds, ProcessorError> {
    let find = |content: &str| {
        let id = inner
            .token_to_id(content)
            .ok_or_else(|| unusable(format!("has no token {content}")))?;
        let plain = inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|token| {
                token.special && !token.lstrip && !token.rstrip && !token.single_word
            });
        if plain {
            Ok(id)
        } else {
            Err(unusable(format!(
                "the token {content} is not a special token that stands for itself"
            )))
        }
    };
    for (field, id, content) in [
        ("image_token_id", vision.image_token_id, "<|image_pad|>"),
        ("video_token_id", vision.video_token_id, "<|video_pad|>"),
        (
            "vision_start_token_id",
            vision.vision_start_token_id,
            "<|vision_start|>",
        ),
        (
            "vision_end_token_id",
            vision.vision_end_token_id,
            "<|vision_end|>",
        ),
    ] {
        let found = find(content)?;
        if found != id {
            return Err(unusable(format!(
                "{content} has the id {found}, config.json says {field} is {id}"
            )));
        }
    }
    Ok(TemplateIds {
        im_start: find("<|im_start|>")?,
        im_end: find("<|im_end|>")?,
        vision,
    })
}
