//! The linear layers by themselves, beside what the cores can do: each shape of Qwen3-VL-Embedding-2B, random weights.
//!
//! `cargo bench --bench linears`; `MANIFOLD_BENCH_DTYPE` is `f32`, `bf16` (as without it) or `int8`, `RAYON_NUM_THREADS` the threads.
//! First the peaks: a loop that stays in registers on as many threads, for each kind of multiply-add the CPU has. Then every layer, many
//! rows at once, with the packing of its rows and its write-back: the median of its runs and the fastest, and the share of the highest
//! peak for its number format. The loop runs in turn with it, for the clock follows what the cores are doing, and medians are compared
//! with medians. AMX has no loop here, so there a share can be above 100 %.
#![expect(
    unsafe_code,
    reason = "the peaks are those of instructions, which only intrinsics name"
)]

use std::sync::Arc;
use std::time::Instant;

use manifold::kernels::{
    Activation, Activations, HostTensor, Kernels, Precision, Sensitivity, WeightDtype, keep_awake,
};

/// Runs of a layer, and of the loops beside it.
const RUNS: usize = 15;

/// Rows of the text layers (32 texts of 128 tokens) and of the vision tower's (a picture of 1024 x 768).
const ROWS: [usize; 2] = [4096, 3072];

/// Name, which rows, inputs, outputs; those of gate and up together.
const LAYERS: [(&str, usize, usize, usize); 8] = [
    ("text q, k, v", 0, 2048, 4096),
    ("text o", 0, 2048, 2048),
    ("text gate, up", 0, 2048, 12288),
    ("text down", 0, 6144, 2048),
    ("vision q, k, v", 1, 1024, 3072),
    ("vision o", 1, 1024, 1024),
    ("vision fc1", 1, 1024, 4096),
    ("vision fc2", 1, 4096, 1024),
];

/// Loops over multiply-adds on registers.
#[cfg(target_arch = "x86_64")]
mod peaks {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Independent sums: more than the latency of a multiply-add times the ports that take one.
    const SUMS: usize = 12;

    /// Steps of a loop: some ten milliseconds.
    const STEPS: usize = 2_000_000;

    /// A kind of multiply-add: its name, whether it multiplies int8, the operations of one call of `run`, and that call.
    pub(super) struct Peak {
        pub(super) name: &'static str,
        pub(super) int8: bool,
        pub(super) operations: f64,
        pub(super) run: unsafe fn(),
    }

    const fn peak(name: &'static str, int8: bool, each: usize, run: unsafe fn()) -> Peak {
        let operations = (each * SUMS * STEPS) as f64;
        Peak {
            name,
            int8,
            operations,
            run,
        }
    }

    /// Those this CPU has.
    pub(super) fn present() -> Vec<Peak> {
        let mut present = Vec::new();
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            present.push(peak("f32, AVX2", false, 16, fma_256));
            present.push(peak("int8, AVX2", true, 64, maddubs_256));
        }
        if is_x86_feature_detected!("avx512f") {
            present.push(peak("f32, AVX-512", false, 32, fma_512));
        }
        if is_x86_feature_detected!("avx512vnni") {
            present.push(peak("int8, VNNI", true, 128, dot_int8));
        }
        if is_x86_feature_detected!("avx512bf16") {
            present.push(peak("bf16, AVX-512", false, 64, dot_bf16));
        }
        present
    }

    /// A loop of `$next` on each of the sums, beginning with the same `$operands`.
    macro_rules! register_loop {
        ($name:ident, $features:literal, $zero:expr, ($($operand:ident = $value:expr),+), $sum:ident => $next:expr) => {
            /// # Safety
            /// The features it names.
            #[target_feature(enable = $features)]
            unsafe fn $name() {
                $(let $operand = $value;)+
                let mut sums = [$zero; SUMS];
                for _ in 0..STEPS {
                    for sum in &mut sums {
                        let $sum = *sum;
                        *sum = $next;
                    }
                }
                black_box(sums);
            }
        };
    }

    register_loop!(
        fma_256, "avx2,fma", _mm256_setzero_ps(),
        (a = _mm256_set1_ps(black_box(0.5)), b = _mm256_set1_ps(black_box(0.25))),
        sum => _mm256_fmadd_ps(a, sum, b)
    );
    register_loop!(
        maddubs_256, "avx2", _mm256_setzero_si256(),
        (a = _mm256_set1_epi8(black_box(3)), ones = _mm256_set1_epi16(black_box(1))),
        sum => _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, sum), ones))
    );
    register_loop!(
        fma_512, "avx512f", _mm512_setzero_ps(),
        (a = _mm512_set1_ps(black_box(0.5)), b = _mm512_set1_ps(black_box(0.25))),
        sum => _mm512_fmadd_ps(a, sum, b)
    );
    register_loop!(
        dot_int8, "avx512f,avx512vnni", _mm512_setzero_si512(),
        (a = _mm512_set1_epi8(black_box(3))),
        sum => _mm512_dpbusd_epi32(sum, a, a)
    );
    register_loop!(
        dot_bf16, "avx512f,avx512bf16", _mm512_setzero_ps(),
        // SAFETY: the same 64 bytes, whatever the elements are called: 0.5 in bf16, 32 times.
        (a = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(black_box(0x3f00_3f00))) }),
        sum => _mm512_dpbf16_ps(sum, a, a)
    );
}

