//! Weight files: which ones a checkpoint has, and their tensors as views of the mapped bytes.
//!
//! In: a directory, or the names a repository lists. Out: a [`WeightMap`] that copies nothing. Only safetensors is read, a format
//! without code in it; a checkpoint that has nothing but pickle files is refused.
//!
//! Source: the safetensors format description (8 bytes header length, JSON header, tensors without gaps) and the sharding
//! convention of transformers (`model.safetensors`, else `model.safetensors.index.json`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use super::EngineError;
use crate::kernels::weight::{SharedBytes, WeightBytes};
use crate::kernels::{HostTensor, WeightDtype, WeightMap};

/// The file name of weights that are not sharded.
pub(super) const SINGLE_FILE: &str = "model.safetensors";
/// The file name that lists the shards.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Endings of files that hold pickled Python objects: loading one runs whatever code it carries.
const PICKLE_ENDINGS: [&str; 5] = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];

/// The header length stands in the first eight bytes.
const PREFIX_BYTES: usize = 8;
/// A header above this is refused unread, as the safetensors library does.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// How a checkpoint keeps its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightLayout {
    /// Everything in [`SINGLE_FILE`].
    Single,
    /// Several files, listed by [`INDEX_FILE`].
    Sharded,
}

impl WeightLayout {
    /// Picks the layout from the file names a directory or a repository has. Where both are there the single file counts, as
    /// in transformers.
    ///
    /// # Errors
    /// A reason, when there is no safetensors file; it names a pickle file where that is what is there instead.
    pub(super) fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let names: BTreeSet<&str> = names.into_iter().collect();
        if names.contains(SINGLE_FILE) {
            return Ok(Self::Single);
        }
        if names.contains(INDEX_FILE) {
            return Ok(Self::Sharded);
        }
        let is_pickle = |name: &&&str| PICKLE_ENDINGS.iter().any(|ending| name.ends_with(ending));
        Err(match names.iter().find(is_pickle) {
            Some(pickle) => {
                format!(
                    "has its weights in {pickle}, a pickle file that can run code: only safetensors is loaded ({SINGLE_FILE} or {INDEX_FILE})"
                )
            }
            None => format!("has neither {SINGLE_FILE} nor {INDEX_FILE}"),
        })
    }
}

/// `model.safetensors.index.json`: which tensor lies in which shard.
#[derive(Debug, Deserialize)]
pub(super) struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Parses the index and checks its file names.
    ///
    /// # Errors
    /// [`EngineError::File`] when it is not such a JSON document, names no shard, or names a shard that is not a plain
    /// `*.safetensors` file name: a path could lead out of the checkpoint.
    pub(super) fn parse(json: &[u8], path: &Path) -> Result<Self, EngineError> {
        let fail = |reason: String| EngineError::File {
            path: path.to_owned(),
            reason,
        };
        let index: Self = serde_json::from_slice(json)
            .map_err(|error| fail(format!("is not an index of shards: {error}")))?;
        if index.weight_map.is_empty() {
            return Err(fail("names no tensor in weight_map".to_owned()));
        }
        for (tensor, shard) in &index.weight_map {
            let is_plain = !shard.starts_with('.') && !shard.contains(['/', '\\', ':', '\0']);
            if !is_plain || !shard.ends_with(".safetensors") {
                return Err(fail(format!(
                    "puts tensor {tensor} into {shard:?}, which is not the name of a safetensors file beside it"
                )));
            }
        }
        Ok(index)
    }

    /// The shards, each once, in order.
    pub(super) fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// Maps the weights of a directory.
///
/// # Errors
/// [`EngineError::File`] when files are missing, truncated or lie about their contents; [`EngineError::Tensor`] when a tensor
/// is in two shards, in a shard the index does not say, or of a type the model is not computed from.
pub(super) fn map_weights(directory: &Path) -> Result<WeightMap, EngineError> {
    let fail = |reason: String| EngineError::File {
        path: directory.to_owned(),
        reason,
    };
    let mut names = Vec::new();
    for entry in
        std::fs::read_dir(directory).map_err(|error| fail(format!("cannot be listed: {error}")))?
    {
        let entry = entry.map_err(|error| fail(format!("cannot be listed: {error}")))?;
        names.extend(entry.file_name().into_string());
    }
    let mut weights = WeightMap::new();
    match WeightLayout::of(names.iter().map(String::as_str)).map_err(fail)? {
        WeightLayout::Single => {
            let path = directory.join(SINGLE_FILE);
            weights.extend(read_tensors(&map_file(&path)?, &path)?);
        }
        WeightLayout::Sharded => {
            let path = directory.join(INDEX_FILE);
            let index = ShardIndex::parse(&read_file(&path)?, &path)?;
            let mut homes = BTreeMap::new();
            for shard in index.shards() {
                let path = directory.join(shard);
                for (name, tensor) in read_tensors(&map_file(&path)?, &path)? {
                    if let Some(first) = homes.insert(name.clone(), shard) {
                        return Err(EngineError::Tensor {
                            name,
                            reason: format!("is both in {first} and in {shard}"),
                        });
                    }
                    weights.insert(name, tensor);
                }
            }
            // A tensor that a shard has and the index does not is kept: its name says what it is, and the model asks by name.
            for (name, shard) in &index.weight_map {
                if homes.get(name) != Some(&shard.as_str()) {
                    let reason =
                        format!("{INDEX_FILE} puts it into {shard}, which does not have it");
                    return Err(EngineError::Tensor {
                        name: name.clone(),
                        reason,
                    });
                }
            }
        }
    }
    Ok(weights)
}

