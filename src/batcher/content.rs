//! What makes two inputs the same. In: a [`Sequence`]. Out: a digest of everything the model reads of it.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::model::{MediaKey, Patches, Sequence};

/// Equal for sequences the model cannot tell apart, and for no others anybody can find.
///
/// It covers what is left of an input after decoding, sampling, resizing and tokenising: ids and positions (so the instruction, the
/// template and every cut), pixels and grids (so the decoded bytes and each parameter they were resized or sampled by). It does not
/// cover the model, its revision and the number format: a process serves one of each for a task, and what it remembers ends with it. Whose
/// input it is stands beside it wherever it is looked up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentKey([u8; 32]);

/// What an input is, and what its pictures are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Of the whole.
    pub content: ContentKey,
    /// Of each of its media.
    pub media: Vec<MediaKey>,
}

impl Identity {
    /// The digests of a sequence. Reads every pixel: not for an async thread.
    pub fn of(sequence: &Sequence) -> Self {
        Self::of_knowing(sequence, &[])
    }

    /// The digest of each of some media. Reads every pixel.
    pub fn media_keys(media: &[Arc<Patches>]) -> Vec<MediaKey> {
        media.iter().map(|patches| media_key(patches)).collect()
    }

    /// The digests of a sequence, those of its first media being known.
    pub fn of_knowing(sequence: &Sequence, known: &[MediaKey]) -> Self {
        // Named one by one, so that a new field cannot be forgotten.
        let Sequence {
            input_ids,
            position_ids,
            media,
            vision_rows,
            prefix_tokens,
            task,
        } = sequence;
        let mut hash = Sha256::new();
        // Each list after its length: lists of other lengths must not run together to the same bytes.
        let numbers = |hash: &mut Sha256, numbers: &[u32]| {
            hash.update((numbers.len() as u64).to_le_bytes());
            for number in numbers {
                hash.update(number.to_le_bytes());
            }
        };
        numbers(&mut hash, input_ids);
        for axis in position_ids {
            numbers(&mut hash, axis);
        }
        numbers(&mut hash, vision_rows);
        hash.update((*prefix_tokens as u64).to_le_bytes());
        hash.update([*task as u8]);
        hash.update((media.len() as u64).to_le_bytes());
        let mut keys = known.to_vec();
        keys.extend(Self::media_keys(&media[known.len()..]));
        let media = keys;
        for key in &media {
            hash.update(key);
        }
        Identity {
            content: ContentKey(hash.finalize().into()),
            media,
        }
    }
}

fn media_key(patches: &Patches) -> MediaKey {
    let Patches { grid, pixels } = patches;
    let mut hash = Sha256::new();
    for side in [grid.t, grid.h, grid.w] {
        hash.update(side.to_le_bytes());
    }
    hash.update(pixels);
    hash.finalize().into()
}

#[cfg(test)]
impl ContentKey {
    /// A key of a test's own.
    pub(super) fn made_of(number: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        ContentKey(bytes)
    }
}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GridThw, Task};

    fn sequence() -> Sequence {
        let patches = |value: u8| {
            Arc::new(Patches {
                grid: GridThw { t: 1, h: 2, w: 4 },
                pixels: vec![value; 8 * 1536],
            })
        };
        Sequence {
            input_ids: vec![1, 2, 3, 4, 5, 6],
            position_ids: std::array::from_fn(|_| (0..6).collect()),
            media: vec![patches(1), patches(2)],
            vision_rows: vec![1, 2, 3, 4],
            prefix_tokens: 1,
            task: Task::Embed,
        }
    }

    #[test]
    fn every_part_of_a_sequence_tells_it_apart() {
        let changes: [fn(&mut Sequence); 10] = [
            |s| s.input_ids[2] = 9,
            |s| s.input_ids.push(7),
            |s| s.position_ids[2][5] = 9,
            |s| s.vision_rows[3] = 5,
            |s| s.prefix_tokens = 0,
            |s| s.task = Task::Rerank,
            |s| s.media.swap(0, 1),
            |s| Arc::make_mut(&mut s.media[1]).pixels[12287] = 3,
            |s| Arc::make_mut(&mut s.media[0]).grid = GridThw { t: 1, h: 4, w: 2 },
            |s| {
                s.media.pop();
            },
        ];
        let mut keys = vec![Identity::of(&sequence()).content];
        assert_eq!(keys[0], Identity::of(&sequence()).content);
        let first = Identity::media_keys(&sequence().media[..1]);
        let knowing = Identity::of_knowing(&sequence(), &first);
        assert_eq!(knowing, Identity::of(&sequence()));
        for change in changes {
            let mut changed = sequence();
            change(&mut changed);
            keys.push(Identity::of(&changed).content);
        }
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 11);
    }
}
