//! The encoder alone, in this process: what a server of it is measured by. In: token ids. Out: how many are encoded in which time.

use std::time::{Duration, Instant};

use manifold::engine::{Checkpoint, CheckpointSource};
use manifold::kernels::{Kernels, Precision, keep_awake};
use manifold::model::{PackedBatch, Qwen3VlEncoder, Sequence, Task};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::Options;

pub(crate) struct Bare {
    encoder: Qwen3VlEncoder,
    /// All in one batch, and in two.
    batches: [Vec<PackedBatch>; 2],
    pool: ThreadPool,
}

/// How many sequences, and the time they took.
pub(crate) type Encoded = (usize, Duration);

impl Bare {
    /// Loads the server's model in the server's number format.
    pub(crate) fn load(
        options: &Options,
        dtype: &str,
        inputs: impl Iterator<Item = Vec<u32>>,
    ) -> Self {
        let source = match options.text("model") {
            Some(directory) => CheckpointSource::Directory(directory.into()),
            None => CheckpointSource::Embedded,
        };
        let precision = match dtype {
            "bf16" => Precision::Bf16,
            "int8" => Precision::Int8,
            _ => Precision::F32,
        };
        let checkpoint = Checkpoint::open(&source).expect("a checkpoint");
        let config = checkpoint.model_config().expect("a configuration");
        let kernels = Kernels::host(precision);
        let encoder = Qwen3VlEncoder::load(&config, &checkpoint.weights, kernels);
        let sequences: Vec<Sequence> = inputs.map(text).collect();
        // As the server: none named is one for each core.
        let threads = options.number("threads", 0.0) as usize;
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let halves = sequences.chunks(sequences.len().div_ceil(2));
        Bare {
            encoder: encoder.expect("weights that fit"),
            batches: [
                vec![PackedBatch::pack(&sequences)],
                halves.map(PackedBatch::pack).collect(),
            ],
            pool: pool.expect("threads"),
        }
    }

    /// Encodes all again and again, once at least and for so long together: in one batch, and in two.
    pub(crate) fn encode(&self, lasting: Duration) -> [Encoded; 2] {
        let each = lasting / 2;
        self.batches
            .each_ref()
            .map(|batches| self.encode_as(batches, each))
    }

    fn encode_as(&self, batches: &[PackedBatch], lasting: Duration) -> Encoded {
        let began = Instant::now();
        let mut sequences = 0;
        while sequences == 0 || began.elapsed() < lasting {
            for batch in batches {
                // In a thread of the pool and with the others awake, as the engine runs it.
                let rows = self
                    .pool
                    .install(|| keep_awake(|| self.encoder.forward(batch)));
                let rows = rows.and_then(|rows| rows.to_vec2::<f32>());
                sequences += rows.expect("a forward pass").len();
            }
        }
        (sequences, began.elapsed())
    }
}

fn text(input_ids: Vec<u32>) -> Sequence {
    let positions: Vec<u32> = (0..input_ids.len() as u32).collect();
    Sequence {
        input_ids,
        position_ids: [positions.clone(), positions.clone(), positions],
        media: Vec::new(),
        vision_rows: Vec::new(),
        prefix_tokens: 0,
        task: Task::Embed,
    }
}
