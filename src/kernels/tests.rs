//! The host's operations against the plain ones, on shapes nobody chose, and against themselves in other batches.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use std::sync::Arc;

use super::*;

/// Numbers in -1..1 from a seed, not smooth in the index.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// `[rows, width]` of noise, where `kernels` compute.
fn rows(kernels: &Kernels, seed: u64, (rows, width): (usize, usize)) -> Activations {
    kernels.rows(&noise(seed, rows * width), width).unwrap()
}

/// A weight of bf16-representable values, so that every precision stores it exactly.
fn weight(seed: u64, shape: &[usize], dtype: WeightDtype) -> HostTensor {
    let values = noise(seed, shape.iter().product());
    let bf16 = values
        .iter()
        .map(|&value| half::bf16::from_f32(value * 0.3));
    let bytes: Vec<u8> = match dtype {
        WeightDtype::F32 => bf16
            .flat_map(|value| value.to_f32().to_le_bytes())
            .collect(),
        WeightDtype::Bf16 => bf16.flat_map(|value| value.to_le_bytes()).collect(),
        WeightDtype::F16 => bf16
            .flat_map(|value| half::f16::from_f32(value.to_f32()).to_le_bytes())
            .collect(),
    };
    let range = 0..bytes.len();
    HostTensor {
        dtype,
        shape: shape.to_vec(),
        owner: Arc::new(bytes),
        range,
    }
}

fn plain() -> Kernels {
    Kernels::Candle {
        device: Device::Cpu,
        dtype: DType::F32,
    }
}

fn hosts(precision: Precision) -> impl Iterator<Item = Kernels> {
    Simd::present()
        .into_iter()
        .map(move |simd| Kernels::Host { precision, simd })
}

fn flat(x: &Activations) -> Vec<f32> {
    x.to_tensor()
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap()
}

/// Asserts that no number differs by more than `tolerance`, relative to the larger of 1 and the number.
fn assert_close(kernels: &Kernels, ours: &Activations, theirs: &Activations, tolerance: f32) {
    assert_eq!((ours.rows(), ours.width()), (theirs.rows(), theirs.width()));
    for (ours, theirs) in flat(ours).iter().zip(flat(theirs)) {
        let allowed = tolerance * theirs.abs().max(1.0);
        assert!(
            (ours - theirs).abs() <= allowed,
            "{kernels:?}: {ours} and {theirs} differ by more than {allowed}"
        );
    }
}

fn linear(kernels: &Kernels, shape: (usize, usize), dtype: WeightDtype) -> Linear {
    let (columns, depth) = shape;
    let bias = kernels
        .vector(&weight(9, &[columns], dtype), columns)
        .unwrap();
    // Two tensors, so that stacking is tested along.
    let (first, second) = (columns / 2, columns - columns / 2);
    let tensors: Vec<HostTensor> = [(5, first), (6, second)]
        .into_iter()
        .filter(|(_, columns)| *columns > 0)
        .map(|(seed, columns)| weight(seed, &[columns, depth], dtype))
        .collect();
    kernels
        .linear(&tensors, Sensitivity::Ordinary)
        .unwrap()
        .with_bias(bias)
}

fn gated(kernels: &Kernels, hidden: usize, inner: usize) -> GatedMlp {
    let [gate, up] = [3, 4].map(|seed| weight(seed, &[inner, hidden], WeightDtype::Bf16));
    let down = weight(5, &[hidden, inner], WeightDtype::Bf16);
    kernels
        .gated([&gate, &up], &down, Sensitivity::Ordinary)
        .unwrap()
}

fn norm(kernels: &Kernels, width: usize, seed: u64, layer: bool) -> Norm {
    let vector = |seed| {
        kernels
            .vector_f32(&weight(seed, &[width], WeightDtype::Bf16), width)
            .unwrap()
    };
    Norm {
        weight: vector(seed),
        bias: layer.then(|| vector(seed + 1)),
        eps: 1e-6,
    }
}

fn rope_of(seed: u64, tokens: usize, half: usize) -> Rope {
    let angles = Tensor::from_vec(noise(seed, tokens * half), (tokens, half), &Device::Cpu);
    let angles = (angles.unwrap() * 3.0).unwrap();
    Rope {
        cos: angles.cos().unwrap(),
        sin: angles.sin().unwrap(),
    }
}

