//! What the encoder eats: one [`Sequence`] an input, many of them concatenated into a [`PackedBatch`].

use std::ops::Range;
use std::sync::Arc;

/// The patch grid of one image (`t == 1`) or one video (`t` frame pairs): sizes in 16-pixel patches.
///
/// # Source
/// `image_grid_thw`, transformers 4.57.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GridThw {
    /// Frame pairs; 1 for an image.
    pub t: u32,
    /// Rows of patches; even.
    pub h: u32,
    /// Columns of patches; even.
    pub w: u32,
}

impl GridThw {
    /// Number of patches, `t * h * w`.
    pub fn patches(self) -> usize {
        self.t as usize * self.h as usize * self.w as usize
    }

    /// Number of rows the language model sees: one for 2 x 2 patches.
    pub fn vision_tokens(self) -> usize {
        self.patches() / 4
    }
}

/// A digest of a [`Patches`]: equal for equal pixels on equal grids.
pub type MediaKey = [u8; 32];

/// What pixels from 0 to 1 are normalised by: `image_mean` and `image_std` of all three channels.
///
/// # Source
/// `preprocessor_config.json` of the published checkpoints.
pub(crate) const PIXEL_MEAN: f32 = 0.5;
/// See [`PIXEL_MEAN`].
pub(crate) const PIXEL_STD: f32 = 0.5;

/// The pixels of one image or video, cut into patches, not yet normalised.
///
/// # Shapes
/// `pixels` is `[patches, 3, 2, 16, 16]` flattened: rows in merge-block order `(t, h/2, w/2, 2, 2)`, each row channel, frame
/// of the pair, row, column. Values are 8-bit; the model maps `x` to `(x - 127.5) / 127.5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patches {
    /// Grid the rows tile.
    pub grid: GridThw,
    /// `grid.patches() * 1536` bytes.
    pub pixels: Vec<u8>,
}

/// Whose input something is. What is kept of one tenant's inputs serves no other's: how long an answer takes would tell one what another
/// has asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub u128);

/// What a sequence is computed for, which says by which of the engine's models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Its embedding.
    #[default]
    Embed,
    /// How relevant the document in it is to the query in it.
    Rerank,
}

impl Task {
    /// Both, in the order of their numbers.
    pub const ALL: [Task; 2] = [Task::Embed, Task::Rerank];
}

/// One input, tokenised and positioned.
///
/// `vision_rows[i]` is the position in `input_ids` that the i-th merged vision token of `media` (all media, in order) fills;
/// the id found there is the checkpoint's image or video pad token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// `[tokens]`, post-processor included. The last one is pooled.
    pub input_ids: Vec<u32>,
    /// M-RoPE positions: temporal, height, width; each `[tokens]`.
    pub position_ids: [Vec<u32>; 3],
    /// Images and videos in the order their tokens appear.
    pub media: Vec<Arc<Patches>>,
    /// `[vision_tokens]`, ascending.
    pub vision_rows: Vec<u32>,
    /// How many of the first `input_ids` other inputs begin with too: the template with the instruction, before a document also the
    /// query with its media, all of each or none. What the encoder keeps of them serves the next such input. Fewer than all tokens; 0
    /// where there is no template.
    pub prefix_tokens: usize,
    /// Which model computes it.
    pub task: Task,
}

/// Many sequences concatenated, without padding: what one forward pass computes.
#[derive(Debug, Clone, Default)]
pub struct PackedBatch {
    /// `[tokens]`.
    pub input_ids: Vec<u32>,
    /// Temporal, height, width positions; each `[tokens]`.
    pub position_ids: [Vec<u32>; 3],
    /// `[sequences + 1]`, first 0, last `tokens`.
    pub cu_seqlens: Vec<u32>,
    /// Length of the longest sequence in tokens.
    pub max_seqlen: u32,
    /// `[sequences]`: each sequence's [`Sequence::prefix_tokens`].
    pub prefix_tokens: Vec<usize>,
    /// `[sequences]`, or empty where all are the same tenant's.
    pub tenants: Vec<Tenant>,
    /// Images and videos of all sequences, in order.
    pub media: Vec<Arc<Patches>>,
    /// For each of `media` its key, or empty where nobody looks them up.
    pub media_keys: Vec<MediaKey>,
    /// `[media]`: the sequence each belongs to.
    pub media_sequences: Vec<usize>,
    /// `[vision_tokens]`: rows of the packed tokens that vision features fill.
    pub vision_rows: Vec<u32>,
    /// Which model computes it: all sequences are for the same.
    pub task: Task,
    /// Whether it is short texts that nothing is to come between.
    pub is_short: bool,
}

