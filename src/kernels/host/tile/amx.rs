//! bf16 and int8 by AMX: `tdpbf16ps` and `tdpbssd` on tiles of 16 rows of 64 bytes.
//!
//! Up to 32 rows times 32 columns in four accumulators. The intrinsics are not stable, so the tile instructions are written as
//! assembly; the tile registers live from [`configure`] to [`release`], and nothing else in the process uses them.
//!
//! Source: Intel SDM volume 1, chapter "Programming with Intel AMX".

use std::arch::asm;

use super::super::format::{BLOCK_GROUPS, PANEL_COLUMNS};
use super::Pair;

/// Rows of one tile register.
const TILE_ROWS: usize = 16;

/// Bytes of a row of a tile register.
const ROW_BYTES: usize = 64;

/// Bytes from a group of a panel to the next.
const GROUP_BYTES: usize = PANEL_COLUMNS * 4;

/// What `ldtilecfg` reads: palette, then for each tile its bytes a row and its rows.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Makes all eight tiles of this thread whole: sixteen rows of 64 bytes.
///
/// # Safety
/// AMX is present and permitted.
pub(super) unsafe fn configure() {
    let mut configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        rows: [0; 16],
    };
    configuration.row_bytes[..8].fill(ROW_BYTES as u16);
    configuration.rows[..8].fill(TILE_ROWS as u8);
    // SAFETY: the configuration is 64 bytes in the documented layout.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly)) }
}

/// Gives the tiles back.
///
/// # Safety
/// AMX is present.
pub(super) unsafe fn release() {
    // SAFETY: the caller's contract.
    unsafe { asm!("tilerelease", options(nostack, nomem)) }
}

/// One step of sixteen groups: 32 rows in tmm4 and tmm5, 32 columns in tmm6 and tmm7.
macro_rules! whole {
    ($multiply:literal) => {
        concat!(
            "tileloadd tmm4, [{x} + {row}]\n",
            "tileloadd tmm6, [{w} + {group}]\n",
            $multiply,
            " tmm0, tmm4, tmm6\n",
            "tileloadd tmm7, [{w} + {group} + 64]\n",
            $multiply,
            " tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{x} + {row} + 1024]\n",
            $multiply,
            " tmm2, tmm5, tmm6\n",
            $multiply,
            " tmm3, tmm5, tmm7\n",
        )
    };
}

/// The same for sixteen rows at most.
macro_rules! half {
    ($multiply:literal) => {
        concat!(
            "tileloadd tmm4, [{x} + {row}]\n",
            "tileloadd tmm6, [{w} + {group}]\n",
            $multiply,
            " tmm0, tmm4, tmm6\n",
            "tileloadd tmm7, [{w} + {group} + 64]\n",
            $multiply,
            " tmm1, tmm4, tmm7\n",
        )
    };
}

/// A loop of steps over the blocks of a pair, the accumulators zeroed before it.
macro_rules! blocks {
    ($step:expr, $pair:expr, $x:expr) => {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            $step,
            "add {x}, {x_step}",
            "add {w}, 2048",
            "dec {blocks}",
            "jnz 2b",
            x = inout(reg) $x => _,
            w = inout(reg) $pair.panel => _,
            blocks = inout(reg) $pair.blocks => _,
            x_step = in(reg) $pair.height * ROW_BYTES,
            row = in(reg) ROW_BYTES,
            group = in(reg) GROUP_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// Multiplies: int8 with `INT8`, else bf16.
///
/// # Safety
/// The pointers reach as far as `pair` says, `to` has room for 32 rows, and the tiles are configured.
pub(super) unsafe fn multiply<const INT8: bool>(pair: Pair, to: *mut f32) {
    let stride = PANEL_COLUMNS * 4;
    // SAFETY: a tile of rows is `[blocks, 32, 64 bytes]`, so each step reads the two kibibytes it advances by; so does each step
    // of a panel. Stale rows are computed along.
    unsafe {
        let tall = pair.count > TILE_ROWS;
        match (INT8, tall) {
            (false, true) => blocks!(whole!("tdpbf16ps"), pair, pair.rows),
            (false, false) => blocks!(half!("tdpbf16ps"), pair, pair.rows),
            (true, true) => blocks!(whole!("tdpbssd"), pair, pair.rows),
            (true, false) => blocks!(half!("tdpbssd"), pair, pair.rows),
        }
        asm!(
            "tilestored [{to} + {stride}], tmm0",
            "tilestored [{to} + {stride} + 64], tmm1",
            to = in(reg) to, stride = in(reg) stride, options(nostack),
        );
        if tall {
            asm!(
                "tilestored [{to} + {stride}], tmm2",
                "tilestored [{to} + {stride} + 64], tmm3",
                to = in(reg) to.add(TILE_ROWS * PANEL_COLUMNS), stride = in(reg) stride, options(nostack),
            );
        }
    }
    const {
        assert!(
            BLOCK_GROUPS * 4 == ROW_BYTES,
            "a block of a row is a row of a tile"
        )
    }
}
