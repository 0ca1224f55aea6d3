//! What is handed to the batcher: the inputs of a request, prepared.

use std::time::Instant;

use super::{Cost, Held, Identity, Priority, Reservation};
use crate::model::{Sequence, Tenant};

/// An input, ready to be computed.
#[derive(Debug)]
pub struct Input {
    /// What to compute.
    pub sequence: Sequence,
    /// [`Identity::of`] it.
    pub identity: Identity,
    /// The hold on the memory of its pixels: see [`super::Batcher::hold`].
    pub held: Held,
    /// Whether what it begins with is computed for the input before it: then it costs only the rest.
    pub follows: bool,
}

impl Input {
    /// What computing it takes.
    pub(super) fn cost(&self) -> Cost {
        match self.follows {
            true => Cost::of_rest(&self.sequence),
            false => Cost::of(&self.sequence),
        }
    }
}

/// The inputs of one request, all for one model: they enter the queue together or not at all.
#[derive(Debug)]
pub struct Submission {
    /// What to compute.
    pub inputs: Vec<Input>,
    /// Whose they are.
    pub tenant: Tenant,
    /// The lane the client asked for; `None`: a lone short text is interactive, anything else bulk.
    pub priority: Option<Priority>,
    /// When nobody waits any more.
    pub deadline: Instant,
    /// The place it was given before it was prepared, if it was.
    pub reservation: Option<Reservation>,
}
