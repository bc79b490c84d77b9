//! Steps of every bucket on the emulator, with graphs and without: the same bits, in the KV cache too.

use std::path::Path;

use half::bf16;

use super::super::CudaOps;
use super::super::attention::Records;
use super::super::device::Order;
use super::super::tests::emulator;
use super::*;
use crate::kv::BLOCK_TOKENS;
use crate::model::decoder::Decoder;
use crate::model::ops::{KvDtype, Ops, Span};
use crate::model::source;
use crate::model::spec::Spec;

const NUM_BLOCKS: usize = 40;
/// More than the models say, so that contexts have several splits.
const MAX_POSITIONS: usize = 2100;

/// Numbers that look random (the generator is Steele and Vigna's splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % end as u64) as usize
    }
}

/// A model whose KV cache holds numbers that nobody computed.
struct Model {
    ops: CudaOps,
    decoder: Decoder<CudaOps>,
    num_layers: usize,
}

impl Model {
    fn load(name: &str, dtype: KvDtype, max_rows: usize) -> Option<Model> {
        Self::changed(name, dtype, max_rows, |_| ())
    }

    fn changed(name: &str, dtype: KvDtype, max_rows: usize, change: fn(&mut Spec)) -> Option<Model> {
        let mut ops = CudaOps::new(Arc::new(emulator(Order::Random(5))?)).with_graphs(max_rows);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name);
        let mut source = source::open(&folder, None, &mut |_, _| ()).unwrap();
        source.spec.max_positions = MAX_POSITIONS;
        change(&mut source.spec);
        let decoder = Decoder::load(&mut ops, &source.spec, &source.tensors, &mut |_, _| ()).unwrap();
        ops.allocate_kv(&source.spec, dtype, NUM_BLOCKS).unwrap();
        let mut model = Model { ops, decoder, num_layers: source.spec.layers.len() };
        model.fill(dtype);
        Some(model)
    }

    /// Regions of a layer's cache: address and bytes.
    fn regions(&self) -> Vec<(u64, usize)> {
        let kv = self.ops.kv.as_ref().unwrap();
        let (values, scales) = kv.region_bytes();
        let of = |layer| kv.addresses(layer).into_iter().zip([values, values, scales, scales]);
        (0..self.num_layers).flat_map(of).filter(|(address, _)| *address != 0).collect()
    }

    fn fill(&mut self, dtype: KvDtype) {
        let mut random = Random(7);
        for (i, (address, bytes)) in self.regions().into_iter().enumerate() {
            let mut small = || random.below(2000) as f32 / 1000.0 - 1.0;
            let content: Vec<u8> = match dtype {
                KvDtype::Bf16 => (0..bytes / 2).flat_map(|_| bf16::from_f32(small()).to_le_bytes()).collect(),
                KvDtype::Int8 if i % 4 < 2 => (0..bytes).map(|_| (small() * 127.0) as i8 as u8).collect(),
                KvDtype::F32 | KvDtype::Int8 | KvDtype::Fp8 => {
                    (0..bytes / 4).flat_map(|_| (small() / 64.0).to_le_bytes()).collect()
                }
            };
            // SAFETY: the region's bytes.
            unsafe { self.ops.device.upload(address, &content).unwrap() };
        }
    }

    fn cache(&self) -> Vec<Vec<u8>> {
        let read = |(address, bytes)| {
            let mut content = vec![0; bytes];
            // SAFETY: the region's bytes.
            unsafe { self.ops.device.download(&mut content, address).unwrap() };
            content
        };
        self.regions().into_iter().map(read).collect()
    }

    /// The bits of all logits.
    fn step(&mut self, batch: &Batch) -> Result<Vec<u32>, DeviceError> {
        let logits = self.decoder.start(&mut self.ops, batch).expect("logits are wanted");
        Ok(self.ops.read(logits)?.iter().map(|x| x.to_bits()).collect())
    }

    fn is_replayed(&mut self, batch: &Batch) -> bool {
        self.step(batch).unwrap();
        self.decoder.was_replayed()
    }
}

