//! Weights as the file has them: a name, a dtype, a shape and a view of mapped bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::f16;

/// Element type of a stored weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightDtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// Brain floating point.
    Bf16,
}

impl WeightDtype {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            WeightDtype::F32 => 4,
            WeightDtype::F16 | WeightDtype::Bf16 => 2,
        }
    }

    /// The numbers little-endian bytes hold, as f32.
    pub(crate) fn values(self, bytes: &[u8]) -> impl Iterator<Item = f32> {
        bytes
            .chunks_exact(self.size_bytes())
            .map(move |bytes| match (self, bytes) {
                (WeightDtype::F16, [low, high]) => f16::from_le_bytes([*low, *high]).to_f32(),
                (WeightDtype::Bf16, [low, high]) => bf16([*low, *high]),
                _ => f32::from_le_bytes(std::array::from_fn(|i| bytes[i])),
            })
    }

    /// Puts those numbers into `to`: bf16, what the published weights are, in a loop of its own, which becomes vector code.
    #[inline(always)]
    pub(crate) fn read(self, bytes: &[u8], to: &mut [f32]) {
        if self == WeightDtype::Bf16 {
            for (to, bytes) in to.iter_mut().zip(bytes.as_chunks().0) {
                *to = bf16(*bytes);
            }
        } else {
            for (to, value) in to.iter_mut().zip(self.values(bytes)) {
                *to = value;
            }
        }
    }
}

#[inline(always)]
fn bf16([low, high]: [u8; 2]) -> f32 {
    f32::from_bits(u32::from_le_bytes([0, 0, low, high]))
}

/// Bytes somebody owns (a memory map, a static, a vector) that tensors can share without copying.
pub trait WeightBytes: AsRef<[u8]> + Send + Sync {
    /// Told that a range will not be read again soon: a map can let go of its pages, and reads them again where it must.
    fn release(&self, _range: Range<usize>) {}
}

impl WeightBytes for Vec<u8> {}
impl WeightBytes for &'static [u8] {}

/// Shared [`WeightBytes`].
pub type SharedBytes = Arc<dyn WeightBytes>;

/// One tensor of a checkpoint: a view into shared bytes, little-endian, row-major, contiguous.
#[derive(Clone)]
pub struct HostTensor {
    /// Element type.
    pub dtype: WeightDtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Who owns the bytes.
    pub owner: SharedBytes,
    /// Where in them the tensor lies; its length is the element count times the element size.
    pub range: Range<usize>,
}

impl HostTensor {
    /// The tensor's bytes.
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }

    /// Says that the bytes will not be read again soon.
    pub fn release(&self) {
        self.owner.release(self.range.clone());
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTensor")
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// All tensors of a checkpoint by name.
pub type WeightMap = BTreeMap<String, HostTensor>;
