//! M-RoPE positions: where each token stands in time, height and width.
//!
//! # Source
//! `get_rope_index`, transformers 4.57 `models/qwen3_vl`.

use crate::model::GridThw;

/// The three positions of every token.
pub(super) struct Positions {
    /// Temporal, height, width; each `[tokens]`.
    pub(super) axes: [Vec<u32>; 3],
    next: u32,
}

impl Positions {
    /// Positions of `tokens` tokens, of which `spans` (first token, grid of one frame) are vision tokens.
    ///
    /// Text counts up on all axes together. A span keeps its time and spreads over rows and columns of merged patches; what follows
    /// goes on after its longer side, not after its number of tokens.
    pub(super) fn of(tokens: usize, spans: &[(usize, GridThw)]) -> Self {
        let mut positions = Positions {
            axes: std::array::from_fn(|_| Vec::with_capacity(tokens)),
            next: 0,
        };
        for &(start, grid) in spans {
            positions.text(start);
            positions.span(grid);
        }
        positions.text(tokens);
        positions
    }

    /// Counts up to the token `end`.
    fn text(&mut self, end: usize) {
        let count = end.saturating_sub(self.axes[0].len()) as u32;
        for axis in &mut self.axes {
            axis.extend(self.next..self.next + count);
        }
        self.next += count;
    }

    fn span(&mut self, grid: GridThw) {
        let (rows, columns) = (grid.h / 2, grid.w / 2);
        for row in 0..rows {
            for column in 0..columns {
                self.axes[0].push(self.next);
                self.axes[1].push(self.next + row);
                self.axes[2].push(self.next + column);
            }
        }
        self.next += rows.max(columns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_after_a_picture_goes_on_after_its_longer_side() {
        let grid = GridThw { t: 1, h: 4, w: 6 };
        let [time, height, width] = Positions::of(9, &[(2, grid)]).axes;
        assert_eq!(time, [0, 1, 2, 2, 2, 2, 2, 2, 5]);
        assert_eq!(height, [0, 1, 2, 2, 2, 3, 3, 3, 5]);
        assert_eq!(width, [0, 1, 2, 3, 4, 2, 3, 4, 5]);
    }
}