/// Reads a small file whole.
///
/// # Errors
/// [`EngineError::File`] when it is missing or unreadable.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, EngineError> {
    std::fs::read(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> EngineError {
    let reason = match error.kind() {
        std::io::ErrorKind::NotFound => "is missing".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    EngineError::File {
        path: path.to_owned(),
        reason,
    }
}

/// A mapped weight file.
struct MappedFile(Mmap);

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl WeightBytes for MappedFile {
    #[cfg(unix)]
    #[expect(
        unsafe_code,
        reason = "the advice is dangerous for memory that was written, and this was not"
    )]
    fn release(&self, range: Range<usize>) {
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the map is of a file and never written, so a page that was let go is read from the file again.
        let advised = unsafe {
            self.0
                .unchecked_advise_range(advice, range.start, range.len())
        };
        // It saves memory only.
        let _ = advised;
    }
}

#[expect(
    unsafe_code,
    reason = "mapping a file is the one way to load weights without copying them"
)]
fn map_file(path: &Path) -> Result<SharedBytes, EngineError> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    // SAFETY: the map is read-only and private to this process's view of a checkpoint file, which nobody writes while it is
    // served: the hub cache only ever renames complete files into place. Who truncates a served file in place gets a SIGBUS,
    // not wrong memory, and who rewrites it gets other weights; both are the operator's act and the same in every loader.
    let map = unsafe { Mmap::map(&file) }.map_err(|error| unreadable(path, &error))?;
    Ok(Arc::new(MappedFile(map)))
}

/// The tensors of one safetensors file, as views of its bytes. `path` is for the errors.
///
/// The views are aligned as the file is: the safetensors libraries pad the header to eight bytes, the format does not ask it.
///
/// # Errors
/// [`EngineError::File`] when the header does not describe the bytes; [`EngineError::Tensor`] for a foreign element type.
pub(super) fn read_tensors(
    owner: &SharedBytes,
    path: &Path,
) -> Result<Vec<(String, HostTensor)>, EngineError> {
    let (data, header) = read_header((**owner).as_ref()).map_err(|reason| EngineError::File {
        path: path.to_owned(),
        reason,
    })?;
    let mut tensors = Vec::new();
    for (
        name,
        TensorInfo {
            dtype,
            shape,
            data_offsets: (start, end),
        },
    ) in header.tensors()
    {
        let dtype = match dtype {
            Dtype::F32 => WeightDtype::F32,
            Dtype::F16 => WeightDtype::F16,
            Dtype::BF16 => WeightDtype::Bf16,
            other => {
                let reason = format!(
                    "has element type {other} in {}: F32, F16 and BF16 are loaded",
                    path.display()
                );
                return Err(EngineError::Tensor { name, reason });
            }
        };
        let range = data.start + start..data.start + end;
        tensors.push((
            name,
            HostTensor {
                dtype,
                shape: shape.clone(),
                owner: owner.clone(),
                range,
            },
        ));
    }
    Ok(tensors)
}

/// Parses the header of a safetensors file and checks it against the file's length. Returns where the tensors lie.
///
/// The library's own `read_metadata` reports a truncated file without a figure and adds lengths from the file unchecked;
/// here only its header type is used, which checks offsets, overlaps and gaps.
fn read_header(bytes: &[u8]) -> Result<(Range<usize>, Metadata), String> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(format!(
            "is not a safetensors file: it has {} bytes",
            bytes.len()
        ));
    };
    let length = u64::from_le_bytes(*prefix);
    let header = usize::try_from(length)
        .ok()
        .and_then(|length| rest.get(..length));
    let header = match header {
        Some(header) if header.len() <= MAX_HEADER_BYTES => header,
        _ => {
            return Err(format!(
                "is not a safetensors file or is truncated: its header would have {length} bytes, the file has {} (limit {MAX_HEADER_BYTES})",
                bytes.len()
            ));
        }
    };
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|error| format!("has an invalid safetensors header: {error}"))?;
    let data = PREFIX_BYTES + header.len()..bytes.len();
    if metadata.data_len() != data.len() {
        let kind = if metadata.data_len() > data.len() {
            "is truncated"
        } else {
            "has bytes that belong to no tensor"
        };
        return Err(format!(
            "{kind}: its header describes {} bytes of tensors, {} follow",
            metadata.data_len(),
            data.len()
        ));
    }
    Ok((data, metadata))
}

#[cfg(test)]
mod tests;
