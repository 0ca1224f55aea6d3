//! The few heavy operations the model is made of.

pub mod weight;

pub use weight::{HostTensor, WeightDtype, WeightMap};