/// Rows of as many sequences, each at its position: the last block is its own, those before anybody's.
fn decode(positions: &[usize], random: &mut Random) -> Batch {
    let mut batch = Batch::default();
    for (row, &position) in positions.iter().enumerate() {
        let num_blocks = position / BLOCK_TOKENS + 1;
        batch.spans.push(Span {
            row_start: row as u32,
            num_rows: 1,
            first_position: position as u32,
            table_start: batch.tables.len() as u32,
            num_blocks: num_blocks as u32,
        });
        batch.tokens.push(random.below(320) as u32);
        batch.positions.push(position as u32);
        batch.slots.push((row * BLOCK_TOKENS + position % BLOCK_TOKENS) as u32);
        batch.tables.extend((1..num_blocks).map(|_| random.below(NUM_BLOCKS) as u32));
        batch.tables.push(row as u32);
        batch.logit_rows.push(row as u32);
    }
    batch
}

/// A prompt of so many tokens.
fn prompt(num_rows: usize) -> Batch {
    Batch {
        tokens: vec![3; num_rows],
        positions: (0..num_rows as u32).collect(),
        slots: (0..num_rows as u32).collect(),
        spans: vec![Span {
            row_start: 0,
            num_rows: num_rows as u32,
            first_position: 0,
            table_start: 0,
            num_blocks: num_rows.div_ceil(BLOCK_TOKENS) as u32,
        }],
        tables: (0..num_rows.div_ceil(BLOCK_TOKENS) as u32).collect(),
        logit_rows: vec![num_rows as u32 - 1],
    }
}

/// Steps of each number of rows, with and without graphs. The first sequence is the longest one, and crosses borders of splits.
fn check(name: &str, dtype: KvDtype, counts: &[usize], longest: &[[usize; 4]]) {
    check_changed(name, dtype, counts, longest, |_| ());
}

fn check_changed(name: &str, dtype: KvDtype, counts: &[usize], longest: &[[usize; 4]], change: fn(&mut Spec)) {
    let load = |max_rows| Model::changed(name, dtype, max_rows, change);
    let (Some(mut plain), Some(mut graphs)) = (load(0), load(24)) else { return };
    let mut random = Random(name.len() as u64);
    for rounds in longest {
        for &count in counts {
            for (round, &first) in rounds.iter().enumerate() {
                let others = (1..count).map(|_| random.below(first + 1));
                let positions: Vec<usize> = std::iter::once(first).chain(others).collect();
                let batch = decode(&positions, &mut random);
                let (found, expected) = (graphs.step(&batch).unwrap(), plain.step(&batch).unwrap());
                assert!(found == expected, "{name}, {dtype:?}: {count} rows at {positions:?}, round {round}");
                assert_eq!(expected.len(), count * 320);
                assert!(expected.iter().all(|x| !f32::from_bits(*x).is_nan()), "{name}: not a number");
                // The first round runs kernel by kernel, the second is captured.
                assert!(round < 2 || graphs.decoder.was_replayed(), "{name}: {count} rows, round {round}");
                assert!(!plain.decoder.was_replayed());
            }
        }
    }
    assert!(graphs.ops.graphs.num_graphs() > 0 && plain.ops.graphs.num_graphs() == 0);
    assert!(graphs.cache() == plain.cache(), "{name}, {dtype:?}: the caches differ");
}

const SHORT: [usize; 4] = [0, 40, 17, 100];
const LONG: [usize; 4] = [600, 1023, 512, 700];
/// Three splits and four.
const LONGER: [usize; 4] = [1100, 1540, 1535, 1536];

#[test]
fn tiles_give_the_same_bits() {
    check("llama-yarn-head64", KvDtype::Bf16, &[1, 2, 3, 5, 9, 17], &[SHORT]);
    check("llama-yarn-head64", KvDtype::Int8, &[3], &[SHORT, LONG, LONGER]);
}

#[test]
fn the_plain_kernel_windows_and_soft_caps_give_the_same_bits() {
    check("gemma2", KvDtype::F32, &[1, 5, 11], &[SHORT]);
    check("mistral-window", KvDtype::Bf16, &[2, 3], &[SHORT, LONG]);
}

#[test]
fn windows_over_several_splits_give_the_same_bits() {
    let set = |spec: &mut Spec| spec.layers.iter_mut().zip([1, 513, 514, 600]).for_each(|(l, w)| l.window = Some(w));
    check_changed("llama-head80-gqa8", KvDtype::Bf16, &[3], &[LONG, LONGER], set);
}

#[test]
fn experts_give_the_same_bits() {
    check("mixtral", KvDtype::Bf16, &[1, 3, 9, 17], &[SHORT]);
    check("qwen3-moe", KvDtype::Int8, &[5], &[SHORT]);
}

