//! Shards against the model that they are of.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::source;
use crate::model::spec::{LayerSpec, MoeSpec};

fn spec_of(name: &str) -> Spec {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name);
    source::open(&folder, None, &mut |_, _| ()).unwrap().spec
}

/// Every tensor that is made has numbers of its own.
#[derive(Default)]
struct Numbers(u32);

impl Numbers {
    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let count = shape.iter().product::<usize>() as u32;
        let bytes: Vec<u8> = (self.0..self.0 + count).flat_map(|x| (x as f32).to_le_bytes()).collect();
        self.0 += count;
        let all = 0..bytes.len();
        Tensor::new("w".into(), Dtype::F32, shape.to_vec(), Arc::new(bytes), all)
    }

    /// In one part or several.
    fn parts(&mut self, is_fused: bool, rows: &[usize], tail: &[usize]) -> Vec<Tensor> {
        let shape = |rows: usize| [&[rows], tail].concat();
        match is_fused {
            true => vec![self.tensor(&shape(rows.iter().sum()))],
            false => rows.iter().map(|rows| self.tensor(&shape(*rows))).collect(),
        }
    }
}

/// A model of one layer.
#[derive(Debug, Clone)]
struct Shape {
    num_ranks: usize,
    kv_heads: usize,
    /// Query heads of a key/value head.
    group: usize,
    head_dim: usize,
    hidden: usize,
    intermediate: usize,
    num_experts: Option<usize>,
    is_fused: bool,
}

impl Shape {
    fn spec(&self) -> Spec {
        let Shape { kv_heads, group, head_dim, hidden, intermediate: intermediate_size, .. } = *self;
        let mlp = match self.num_experts {
            None => MlpSpec::Dense { intermediate_size },
            Some(num_experts) => {
                MlpSpec::Moe(MoeSpec { num_experts, experts_per_token: 1, intermediate_size, renormalise: true })
            }
        };
        let layers = vec![LayerSpec { window: None, rope: None, mlp }];
        let (num_heads, num_kv_heads, hidden_size) = (kv_heads * group, kv_heads, hidden);
        Spec { num_heads, num_kv_heads, head_dim, hidden_size, layers, tied_head: false, ..spec_of("llama") }
    }