/// How far a precision may be from f32, where inputs are about 1 and sums are of `depth` products.
fn tolerance(precision: Precision, depth: usize) -> f32 {
    let rounding = match precision {
        Precision::F32 => return 2e-5,
        // Half a unit in the eighth bit of each input, the weights being exact, and they add up like steps of a random walk.
        Precision::Bf16 => 1.0 / 512.0,
        // Half a unit of 127 of each side.
        Precision::Int8 => 1.5 / 254.0,
    };
    2.0 * rounding * (depth as f32).sqrt().max(1.0)
}

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn host_linear_equals_plain_for_any_shape(
        n in 1_usize..40, columns in 1_usize..150, depth in 1_usize..200,
        dtype in prop::sample::select(vec![WeightDtype::Bf16, WeightDtype::F32, WeightDtype::F16]),
        activation in prop::sample::select(vec![Activation::None, Activation::GeluTanh, Activation::GeluErf]),
        precision in prop::sample::select(PRECISIONS.to_vec()),
    ) {
        let p = plain();
        let expect = linear(&p, (columns, depth), dtype);
        let (x, residual) = (rows(&p, 1, (n, depth)), rows(&p, 2, (n, columns)));
        let expected = p.apply(&x, &expect, activation).unwrap();
        let added = p.apply_add(&x, &expect, residual).unwrap();
        for host in hosts(precision) {
            let layer = linear(&host, (columns, depth), dtype);
            let (x, residual) = (rows(&host, 1, (n, depth)), rows(&host, 2, (n, columns)));
            let close = tolerance(precision, depth);
            assert_close(&host, &host.apply(&x, &layer, activation).unwrap(), &expected, close);
            assert_close(&host, &host.apply_add(&x, &layer, residual).unwrap(), &added, close);
        }
    }

    #[test]
    fn host_mlps_equal_plain_for_any_shape(
        n in 1_usize..40, inner in 1_usize..140, hidden in 1_usize..70,
        precision in prop::sample::select(PRECISIONS.to_vec()),
    ) {
        let run = |kernels: &Kernels| {
            let x = rows(kernels, 1, (n, hidden));
            let (layer_norm, rms_norm) = (norm(kernels, hidden, 6, true), norm(kernels, hidden, 6, false));
            let fc1 = linear(kernels, (inner, hidden), WeightDtype::Bf16);
            let fc2 = linear(kernels, (hidden, inner), WeightDtype::Bf16);
            let gated = kernels.gated_mlp(x.clone(), &rms_norm, &gated(kernels, hidden, inner)).unwrap();
            [kernels.mlp(x, &layer_norm, [&fc1, &fc2], Activation::GeluTanh).unwrap(), gated]
        };
        let expected = run(&plain());
        for host in hosts(precision) {
            for (ours, expected) in run(&host).iter().zip(&expected) {
                assert_close(&host, ours, expected, tolerance(precision, inner + hidden));
            }
        }
    }

    #[test]
    fn host_norms_and_rotations_equal_plain_for_any_shape(n in 1_usize..40, heads in 1_usize..5, half in 1_usize..40) {
        let width = heads * 2 * half;
        let rope = rope_of(4, n, half);
        let run = |kernels: &Kernels| {
            let x = rows(kernels, 1, (n, width + 3));
            let head = norm(kernels, 2 * half, 8, false);
            // The first head is only rotated, the last three columns are nobody's.
            let ranges = [
                HeadRange { columns: 0..2 * half, norm: None },
                HeadRange { columns: 2 * half..width, norm: Some(&head) },
            ];
            let whole = rows(kernels, 1, (n, width));
            [
                kernels.norm(&whole, &norm(kernels, width, 6, false)).unwrap(),
                kernels.norm(&whole, &norm(kernels, width, 6, true)).unwrap(),
                kernels.rotate(x, &ranges[..if heads > 1 { 2 } else { 1 }], &rope).unwrap(),
            ]
        };
        let expected = run(&plain());
        for host in hosts(Precision::F32) {
            for (ours, expected) in run(&host).iter().zip(&expected) {
                assert_close(&host, ours, expected, 2e-5);
            }
        }
    }

    #[test]
    fn host_attention_equals_plain_for_any_packing(
        lengths in prop::collection::vec((1_usize..300, 0_usize..40), 1..4), kv_heads in 1_usize..3, group in 1_usize..4,
        head_dim in prop::sample::select(vec![16_usize, 24, 32, 64, 72, 128]), causal: bool, pooled: bool,
        precision in prop::sample::select(vec![Precision::F32, Precision::Bf16]),
    ) {
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
        let mut cu = vec![0_u32];
        for (length, _) in &lengths {
            cu.push(cu[cu.len() - 1] + *length as u32);
        }
        let mut spans = Spans::of(&cu, causal);
        if pooled {
            spans.cu_q = (0..=lengths.len() as u32).collect();
        }
        let (queries, keys) = (*spans.cu_q.last().unwrap() as usize, *cu.last().unwrap() as usize);
        let run = |kernels: &Kernels| {
            let q = rows(kernels, 1, (queries, heads.heads * head_dim));
            let kv = rows(kernels, 2, (keys, 2 * kv_heads * head_dim));
            let pasts: Vec<Option<Activations>> = lengths
                .iter()
                .map(|(_, past)| (*past > 0).then(|| rows(kernels, 3, (*past, 2 * kv_heads * head_dim))))
                .collect();
            let pasts: Vec<Option<&Activations>> = pasts.iter().map(Option::as_ref).collect();
            let projections = Projections { q: (&q, 0), k: (&kv, 0), v: (&kv, kv_heads * head_dim) };
            kernels.attention(projections, &pasts, &spans, heads).unwrap()
        };
        let expected = run(&plain());
        // In bf16 scores of up to head_dim are off by their 512th part, and probabilities by as much as the scores.
        let close = if precision == Precision::F32 { 2e-5 } else { 2e-2 };
        for host in hosts(precision) {
            assert_close(&host, &run(&host), &expected, close);
        }
    }

    #[test]
    fn a_row_is_the_same_bits_in_any_batch_and_on_any_number_of_threads(
        n in 2_usize..80, columns in 1_usize..140, depth in 1_usize..200,
        precision in prop::sample::select(PRECISIONS.to_vec()), threads in 1_usize..4,
    ) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for host in hosts(precision) {
            let x = rows(&host, 1, (n, depth));
            let layer = linear(&host, (columns, depth), WeightDtype::Bf16);
            let all = flat(&pool.install(|| host.apply(&x, &layer, Activation::GeluTanh)).unwrap());
            for (row, all) in all.chunks(columns).enumerate() {
                let alone = host.gather_rows(&x, &[row as u32]).unwrap();
                let alone = flat(&host.apply(&alone, &layer, Activation::GeluTanh).unwrap());
                prop_assert_eq!(&alone, all, "{:?}", &host);
            }
        }
    }

    #[test]
    fn attention_with_a_past_is_the_bits_of_attention_over_everything(
        past in 1_usize..300, own in 1_usize..300, other in 1_usize..50, precision in prop::sample::select(PRECISIONS.to_vec()),
    ) {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim: 32 };
        for host in hosts(precision) {
            let all = past + own;
            let (q, kv) = (rows(&host, 1, (all, 128)), rows(&host, 2, (all, 128)));
            let attend = |q: &Activations, kv: &Activations, past: &[Option<&Activations>], cu: &[u32]| {
                let projections = Projections { q: (q, 0), k: (kv, 0), v: (kv, 64) };
                flat(&host.attention(projections, past, &Spans::of(cu, true), heads).unwrap())
            };
            let whole = attend(&q, &kv, &[], &[0, all as u32]);
            let ids = |range: Range<usize>| range.map(|i| i as u32).collect::<Vec<_>>();
            let before = host.gather_rows(&kv, &ids(0..past)).unwrap();
            // After a sequence that has no past, so that rows and sequences do not coincide.
            let rest: Vec<u32> = ids(0..other).into_iter().map(|i| i % all as u32).chain(ids(past..all)).collect();
            let (q, kv) = (host.gather_rows(&q, &rest).unwrap(), host.gather_rows(&kv, &rest).unwrap());
            let cu = [0, other as u32, (other + own) as u32];
            let reused = attend(&q, &kv, &[None, Some(&before)], &cu);
            prop_assert_eq!(&reused[other * 128..], &whole[past * 128..], "{:?}", &host);
        }
    }
}

