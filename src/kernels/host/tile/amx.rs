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

/// Asks for eight lines of the panel, two steps before they are loaded: the core's own prefetching does not follow tile loads.
macro_rules! ahead {
    ($($offset:literal)*) => {
        concat!($("prefetcht0 [{w} + 4096 + ", $offset, "]\n"),*)
    };
}

/// One step of sixteen groups: 32 rows in tmm4 and tmm5, 32 columns in tmm6 and tmm7.
macro_rules! whole {
    ($multiply:literal) => {
        concat!(
            "tileloadd tmm4, [{x} + {row}]\n",
            "tileloadd tmm6, [{w} + {group}]\n",
            $multiply, " tmm0, tmm4, tmm6\n",
            ahead!(0 64 128 192 256 320 384 448),
            ahead!(512 576 640 704 768 832 896 960),
            "tileloadd tmm7, [{w} + {group} + 64]\n",
            $multiply, " tmm1, tmm4, tmm7\n",
            ahead!(1024 1088 1152 1216 1280 1344 1408 1472),
            ahead!(1536 1600 1664 1728 1792 1856 1920 1984),
            "tileloadd tmm5, [{x} + {row} + 1024]\n",
            $multiply, " tmm2, tmm5, tmm6\n",
            "prefetcht1 [{ahead}]\n",
            "prefetcht1 [{ahead} + 64]\n",
            "prefetcht1 [{ahead} + 128]\n",
            "prefetcht1 [{ahead} + 192]\n",
            $multiply, " tmm3, tmm5, tmm7\n",
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

/// A loop of steps over the blocks of a pair.
macro_rules! blocks {
    ($step:expr, $pair:expr, $x:expr) => {
        asm!(
            "2:",
            $step,
            "add {x}, {x_step}",
            "add {w}, 2048",
            "add {ahead}, 256",
            "dec {blocks}",
            "jnz 2b",
            x = inout(reg) $x => _,
            w = inout(reg) $pair.panel => _,
            blocks = inout(reg) $pair.blocks => _,
            ahead = inout(reg) $pair.ahead => _,
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
        let lower = to.add(TILE_ROWS * PANEL_COLUMNS);
        if pair.accumulate {
            asm!(
                "tileloadd tmm0, [{to} + {stride}]",
                "tileloadd tmm1, [{to} + {stride} + 64]",
                "tileloadd tmm2, [{lower} + {stride}]",
                "tileloadd tmm3, [{lower} + {stride} + 64]",
                to = in(reg) to, lower = in(reg) lower, stride = in(reg) stride,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack),
            );
        } else {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack, nomem),
            );
        }
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
                to = in(reg) lower, stride = in(reg) stride, options(nostack),
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
