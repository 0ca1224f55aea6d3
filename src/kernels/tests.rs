//! The host's operations against the plain ones, on shapes nobody chose, and against themselves in other batches.

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

fn rows(seed: u64, rows: usize, width: usize) -> Tensor {
    Tensor::from_vec(noise(seed, rows * width), (rows, width), &Device::Cpu).unwrap()
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

fn hosts() -> Vec<Kernels> {
    Simd::present()
        .into_iter()
        .map(|simd| Kernels::Host {
            precision: Precision::F32,
            simd,
        })
        .collect()
}

fn assert_close(ours: &Tensor, theirs: &Tensor, tolerance: f32) {
    assert_eq!(ours.dims(), theirs.dims());
    let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (ours, theirs) in flat(ours).iter().zip(flat(theirs)) {
        let allowed = tolerance * theirs.abs().max(1.0);
        assert!(
            (ours - theirs).abs() <= allowed,
            "{ours} and {theirs} differ by more than {allowed}"
        );
    }
}

fn linear(kernels: &Kernels, (columns, depth): (usize, usize), dtype: WeightDtype) -> Linear {
    let bias = weight(9, &[columns], dtype);
    Linear {
        weight: kernels
            .matrix(&weight(5, &[columns, depth], dtype), &[columns, depth])
            .unwrap(),
        bias: Some(kernels.vector(&bias, columns).unwrap()),
    }
}

fn norm(kernels: &Kernels, width: usize, seed: u64) -> Norm {
    let vector = |seed| {
        kernels
            .vector_f32(&weight(seed, &[width], WeightDtype::Bf16), width)
            .unwrap()
    };
    Norm {
        weight: vector(seed),
        bias: Some(vector(seed + 1)),
        eps: 1e-6,
    }
}

fn rope_of(seed: u64, tokens: usize, half: usize) -> Rope {
    let angles = (rows(seed, tokens, half) * 3.0).unwrap();
    Rope {
        cos: angles.cos().unwrap(),
        sin: angles.sin().unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn host_linear_equals_plain_for_any_shape(
        n in 1_usize..11, columns in 1_usize..150, depth in 1_usize..90,
        dtype in prop::sample::select(vec![WeightDtype::Bf16, WeightDtype::F32, WeightDtype::F16]),
        activation in prop::sample::select(vec![Activation::None, Activation::GeluTanh, Activation::GeluErf]),
    ) {
        let (x, residual) = (rows(1, n, depth), rows(2, n, columns));
        let p = plain();
        let layer = linear(&p, (columns, depth), dtype);
        let expected = p.linear(&x, &layer, activation).unwrap();
        let added = p.linear_add(&x, &layer, &residual).unwrap();
        for host in hosts() {
            let layer = linear(&host, (columns, depth), dtype);
            assert_close(&host.linear(&x, &layer, activation).unwrap(), &expected, 2e-5);
            assert_close(&host.linear_add(&x, &layer, &residual).unwrap(), &added, 2e-5);
        }
    }

    #[test]
    fn host_gated_mlp_equals_plain_for_any_shape(n in 1_usize..9, inner in 1_usize..140, hidden in 1_usize..70) {
        let (x, residual) = (rows(1, n, hidden), rows(2, n, hidden));
        let mlp = |kernels: &Kernels| GatedMlp {
            gate: kernels.matrix(&weight(3, &[inner, hidden], WeightDtype::Bf16), &[inner, hidden]).unwrap(),
            up: kernels.matrix(&weight(4, &[inner, hidden], WeightDtype::Bf16), &[inner, hidden]).unwrap(),
            down: kernels.matrix(&weight(5, &[hidden, inner], WeightDtype::Bf16), &[hidden, inner]).unwrap(),
        };
        let expected = plain().gated_mlp(&x, &mlp(&plain()), &residual).unwrap();
        for host in hosts() {
            assert_close(&host.gated_mlp(&x, &mlp(&host), &residual).unwrap(), &expected, 2e-5);
        }
    }

    #[test]
    fn host_norms_and_rope_equal_plain_for_any_shape(n in 1_usize..40, heads in 1_usize..5, half in 1_usize..40) {
        let width = heads * 2 * half;
        let x = rows(1, n, width);
        let (p, rope) = (plain(), rope_of(4, n, half));
        for host in hosts() {
            let (wide, head) = (norm(&host, width, 6), norm(&host, 2 * half, 8));
            assert_close(&host.rms_norm(&x, &wide).unwrap(), &p.rms_norm(&x, &wide).unwrap(), 1e-5);
            assert_close(&host.layer_norm(&x, &wide).unwrap(), &p.layer_norm(&x, &wide).unwrap(), 2e-5);
            for norm in [None, Some(&head)] {
                assert_close(&host.rope(&x, norm, &rope).unwrap(), &p.rope(&x, norm, &rope).unwrap(), 1e-5);
            }
        }
    }

    #[test]
    fn host_attention_equals_plain_for_any_packing(
        lengths in prop::collection::vec(1_usize..150, 1..4), kv_heads in 1_usize..3, group in 1_usize..4,
        head_dim in prop::sample::select(vec![16_usize, 24, 32, 64, 72, 128]), causal: bool, pooled: bool,
    ) {
        let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
        let mut cu = vec![0_u32];
        for length in &lengths {
            cu.push(cu[cu.len() - 1] + *length as u32);
        }
        let mut spans = Spans::of(&cu, causal);
        if pooled {
            spans.cu_q = (0..=lengths.len() as u32).collect();
        }
        let (queries, keys) = (*spans.cu_q.last().unwrap() as usize, *cu.last().unwrap() as usize);
        let q = (rows(1, queries, heads.heads * head_dim) * 3.0).unwrap();
        let (k, v) = (rows(2, keys, kv_heads * head_dim), rows(3, keys, kv_heads * head_dim));
        let expected = plain().attention([&q, &k, &v], &spans, heads).unwrap();
        for host in hosts() {
            assert_close(&host.attention([&q, &k, &v], &spans, heads).unwrap(), &expected, 1e-5);
        }
    }

    #[test]
    fn a_row_of_a_linear_layer_is_the_same_bits_in_any_batch(n in 2_usize..40, columns in 1_usize..140, depth in 1_usize..90) {
        let x = rows(1, n, depth);
        for simd in Simd::present() {
            for precision in [Precision::F32, Precision::Bf16] {
                let host = Kernels::Host { precision, simd };
                let layer = linear(&host, (columns, depth), WeightDtype::Bf16);
                let all = host.linear(&x, &layer, Activation::GeluTanh).unwrap().to_vec2::<f32>().unwrap();
                for (row, all) in all.iter().enumerate() {
                    let alone = x.narrow(0, row, 1).unwrap().contiguous().unwrap();
                    let alone = host.linear(&alone, &layer, Activation::GeluTanh).unwrap().to_vec2::<f32>().unwrap();
                    prop_assert_eq!(&alone[0], all);
                }
            }
        }
    }
}

#[test]
fn a_misaligned_weight_is_copied_and_gives_the_same_product() {
    let aligned = weight(5, &[8, 20], WeightDtype::F32);
    let mut bytes = vec![0_u8; 1];
    bytes.extend_from_slice(aligned.bytes());
    let range = 1..bytes.len();
    // Of four starts in a row one at most is aligned; the vector's own start is, so this one is not.
    let loose = HostTensor {
        owner: Arc::new(bytes),
        range,
        ..aligned.clone()
    };
    let x = rows(1, 3, 20);
    let host = Kernels::host(Precision::F32);
    let product = |tensor: &HostTensor| {
        let layer = Linear {
            weight: host.matrix(tensor, &[8, 20]).unwrap(),
            bias: None,
        };
        host.linear(&x, &layer, Activation::None)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap()
    };
    assert_eq!(product(&aligned), product(&loose));
}

#[test]
fn a_weight_of_another_shape_is_refused_with_both_shapes() {
    let host = Kernels::host(Precision::F32);
    let error = host
        .matrix(&weight(1, &[4, 6], WeightDtype::Bf16), &[4, 8])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("[4, 6]") && error.contains("[4, 8]"),
        "{error}"
    );
}

#[test]
fn rows_are_replaced_and_added_where_they_belong() {
    let x = rows(1, 5, 3);
    let with = rows(2, 2, 3);
    let host = Kernels::host(Precision::F32);
    let replaced = host
        .replace_rows(&x, &[1, 4], &with)
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    let (x_rows, with_rows) = (x.to_vec2::<f32>().unwrap(), with.to_vec2::<f32>().unwrap());
    assert_eq!(
        replaced,
        [
            &x_rows[0],
            &with_rows[0],
            &x_rows[2],
            &x_rows[3],
            &with_rows[1]
        ]
        .map(Clone::clone)
    );
    let added = host
        .add_rows(&x, &[1, 4], &with)
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    assert_eq!(added[0], x_rows[0]);
    assert_eq!(added[4][2], x_rows[4][2] + with_rows[1][2]);
}