/// Few rows that panels pass by, many whose panels are widened first, and depths that are cut in pieces: each by another loop.
#[test]
fn few_and_many_rows_and_deep_layers_equal_plain_and_are_the_bits_of_each_row_alone() {
    let p = plain();
    for (n, depth) in [(30, 333), (30, 6500), (130, 333), (130, 6500)] {
        let shape = (70, depth);
        let expect = linear(&p, shape, WeightDtype::Bf16);
        let expected = p.apply(&rows(&p, 1, (n, depth)), &expect, Activation::None);
        let expected = expected.unwrap();
        for host in PRECISIONS.into_iter().flat_map(hosts) {
            let Kernels::Host { precision, .. } = host else {
                unreachable!("hosts only")
            };
            let (x, layer) = (
                rows(&host, 1, (n, depth)),
                linear(&host, shape, WeightDtype::Bf16),
            );
            let all = host.apply(&x, &layer, Activation::None).unwrap();
            // Sums on the way are as long as a random walk, and rounded in another order.
            let close = tolerance(precision, depth).max(2e-6 * (depth as f32).sqrt());
            assert_close(&host, &all, &expected, close);
            for row in [0, n / 2, n - 1] {
                let alone = host.gather_rows(&x, &[row as u32]).unwrap();
                let alone = flat(&host.apply(&alone, &layer, Activation::None).unwrap());
                let columns = row * shape.0..(row + 1) * shape.0;
                assert_eq!(
                    alone,
                    flat(&all)[columns],
                    "{host:?}, {n} x {depth}, row {row}"
                );
            }
        }
    }
}