    fn tensors(&self) -> ModelTensors {
        let mut new = Numbers::default();
        let (spec, hidden, width) = (self.spec(), self.hidden, self.intermediate);
        let qkv_rows = [spec.q_width(), spec.kv_width(), spec.kv_width()];
        let mlp = match self.num_experts {
            None => MlpTensors::Dense {
                gate_up: new.parts(self.is_fused, &[width; 2], &[hidden]),
                gate_up_bias: Some(new.parts(false, &[width; 2], &[])),
                down: new.tensor(&[hidden, width]),
                down_bias: Some(new.tensor(&[hidden])),
            },
            Some(count) => MlpTensors::Moe {
                router: new.tensor(&[count, hidden]),
                gate_up: (0..count).map(|_| new.parts(self.is_fused, &[width; 2], &[hidden])).collect(),
                down: (0..count).map(|_| new.tensor(&[hidden, width])).collect(),
            },
        };
        let layer = LayerTensors {
            norms: NormTensors { before_attention: None, after_attention: None, before_mlp: None, after_mlp: None },
            qkv: new.parts(self.is_fused, &qkv_rows, &[hidden]),
            qkv_bias: Some(new.parts(self.is_fused, &qkv_rows, &[])),
            qk_norm: None,
            o: new.tensor(&[hidden, spec.q_width()]),
            o_bias: Some(new.tensor(&[hidden])),
            mlp,
        };
        let (embedding, final_norm) = (new.tensor(&[8, hidden]), new.tensor(&[hidden]));
        let head = Some(new.tensor(&[8, hidden]));
        ModelTensors { embedding, layers: vec![layer], final_norm, head, ignored: Vec::new() }
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let sizes = (1..5usize, 1..4usize, 1..4usize, 1..5usize, 1..6usize, 1..4usize);
    (sizes, prop::option::of(1..4usize), any::<bool>(), any::<bool>()).prop_map(
        |(sizes, num_experts, is_fused, repeats)| {
            let (num_ranks, kv, group, head_dim, hidden, width) = sizes;
            // Either each rank has so many key/value heads, or so many ranks share one.
            let (num_ranks, kv_heads) = if repeats { (num_ranks * kv, kv) } else { (num_ranks, num_ranks * kv) };
            let group = if repeats { group * num_ranks / kv } else { group };
            Shape {
                num_ranks,
                kv_heads,
                group,
                head_dim,
                hidden,
                intermediate: width * num_ranks,
                num_experts,
                is_fused,
            }
        },
    )
}

/// Stacked tensors as numbers.
fn stack(parts: &[Tensor]) -> Vec<f32> {
    parts.iter().flat_map(Tensor::to_f32).collect()
}

/// The same columns of each rank's rows side by side.
fn beside(ranks: &[&Tensor]) -> Vec<f32> {
    let rows = ranks[0].shape[0];
    let values: Vec<Vec<f32>> = ranks.iter().map(|tensor| tensor.to_f32()).collect();
    (0..rows)
        .flat_map(|row| values.iter().flat_map(move |v| v.chunks(v.len() / rows).nth(row).unwrap().to_vec()))
        .collect()
}

/// The `index`th of the parts of each rank's rows one below the other, where `rows` are the parts' rows on one rank.
fn below(ranks: &[Vec<f32>], rows: &[usize], index: usize) -> Vec<f32> {
    let of = |values: &Vec<f32>| {
        let width = values.len() / rows.iter().sum::<usize>();
        let first = rows[..index].iter().sum::<usize>() * width;
        values[first..first + rows[index] * width].to_vec()
    };
    ranks.iter().flat_map(of).collect()
}

fn check_qkv(shape: &Shape, whole: &[Tensor], ranks: Vec<&[Tensor]>) {
    let (all, spec) = (stack(whole), shape.spec());
    let own = Shard::new(0, shape.num_ranks).spec(&spec).unwrap();
    let of_rank = [own.q_width(), own.kv_width(), own.kv_width()];
    let ranks: Vec<Vec<f32>> = ranks.into_iter().map(stack).collect();
    // Of the ranks that have the same key/value head, one.
    let step = ranks.len().div_ceil(shape.kv_heads).max(1);
    let once: Vec<Vec<f32>> = ranks.iter().step_by(step).cloned().collect();
    let found = [below(&ranks, &of_rank, 0), below(&once, &of_rank, 1), below(&once, &of_rank, 2)].concat();
    assert_eq!(found, all);
    for (i, rank) in ranks.iter().enumerate() {
        let kv = |values: &Vec<f32>| [1, 2].map(|part| below(std::slice::from_ref(values), &of_rank, part));
        assert_eq!(kv(rank), kv(&once[i / step]));
    }
}

fn check_halves(whole: &[Tensor], ranks: Vec<&[Tensor]>) {
    let ranks: Vec<Vec<f32>> = ranks.into_iter().map(stack).collect();
    let halves = [1, 1];
    assert_eq!([below(&ranks, &halves, 0), below(&ranks, &halves, 1)].concat(), stack(whole));
}

fn check_mlp(whole: &MlpTensors, ranks: Vec<&MlpTensors>) {
    match whole {
        MlpTensors::Dense { gate_up, gate_up_bias, down, down_bias } => {
            let of = |mlp: &&MlpTensors| match *mlp {
                MlpTensors::Dense { gate_up, gate_up_bias, down, down_bias } => {
                    (gate_up.clone(), gate_up_bias.clone().unwrap(), down.clone(), down_bias.clone())
                }
                MlpTensors::Moe { .. } => unreachable!("as the model"),
            };
            let ranks: Vec<_> = ranks.iter().map(of).collect();
            check_halves(gate_up, ranks.iter().map(|rank| &rank.0[..]).collect());
            check_halves(gate_up_bias.as_ref().unwrap(), ranks.iter().map(|rank| &rank.1[..]).collect());
            assert_eq!(beside(&ranks.iter().map(|rank| &rank.2).collect::<Vec<_>>()), down.to_f32());
            check_once(down_bias.as_ref(), ranks.iter().map(|rank| rank.3.as_ref()).collect());
        }
        MlpTensors::Moe { router, gate_up, down } => {
            let of = |mlp: &&MlpTensors| match *mlp {
                MlpTensors::Moe { router, gate_up, down } => (router.to_f32(), gate_up.clone(), down.clone()),
                MlpTensors::Dense { .. } => unreachable!("as the model"),
            };
            let ranks: Vec<_> = ranks.iter().map(of).collect();
            assert!(ranks.iter().all(|rank| rank.0 == router.to_f32()), "routers choose alike");
            for expert in 0..gate_up.len() {
                check_halves(&gate_up[expert], ranks.iter().map(|rank| &rank.1[expert][..]).collect());
                let downs: Vec<&Tensor> = ranks.iter().map(|rank| &rank.2[expert]).collect();
                assert_eq!(beside(&downs), down[expert].to_f32());
            }
        }
    }
}

/// On the first rank, and on no other.
fn check_once(whole: Option<&Tensor>, ranks: Vec<Option<&Tensor>>) {
    assert_eq!(ranks[0].map(Tensor::to_f32), whole.map(Tensor::to_f32));
    assert!(ranks[1..].iter().all(Option::is_none));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_shards_together_are_the_model(shape in shapes()) {
        let (spec, whole) = (shape.spec(), shape.tensors());
        let shards: Vec<ModelTensors> =
            (0..shape.num_ranks).map(|i| Shard::new(i, shape.num_ranks).tensors(&spec, shape.tensors()).unwrap()).collect();
        let (layer, layers) = (&whole.layers[0], shards.iter().map(|shard| &shard.layers[0]).collect::<Vec<_>>());
        check_qkv(&shape, &layer.qkv, layers.iter().map(|layer| &layer.qkv[..]).collect());
        let biases = layers.iter().map(|layer| &layer.qkv_bias.as_ref().unwrap()[..]).collect();
        check_qkv(&shape, layer.qkv_bias.as_ref().unwrap(), biases);
        prop_assert_eq!(beside(&layers.iter().map(|layer| &layer.o).collect::<Vec<_>>()), layer.o.to_f32());
        check_mlp(&layer.mlp, layers.iter().map(|layer| &layer.mlp).collect());
        if shape.num_ranks > 1 {
            check_once(layer.o_bias.as_ref(), layers.iter().map(|layer| layer.o_bias.as_ref()).collect());
            check_once(whole.head.as_ref(), shards.iter().map(|shard| shard.head.as_ref()).collect());
        }
    }

    /// Query heads find their key/value head where the rank's own spec says.
    #[test]
    fn a_query_head_has_its_key_value_head_on_the_same_rank(shape in shapes()) {
        let whole = shape.spec();
        for rank in 0..shape.num_ranks {
            let shard = Shard::new(rank, shape.num_ranks);
            let own = shard.spec(&whole).unwrap();
            let kv = shard.kv_heads(&whole).unwrap();
            prop_assert_eq!(kv.len(), own.num_kv_heads);
            for head in 0..own.num_heads {
                let of_model = (rank * own.num_heads + head) / (whole.num_heads / whole.num_kv_heads);
                prop_assert_eq!(kv.start + head / (own.num_heads / own.num_kv_heads), of_model);
            }
        }
    }
}

#[test]
fn what_ranks_cannot_share_is_refused_by_name() {
    let shape = Shape {
        num_ranks: 2,
        kv_heads: 4,
        group: 3,
        head_dim: 16,
        hidden: 8,
        intermediate: 48,
        num_experts: None,
        is_fused: false,
    };
    let spec = shape.spec();
    let error = |num_ranks: usize, spec: &Spec| Shard::new(1, num_ranks).spec(spec).unwrap_err().to_string();
    assert_eq!(error(5, &spec), "num_attention_heads is 12, which 5 ranks cannot share evenly");
    assert_eq!(error(6, &spec), "num_key_value_heads is 4, which 6 ranks cannot share evenly");
    let odd = Shape { intermediate: 49, ..shape.clone() };
    assert_eq!(error(2, &odd.spec()), "intermediate_size is 49, which 2 ranks cannot share evenly");
    let experts = Shape { num_experts: Some(3), ..odd };
    assert!(error(2, &experts.spec()).starts_with("the experts' intermediate_size is 49"));
    assert!(error(2, &spec_of("olmo2")).contains("whole rows of q and k"));

    let mut tensors = shape.tensors();
    let MlpTensors::Dense { down, .. } = &mut tensors.layers[0].mlp else { unreachable!("dense") };
    *down = Tensor::new("down".into(), Dtype::Q4_0, vec![1, 64], Arc::new(vec![0; 36]), 0..36);
    let error = Shard::new(0, 4).tensors(&shape.spec(), tensors).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.starts_with("tensor `down` holds Q4_0 blocks of 32 elements") && error.contains("multiples of 16"),
        "{error}"
    );
}

#[test]
fn columns_of_blocks_are_those_of_the_numbers() {
    let bytes: Vec<u8> = (0..3 * 4 * 34u32).map(|i| if i % 34 == 1 { 0x3c } else { (i * 7) as u8 }).collect();
    let all = 0..bytes.len();
    let whole = Tensor::new("w".into(), Dtype::Q8_0, vec![3, 128], Arc::new(bytes), all);
    let some = whole.columns(32..96);
    assert_eq!((&some.shape[..], some.num_bytes()), (&[3, 64][..], 3 * 2 * 34));
    let expected: Vec<f32> = whole.to_f32().chunks(128).flat_map(|row| row[32..96].to_vec()).collect();
    assert_eq!(some.to_f32(), expected);
    assert_eq!(some.rows(1..2).to_f32(), expected[64..128]);
}
