//! Rows of numbers between the operations: scratch memory of the host, or a tensor on a device.

use candle_core::{Device, Result, Tensor, bail};

use super::host::HostRows;

/// `[rows, width]`, f32 on the host, in the model's number format on a device.
#[derive(Debug, Clone)]
pub struct Activations(pub(super) Place);

/// Where activations are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In memory that is used again when they are dropped.
    Host(HostRows),
    /// On a candle device.
    Device(Tensor),
}

impl Activations {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match &self.0 {
            Place::Host(rows) => rows.rows,
            Place::Device(tensor) => tensor.dims()[0],
        }
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        match &self.0 {
            Place::Host(rows) => rows.width,
            Place::Device(tensor) => tensor.dims()[1],
        }
    }

    /// The same numbers, `joined` rows in one.
    ///
    /// # Shapes
    /// `[rows, width]` -> `[rows / joined, joined * width]`.
    ///
    /// # Errors
    /// When `joined` does not divide the rows.
    pub fn join_rows(self, joined: usize) -> Result<Self> {
        let (rows, width) = (self.rows(), self.width());
        if !rows.is_multiple_of(joined) {
            bail!("{rows} rows cannot be joined by {joined}")
        }
        let shape = (rows / joined, width * joined);
        Ok(Activations(match self.0 {
            Place::Host(mut data) => {
                (data.rows, data.width) = shape;
                Place::Host(data)
            }
            Place::Device(tensor) => Place::Device(tensor.reshape(shape)?),
        }))
    }

    /// A copy as a tensor, on the CPU for activations of the host.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match &self.0 {
            Place::Host(rows) => {
                Tensor::from_slice(rows.data(), (rows.rows, rows.width), &Device::Cpu)
            }
            Place::Device(tensor) => Ok(tensor.clone()),
        }
    }

    pub(super) fn host(&self) -> Result<&HostRows> {
        match &self.0 {
            Place::Host(rows) => Ok(rows),
            Place::Device(_) => bail!("a device tensor reached a host operation"),
        }
    }

    pub(super) fn into_host(self) -> Result<HostRows> {
        match self.0 {
            Place::Host(rows) => Ok(rows),
            Place::Device(_) => bail!("a device tensor reached a host operation"),
        }
    }

    pub(super) fn device(&self) -> Result<&Tensor> {
        match &self.0 {
            Place::Device(tensor) => Ok(tensor),
            Place::Host(_) => bail!("activations of the host reached a device operation"),
        }
    }
}

impl From<Tensor> for Activations {
    fn from(tensor: Tensor) -> Self {
        Activations(Place::Device(tensor))
    }
}

impl From<HostRows> for Activations {
    fn from(rows: HostRows) -> Self {
        Activations(Place::Host(rows))
    }
}