impl PackedBatch {
    /// Concatenates sequences in the order given, which are all for the model the first is for.
    pub fn pack<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> Self {
        let mut batch = PackedBatch {
            cu_seqlens: vec![0],
            ..PackedBatch::default()
        };
        for sequence in sequences {
            let start = batch.input_ids.len() as u32;
            let number = batch.sequences();
            if number == 0 {
                batch.task = sequence.task;
            }
            debug_assert_eq!(batch.task, sequence.task, "a pass is of one model");
            let owners = sequence.media.iter().map(|_| number);
            batch.media_sequences.extend(owners);
            batch.input_ids.extend_from_slice(&sequence.input_ids);
            for (all, own) in batch.position_ids.iter_mut().zip(&sequence.position_ids) {
                all.extend_from_slice(own);
            }
            batch.media.extend(sequence.media.iter().cloned());
            batch
                .vision_rows
                .extend(sequence.vision_rows.iter().map(|row| start + row));
            batch.cu_seqlens.push(batch.input_ids.len() as u32);
            batch.prefix_tokens.push(sequence.prefix_tokens);
            batch.max_seqlen = batch.max_seqlen.max(sequence.input_ids.len() as u32);
        }
        batch
    }

    /// The tokens of a sequence that others begin with too.
    pub fn prefix(&self, sequence: usize) -> &[u32] {
        let start = self.cu_seqlens[sequence] as usize;
        &self.input_ids[start..start + self.prefix_tokens[sequence]]
    }

    /// Which of `media` stand among the first `tokens` tokens of a sequence.
    pub fn media_within(&self, sequence: usize, tokens: usize) -> Range<usize> {
        let owner = |i: usize| self.media_sequences[i];
        let first = self.media_sequences.partition_point(|&of| of < sequence);
        let end = self.cu_seqlens[sequence] as usize + tokens;
        let spans = self.vision_spans();
        let begins_before = |i: usize| match self.vision_rows.get(spans[i].start) {
            Some(&row) => (row as usize) < end,
            None => false,
        };
        let mut last = first;
        while last < self.media.len() && owner(last) == sequence && begins_before(last) {
            last += 1;
        }
        first..last
    }

    /// Whose a sequence is.
    pub fn tenant(&self, sequence: usize) -> Tenant {
        self.tenants.get(sequence).copied().unwrap_or_default()
    }

    /// Which of `vision_rows` each of `media` fills.
    pub fn vision_spans(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let span = |patches: &Arc<Patches>| {
            let start = end;
            end += patches.grid.vision_tokens();
            start..end
        };
        self.media.iter().map(span).collect()
    }

    /// The batch without the first `tokens[i]` tokens of each sequence `i`: all of a medium or none of it, and not all tokens.
    #[must_use]
    pub fn without_first(&self, tokens: &[usize]) -> Self {
        let mut rest = PackedBatch {
            cu_seqlens: vec![0],
            tenants: self.tenants.clone(),
            task: self.task,
            ..PackedBatch::default()
        };
        let mut vision_rows = self.vision_rows.iter().peekable();
        let mut removed = 0;
        for (sequence, (bounds, &tokens)) in self.cu_seqlens.windows(2).zip(tokens).enumerate() {
            let kept = bounds[0] as usize + tokens..bounds[1] as usize;
            removed += tokens as u32;
            rest.input_ids
                .extend_from_slice(&self.input_ids[kept.clone()]);
            for (rest, all) in rest.position_ids.iter_mut().zip(&self.position_ids) {
                rest.extend_from_slice(&all[kept.clone()]);
            }
            let dropped = self.media_within(sequence, tokens);
            let own = dropped.start..self.media_sequences.partition_point(|&of| of <= sequence);
            for i in own.filter(|i| !dropped.contains(i)) {
                rest.media.push(Arc::clone(&self.media[i]));
                rest.media_keys.extend(self.media_keys.get(i));
                rest.media_sequences.push(sequence);
            }
            while let Some(&row) = vision_rows.next_if(|row| **row < bounds[1]) {
                if row as usize >= kept.start {
                    rest.vision_rows.push(row - removed);
                }
            }
            rest.cu_seqlens.push(bounds[1] - removed);
            rest.prefix_tokens.push(0);
            rest.max_seqlen = rest.max_seqlen.max(kept.len() as u32);
        }
        rest
    }

    /// Some sequences of a batch that has no media.
    ///
    /// # Panics
    /// When it has fewer sequences.
    #[must_use]
    pub fn only(&self, sequences: Range<usize>) -> Self {
        debug_assert!(self.media.is_empty(), "media are not looked for");
        let bounds = &self.cu_seqlens[sequences.start..=sequences.end];
        let first = bounds[0];
        let rows = first as usize..self.cu_seqlens[sequences.end] as usize;
        let lengths = bounds.windows(2).map(|bounds| bounds[1] - bounds[0]);
        let positions = self.position_ids.each_ref();
        PackedBatch {
            input_ids: self.input_ids[rows.clone()].to_vec(),
            position_ids: positions.map(|all| all[rows.clone()].to_vec()),
            cu_seqlens: bounds.iter().map(|bound| bound - first).collect(),
            max_seqlen: lengths.max().unwrap_or(0),
            prefix_tokens: self.prefix_tokens[sequences.clone()].to_vec(),
            tenants: self.tenants.get(sequences).unwrap_or_default().to_vec(),
            task: self.task,
            ..PackedBatch::default()
        }
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    /// Number of language-model positions.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }
}
