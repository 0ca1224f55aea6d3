//! Weights as the file has them: a name, a dtype, a shape and a view of mapped bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

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
}

/// Bytes somebody owns (a memory map, a static, a vector) that tensors can share without copying.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

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