/// Other CPUs show no peak.
#[cfg(not(target_arch = "x86_64"))]
mod peaks {
    pub(super) struct Peak {
        pub(super) name: &'static str,
        pub(super) int8: bool,
        pub(super) operations: f64,
        pub(super) run: unsafe fn(),
    }

    pub(super) fn present() -> Vec<Peak> {
        Vec::new()
    }
}

/// Operations per second of a loop on every thread of the pool at once.
fn rate(peak: &peaks::Peak) -> f64 {
    let started = Instant::now();
    // SAFETY: `present` found the features.
    rayon::broadcast(|_| unsafe { (peak.run)() });
    let threads = rayon::current_num_threads() as f64;
    threads * peak.operations / started.elapsed().as_secs_f64()
}

/// `[outputs, depth]` random bf16 numbers of either sign, of 1/64 to 1/32.
fn weight(outputs: usize, depth: usize) -> HostTensor {
    let mut state = 0x9e37_79b9_u32;
    let bytes: Vec<u8> = (0..outputs * depth)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            // The sign, the exponent of 1/64, and seven random bits.
            (0x3c80 | (state >> 16) as u16 & 0x807f).to_le_bytes()
        })
        .collect();
    HostTensor {
        dtype: WeightDtype::Bf16,
        shape: vec![outputs, depth],
        range: 0..bytes.len(),
        owner: Arc::new(bytes),
    }
}

/// The median and the highest.
fn ranked(mut rates: Vec<f64>) -> (f64, f64) {
    rates.sort_by(f64::total_cmp);
    let median = rates.get(rates.len() / 2).copied();
    let highest = rates.last().copied();
    (median.unwrap_or(f64::NAN), highest.unwrap_or(f64::NAN))
}

fn main() {
    let precision = match std::env::var("MANIFOLD_BENCH_DTYPE").as_deref() {
        Ok("f32") => Precision::F32,
        Ok("int8") => Precision::Int8,
        _ => Precision::Bf16,
    };
    let kernels = Kernels::host(precision);
    println!("{kernels:?}, {} threads", rayon::current_num_threads());
    let peaks = peaks::present();
    for peak in &peaks {
        println!("peak/{:<20} {:>8.0} G/s", peak.name, rate(peak) / 1e9);
    }
    let of_format = peaks
        .iter()
        .filter(|peak| peak.int8 == (precision == Precision::Int8));
    let best = |peak: &peaks::Peak| ranked((0..RUNS).map(|_| rate(peak)).collect()).1;
    let fastest = of_format
        .map(|peak| (best(peak), peak))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, peak)| peak);
    for (name, rows, depth, outputs) in LAYERS {
        let rows = ROWS[rows];
        let linear = kernels
            .linear(&[weight(outputs, depth)], Sensitivity::Ordinary)
            .expect("memory for a layer");
        let x: Vec<f32> = (0..rows * depth).map(|i| (i as f32 * 0.37).sin()).collect();
        let x = kernels.rows(&x, depth).expect("rows");
        // In a thread of the pool and with the others awake, as the engine runs it.
        let apply = || -> Activations {
            let apply = || kernels.apply(&x, &linear, Activation::None);
            rayon::scope(|_| keep_awake(apply)).expect("a product")
        };
        apply();
        let operations = 2.0 * (rows * depth * outputs) as f64;
        let (rates, peaks) = (0..RUNS)
            .map(|_| {
                let started = Instant::now();
                apply();
                let ours = operations / started.elapsed().as_secs_f64();
                (ours, fastest.map_or(f64::NAN, rate))
            })
            .unzip();
        let ((median, highest), (median_peak, highest_peak)) = (ranked(rates), ranked(peaks));
        println!(
            "linears/{name:<16} {rows} x {depth} x {outputs:<6} {:>6.0} G/s, {:>4.1} % of {:.0}; at best {:.0}, {:.1} % of {:.0}",
            median / 1e9,
            100.0 * median / median_peak,
            median_peak / 1e9,
            highest / 1e9,
            100.0 * highest / highest_peak,
            highest_peak / 1e9,
        );
    }
}