#[test]
fn int8_is_the_same_number_on_every_instruction_set() {
    let products: Vec<Vec<f32>> = hosts(Precision::Int8)
        .map(|host| {
            let layer = linear(&host, (70, 333), WeightDtype::Bf16);
            flat(
                &host
                    .apply(&rows(&host, 1, (45, 333)), &layer, Activation::None)
                    .unwrap(),
            )
        })
        .collect();
    for other in &products[1..] {
        assert_eq!(other, &products[0]);
    }
}

#[test]
fn a_weight_of_another_shape_is_refused_with_both_shapes() {
    let tensor = weight(1, &[4, 6], WeightDtype::Bf16);
    let error = check_shape(&tensor, &[4, 8]).unwrap_err().to_string();
    assert!(
        error.contains("[4, 6]") && error.contains("[4, 8]"),
        "{error}"
    );
}

#[test]
fn a_misaligned_weight_gives_the_same_product() {
    let aligned = weight(5, &[8, 20], WeightDtype::F32);
    let mut bytes = vec![0_u8; 1];
    bytes.extend_from_slice(aligned.bytes());
    let range = 1..bytes.len();
    let loose = HostTensor {
        owner: Arc::new(bytes),
        range,
        ..aligned.clone()
    };
    let host = Kernels::host(Precision::F32);
    let product = |tensor: &HostTensor| {
        let layer = host.linear(std::slice::from_ref(tensor), Sensitivity::Ordinary);
        flat(
            &host
                .apply(&rows(&host, 1, (3, 20)), &layer.unwrap(), Activation::None)
                .unwrap(),
        )
    };
    assert_eq!(product(&aligned), product(&loose));
}

#[test]
fn rows_are_replaced_and_added_where_they_belong() {
    for kernels in [plain(), Kernels::host(Precision::F32)] {
        let (x, with) = (rows(&kernels, 1, (5, 3)), rows(&kernels, 2, (2, 3)));
        let (before, new) = (flat(&x), flat(&with));
        let replaced = flat(&kernels.replace_rows(x.clone(), &[1, 4], &with).unwrap());
        let expected = [&before[..3], &new[..3], &before[6..12], &new[3..]].concat();
        assert_eq!(replaced, expected);
        let added = flat(&kernels.add_rows(x, &[1, 4], &with).unwrap());
        assert_eq!(added[..3], before[..3]);
        assert_eq!(added[14], before[14] + new[5]);
    }
}

#[test]
fn threads_kept_awake_do_the_work_and_are_let_go_also_after_a_panic() {
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let sum = || {
            use rayon::prelude::*;
            (0..1000_usize)
                .into_par_iter()
                .with_max_len(1)
                .map(|i| i * i)
                .sum::<usize>()
        };
        // Often, one after the other: threads that still look for work find a part of it before they are told to stay awake.
        for _ in 0..2000 {
            assert_eq!(pool.install(|| keep_awake(sum)), 332_833_500);
        }
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.install(|| keep_awake(|| panic!("a pass that fails")));
        }));
        assert!(panicked.is_err());
        assert_eq!(pool.install(|| keep_awake(sum)), 332_833_500);
    }
}