#[test]
fn graphs_are_dropped_where_memory_moves() {
    let Some(mut model) = Model::load("llama", KvDtype::Bf16, 8) else { return };
    let batch = decode(&[9, 30, 4], &mut Random(1));
    model.step(&prompt(2)).unwrap();
    model.fill(KvDtype::Bf16);
    let expected = model.step(&batch).unwrap();
    model.step(&batch).unwrap();
    assert!(model.is_replayed(&batch));
    // Shorter prompts leave everything where it is; a long one wants more room.
    model.step(&prompt(2)).unwrap();
    assert!(model.is_replayed(&batch));
    model.step(&prompt(300)).unwrap();
    assert_eq!(model.ops.graphs.num_graphs(), 1);
    model.fill(KvDtype::Bf16);
    for replayed in [false, true, true] {
        assert_eq!(model.step(&batch).unwrap(), expected);
        assert_eq!(model.decoder.was_replayed(), replayed);
    }
}

#[test]
fn what_cannot_be_captured_is_launched_kernel_by_kernel_for_good() {
    let Some(mut model) = Model::load("llama-yarn-head64", KvDtype::Bf16, 8) else { return };
    let batch = decode(&[9, 30, 4], &mut Random(1));
    let expected = model.step(&batch).unwrap();
    // The step that is captured must ask for memory.
    model.ops.records = Records::default();
    for _ in 0..4 {
        assert_eq!(model.step(&batch).unwrap(), expected);
        assert!(!model.decoder.was_replayed());
    }
    assert_eq!((model.ops.graphs.num_graphs(), model.ops.graphs.max_rows()), (0, 0));
}

#[test]
fn a_graph_whose_memory_was_given_back_is_found_out() {
    let Some(mut model) = Model::load("llama-yarn-head64", KvDtype::Bf16, 8) else { return };
    let batch = decode(&[9, 30], &mut Random(1));
    model.step(&batch).unwrap();
    model.step(&batch).unwrap();
    model.ops.records = Records::default();
    let message = model.step(&batch).unwrap_err().to_string();
    assert!(message.contains("attention") && message.contains("given back"), "{message}");
}

#[test]
fn steps_with_more_rows_than_asked_for_and_prompts_have_no_graph() {
    let Some(mut model) = Model::load("llama", KvDtype::Bf16, 3) else { return };
    for batch in [decode(&[9, 30, 4, 7], &mut Random(1)), prompt(5)] {
        assert!((0..4).all(|_| !model.is_replayed(&batch)));
    }
    assert_eq!(model.ops.graphs.num_graphs(), 0);
    let three = decode(&[9, 30, 4], &mut Random(1));
    assert_eq!([0, 1, 2].map(|_| model.is_replayed(&three)), [false, false, true]);
    // A prompt of one token is a decode step like any other.
    assert_eq!([0, 1, 2].map(|_| model.is_replayed(&prompt(1))), [false, false, true]);
}

#[test]
fn there_are_never_more_graphs_than_allowed() {
    let Some(emulator) = emulator(Order::Random(5)) else { return };
    let (device, mut graphs): (Arc<dyn Device>, _) = (Arc::new(emulator), Graphs::new(MAX_ROWS));
    let bucket = |splits| Bucket { rows: 1, splits };
    for splits in 0..MAX_GRAPHS + 9 {
        assert_eq!(graphs.begin(&device, bucket(splits)), Ok(Way::Direct));
        if splits > 0 {
            // This one is used all the time, and stays.
            assert_ne!(graphs.begin(&device, bucket(0)), Ok(Way::Direct));
            assert_eq!(graphs.end(&device, None), Ok(true));
        }
        assert!(graphs.kept.len() <= MAX_GRAPHS);
    }
    assert_eq!(graphs.begin(&device, bucket(1)), Ok(Way::Direct), "it was given back");
}

#[test]
fn buckets_waste_few_rows_and_are_few() {
    let all: Vec<usize> = (1..=256).map(rows).collect();
    assert_eq!(all[..10], [1, 2, 4, 4, 8, 8, 8, 8, 16, 16]);
    let wastes_little = |(bucket, count): (&usize, usize)| *bucket < count + 8 || 4 * (bucket - count) < count;
    assert!(all.iter().zip(1..).all(|(bucket, count)| *bucket >= count && wastes_little((bucket, count))));
    let mut distinct = all.clone();
    distinct.dedup();
    assert_eq!((distinct.len(), distinct.is_sorted()), (19, true));
    assert!(all.iter().all(|bucket| rows(*bucket) == *bucket));
}
