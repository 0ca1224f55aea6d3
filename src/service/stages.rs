//! How a stage runs over the inputs of a request. In: what is to be done for each. Out: what came of each, in order.

use futures_util::stream::{self, StreamExt};

use super::{Outcome, ServiceError};

/// Lets the error of one input end the request, or stand in the place of its result.
pub(super) fn settle<T>(outcome: Outcome<T>, partial: bool) -> Result<Outcome<T>, ServiceError> {
    match outcome {
        Err(error) if !partial => Err(error),
        outcome => Ok(outcome),
    }
}

/// Runs a stage over all inputs, `width` at a time. The first error in the order of the inputs ends it, unless `partial`; then what
/// has not begun does not begin.
pub(super) async fn in_order<T>(
    inputs: impl Iterator<Item = impl Future<Output = Outcome<T>>>,
    width: usize,
    partial: bool,
) -> Result<Vec<Outcome<T>>, ServiceError> {
    let mut running = stream::iter(inputs).buffered(width.max(1));
    let mut outcomes = Vec::new();
    while let Some(outcome) = running.next().await {
        outcomes.push(settle(outcome, partial)?);
    }
    Ok(outcomes)
}
